# SPDX-License-Identifier: Apache-2.0
"""Read one picture of any accepted form as upright RGB pixels; codes and rules are listed in the package."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from segship.arrays import AnyArray, Pixels
from segship.errors import ImageError
from segship.images.file_bytes import (
    DEFAULT_FORMATS,
    check_byte_count,
    picture_end,
    read_file,
    recognise_format,
    truncated,
    webp_size,
)
from segship.images.pixel_modes import exif_orientation, rgb_pixels, turn_upright

Result = TypeVar("Result")


class _JpegWithoutResolution(JpegImagePlugin.JpegImageFile):
    """Leaves EXIF alone: Pillow would read all of it for a print resolution, and warn of blocks that are damaged."""

    def _read_dpi_from_exif(self) -> None:
        pass


# The plugins themselves, not Image.open: it warns or fails by a limit that is global to the process, and it turns a
# JPEG with a second picture inside into another format.
_PLUGINS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "jpeg": _JpegWithoutResolution,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest image that is read.

    Attributes
    ----------
    bytes
        Size of the encoded file.
    pixels
        Height times width.
    side
        The longer side in pixels. 30,000 stays below 32,767, where 16-bit sums of a row wrap.
    aspect_ratio
        Longer side over shorter side. Past twice the model's image size the shorter side would shrink to nothing.
    """

    bytes: int = 256 * 1024 * 1024
    pixels: int = 50_000_000
    side: int = 30_000
    aspect_ratio: int = 1000


REDUCTIONS = (1, 2, 4, 8)
"""How much smaller an image can be read: what a JPEG decoder does without effort."""


class LoadedImage:
    """An image as the use road takes it: upright pixels, and notes.

    Pixels are (H, W, 3) uint8 RGB, contiguous; or the same as an RGB picture of Pillow's that nobody else changes.
    ``notes`` are what was done that a user may want to know; see the package's list.
    """

    def __init__(self, pixels: Pixels | Image.Image, notes: tuple[str, ...] = ()) -> None:
        self.notes = notes
        self._held = pixels

    @property
    def pixels(self) -> Pixels:
        """(H, W, 3) uint8 RGB, upright, contiguous: made of the picture at the first call, and kept."""
        held = self._held
        if isinstance(held, Image.Image):
            # Two threads may both do this once, with the same result.
            self._held = held = np.array(held)
        return held

    @property
    def picture(self) -> Pixels | Image.Image:
        """The pixels in the form that they are in: whoever goes on with Pillow need not have an array made."""
        return self._held

    @property
    def size_hw(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        held = self._held
        return (held.height, held.width) if isinstance(held, Image.Image) else (held.shape[0], held.shape[1])

    def with_notes(self, notes: tuple[str, ...]) -> LoadedImage:
        """Return the same image with other notes."""
        return LoadedImage(self._held, notes)


ImageSource = str | Path | bytes | bytearray | memoryview | Image.Image | AnyArray | LoadedImage
"""A path, the bytes of a file, a Pillow image, an array (H, W, 3) uint8 RGB or (H, W) uint8 gray, or what was read."""


def read_image(
    source: ImageSource,
    *,
    limits: ImageLimits | None = None,
    background: tuple[int, int, int] = (0, 0, 0),
    formats: Collection[str] = DEFAULT_FORMATS,
    reduce: int = 1,
) -> LoadedImage:
    """Return the image that a source holds, upright and in RGB.

    Parameters
    ----------
    source
        Path of a file, its bytes, a Pillow image, or an array: (H, W, 3) uint8 RGB, which is taken as it is and not
        copied, or (H, W) uint8 gray. What was read already comes back as it is, if it is within the limits.
    limits
        The largest image to read; the defaults of `ImageLimits` when None.
    background
        RGB color under transparent pixels, each 0 to 255.
    formats
        File formats to accept, out of ``jpeg``, ``png``, ``webp``, ``tiff``, ``gif`` and ``bmp``.
    reduce
        2, 4 or 8 returns the image at that part of its size, sides rounded up, for pictures so large that their masks
        are wanted smaller. A JPEG is decoded at that size and never held at its own. Limits are those of the whole.

    Raises
    ------
    ImageError
        With one of the codes in the module's list.
    """
    if len(background) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in background):
        raise ImageError(
            f"the background is {background!r}; give three whole numbers from 0 to 255", code="bad_background"
        )
    if reduce not in REDUCTIONS:
        message = f"reduce is {reduce!r}; accepted are {', '.join(map(str, REDUCTIONS))}"
        raise ImageError(message, code="bad_reduction")
    # A JPEG file comes back reduced as it was decoded; whatever does not is reduced here.
    loaded, was_reduced = _read(source, limits or ImageLimits(), background, formats, reduce)
    if reduce == 1:
        return loaded
    notes = (*loaded.notes, f"reduced_{reduce}")
    if was_reduced:
        return loaded.with_notes(notes)
    return LoadedImage(np.asarray(Image.fromarray(loaded.pixels).reduce(reduce)), notes)


def _read(
    source: ImageSource, limits: ImageLimits, background: tuple[int, int, int], formats: Collection[str], reduce: int
) -> tuple[LoadedImage, bool]:
    """Return the image, and whether it is reduced already."""
    if isinstance(source, str | Path):
        return _read_bytes(read_file(source, limits.bytes), limits, background, formats, reduce)
    if isinstance(source, bytes | bytearray | memoryview):
        check_byte_count(memoryview(source).nbytes, limits.bytes)
        return _read_bytes(bytes(source), limits, background, formats, reduce)
    if isinstance(source, Image.Image):
        _check_size(source.height, source.width, limits)
        # The caller's own picture may change after this.
        loaded = _read_pillow(source, limits, background)
        return LoadedImage(loaded.pixels, loaded.notes), False
    if isinstance(source, LoadedImage):
        _check_size(*source.size_hw, limits)
        return source, False
    if hasattr(source, "__array__"):
        return _read_array(np.asarray(source), limits), False
    raise ImageError(
        f"an image cannot be read from a {type(source).__name__}; "
        "give a path, bytes, a Pillow image or an (H, W, 3) uint8 RGB array",
        code="unsupported_source",
    )


