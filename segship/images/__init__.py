# SPDX-License-Identifier: Apache-2.0
"""A path, bytes, Pillow image or array to upright (H, W, 3) uint8 RGB, within limits; the use road starts here.

Pillow decodes. Each file goes to the one plugin of its recognised, allowed format, so no other decoder ever sees it.
Size limits are checked on the header, before pixels are decoded. EXIF orientation is applied once, here, so that
every point and box is in the frame a viewer shows. Color profiles are ignored. See `segship.images.pixel_modes` for
what happens to each kind of pixel.

Codes of `ImageError`: ``missing_file``, ``not_a_file``, ``unreadable_file``, ``empty_file``, ``too_many_bytes``,
``unknown_format``, ``format_not_allowed``, ``truncated``, ``corrupt``, ``too_complex``, ``too_many_pixels``,
``side_too_long``, ``aspect_ratio``, ``unsupported_mode``, ``value_range``, ``non_finite_pixels``,
``bad_array_shape``, ``bad_array_dtype``, ``bad_background``, ``bad_reduction``, ``bad_depth``,
``unsupported_source``, ``out_of_memory``.
Text of Pillow never reaches a message.

Notes of a `LoadedImage` are explained by `NOTES`; ``reduced_2``, ``reduced_4`` and ``reduced_8`` say that it was read
at that part of its size, as was asked.
"""

from segship.images.pixel_modes import Depth
from segship.images.reading import NOTES, FileAsRead, ImageLimits, ImageSource, LoadedImage, read_image

__all__ = ["NOTES", "Depth", "FileAsRead", "ImageLimits", "ImageSource", "LoadedImage", "read_image"]
