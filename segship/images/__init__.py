# SPDX-License-Identifier: Apache-2.0
"""A path, bytes, Pillow image or array to upright (H, W, 3) uint8 RGB, within limits; the use road starts here.

Pillow decodes. Each file goes to the one plugin of its recognised, allowed format, so no other decoder ever sees it.
Size limits are checked on the header, before pixels are decoded. EXIF orientation is applied once, here, so that
every point and box is in the frame a viewer shows. Color profiles are ignored. See `segship.images.pixel_modes` for
what happens to each kind of pixel.

Codes of `ImageError`: ``missing_file``, ``not_a_file``, ``unreadable_file``, ``empty_file``, ``too_many_bytes``,
``unknown_format``, ``format_not_allowed``, ``truncated``, ``corrupt``, ``too_complex``, ``too_many_pixels``,
``side_too_long``, ``aspect_ratio``, ``unsupported_mode``, ``value_range``, ``non_finite_pixels``,
``bad_array_shape``, ``bad_array_dtype``, ``bad_background``, ``bad_reduction``, ``unsupported_source``,
``out_of_memory``.
Text of Pillow never reaches a message.

Notes of a `LoadedImage`: ``animated_first_frame`` (several frames or pages, the first was taken), ``trailing_data``
(bytes behind the picture were ignored), ``transparency_composited`` (laid over the background color), ``reduced_2``,
``reduced_4``, ``reduced_8`` (read at that part of its size, as was asked).
"""

from segship.images.reading import ImageLimits, ImageSource, LoadedImage, read_image

__all__ = ["ImageLimits", "ImageSource", "LoadedImage", "read_image"]