def _read_bytes(
    data: bytes, limits: ImageLimits, background: tuple[int, int, int], formats: Collection[str], reduce: int
) -> tuple[LoadedImage, bool]:
    name = recognise_format(data, formats)
    if name == "webp" and (size := webp_size(data)) is not None:
        _check_size(*size, limits)
    end = picture_end(data, name)
    try:
        opened = _decoded(lambda: _PLUGINS[name](io.BytesIO(data)))
    except ImageError as error:
        # Cut off inside its header, it looks damaged to the decoder.
        raise (truncated() if end is None else error) from None
    _check_size(opened.size[1], opened.size[0], limits)
    if end is None:
        raise truncated()
    notes = ("trailing_data",) if end < len(data) else ()
    was_reduced = reduce > 1 and _reduce_while_decoding(opened, reduce)
    loaded = _read_pillow(opened, limits, background)
    return loaded.with_notes(notes + loaded.notes), was_reduced


def _reduce_while_decoding(opened: ImageFile.ImageFile, reduce: int) -> bool:
    """Ask the decoder for a smaller picture, and return whether it will give one; only JPEG's can."""
    width, height = opened.size
    if not isinstance(opened, JpegImagePlugin.JpegImageFile) or min(width, height) < reduce:
        return False
    opened.draft(None, (width // reduce, height // reduce))
    return opened.size != (width, height)


def _read_pillow(image: Image.Image, limits: ImageLimits, background: tuple[int, int, int]) -> LoadedImage:
    notes = []
    if _decoded(lambda: image.tell() == 0 and bool(getattr(image, "is_animated", False))):
        notes.append("animated_first_frame")
    _decoded(image.load)
    # A GIF frame may be larger than the canvas its header states.
    _check_size(image.size[1], image.size[0], limits)
    # Read after loading: PNG may store the block behind the pixels. TIFF files leave none, Pillow turns those itself.
    orientation = exif_orientation(image.info.get("exif"))
    if image.mode == "RGB" and "transparency" not in image.info and orientation == 1:
        return LoadedImage(image, tuple(notes))
    pixels, was_transparent = _decoded(lambda: rgb_pixels(image, background))
    if was_transparent:
        notes.append("transparency_composited")
    return LoadedImage(turn_upright(pixels, orientation), tuple(notes))


def _decoded(step: Callable[[], Result]) -> Result:
    """Return what a step of the decoder gives, with every failure under one of our codes and in our words."""
    try:
        return step()
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"the image has more pixels than Pillow's own limit of {Image.MAX_IMAGE_PIXELS}; make it smaller, "
            "or raise PIL.Image.MAX_IMAGE_PIXELS",
            code="too_many_pixels",
        ) from None
    except OSError as error:
        if "truncated" in str(error):
            raise truncated() from None
        raise _corrupt() from None
    except MemoryError:
        raise ImageError(
            "there is not enough memory to decode the image; make it smaller", code="out_of_memory"
        ) from None
    except Exception:
        # A damaged file can make a plugin raise anything, and its text may quote memory; neither goes further.
        raise _corrupt() from None


def _corrupt() -> ImageError:
    return ImageError("the image cannot be decoded, it is damaged; open and save it in an editor", code="corrupt")


def _check_size(height: int, width: int, limits: ImageLimits) -> None:
    found = f"the image is {width:,} x {height:,} pixels"
    if min(height, width) < 1:
        raise ImageError(f"{found}; both sides must be at least 1", code="corrupt")
    if height * width > limits.pixels:
        raise ImageError(
            f"{found}, {height * width:,} in all; at most {limits.pixels:,} are read; "
            "scale it down, or raise ImageLimits.pixels",
            code="too_many_pixels",
        )
    if max(height, width) > limits.side:
        raise ImageError(
            f"{found}; a side may have at most {limits.side:,}; scale it down, or cut it into tiles",
            code="side_too_long",
        )
    if max(height, width) > limits.aspect_ratio * min(height, width):
        raise ImageError(
            f"{found}; the longer side may be at most {limits.aspect_ratio:,} times the shorter; cut it into pieces",
            code="aspect_ratio",
        )


def _read_array(array: AnyArray, limits: ImageLimits) -> LoadedImage:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise ImageError(
            f"the image array has the shape {array.shape}; accepted are (H, W, 3) RGB and (H, W) gray, neither empty",
            code="bad_array_shape",
        )
    if array.dtype != np.uint8:
        raise ImageError(
            f"the image array has the dtype {array.dtype}; accepted is uint8, 0 to 255; "
            "scale it, then use .astype(numpy.uint8)",
            code="bad_array_dtype",
        )
    _check_size(array.shape[0], array.shape[1], limits)
    if array.ndim == 2:
        return LoadedImage(np.repeat(array[:, :, None], 3, axis=2))
    return LoadedImage(np.ascontiguousarray(array))


# On the spoon.
DEMO_POINT_XY = (365, 290)


def demo_photograph() -> Path:
    """Return the path of the photograph inside the package, a JPEG of 600 x 400 pixels."""
    return Path(__file__).parent / "coffee.jpg"
