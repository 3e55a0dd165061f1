# SPDX-License-Identifier: Apache-2.0
"""Read one picture of any accepted form as upright RGB pixels; codes and rules are listed in the package."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

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
from segship.errors import ImageError, way
from segship.images.file_bytes import (
    FORMATS,
    check_byte_count,
    check_jpeg_scans,
    first_jpeg_scan,
    picture_end,
    read_file,
    recognise_format,
    truncated,
    webp_size,
)
from segship.images.pixel_modes import (
    DEPTHS,
    Depth,
    ask_for_lower_bytes,
    check_samples,
    exif_orientation,
    is_sixteen_bit_color,
    join_bytes,
    narrow_range,
    rgb_pixels,
    to_eight_bits,
    turn_upright,
    unsupported_samples,
)
from segship.options import check_types, check_whole

Result = TypeVar("Result")
_UNBOUNDED = 1 << 40


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
        Longer side over shorter side. A promptable model takes no more than twice its image size, past which the
        shorter side would shrink to nothing: 768 if that is 384.
    """

    bytes: int = 256 * 1024 * 1024
    pixels: int = 50_000_000
    side: int = 30_000
    aspect_ratio: int = 1000

    def __post_init__(self) -> None:
        check_types(self)
        check_whole(self, 1, _UNBOUNDED, "bytes", "pixels", "side", "aspect_ratio")


NOTES = {
    "animated_first_frame": "it has several frames or pages; the first was taken",
    "trailing_data": "bytes behind the picture were ignored",
    "transparency_composited": "transparent parts show the background color",
    "narrow_range": "it has more than 8 bits, most of them unused, and is dark or flat; depth min-max spreads them",
    "image_damaged": "part of the JPEG is missing; it is gray there",
}
"""What the notes of an image mean."""

REDUCTIONS = (1, 2, 4, 8)
"""How much smaller an image can be read: what a JPEG decoder does without effort."""


class LoadedImage:
    """An image as the use road takes it: upright pixels, and notes.

    Pixels are (H, W, 3) uint8 RGB, contiguous; or the same as an RGB picture of Pillow's that nobody else changes.
    ``notes`` are what was done that a user may want to know; see the package's list. ``path`` is the file it was read
    from, if it was one: a `FileAsRead` where options said how.
    """

    def __init__(
        self, pixels: Pixels | Image.Image, notes: tuple[str, ...] = (), path: str | Path | FileAsRead | None = None
    ) -> None:
        self.notes = notes
        self.path = path
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
        return LoadedImage(self._held, notes, self.path)

    def __repr__(self) -> str:
        path = "" if self.path is None else f", path={os.fspath(self.path)!r}"
        return f"LoadedImage(size_hw={self.size_hw}, notes={self.notes}{path})"


class _Reading(NamedTuple):
    """What `read_image` was asked for."""

    limits: ImageLimits = ImageLimits()
    background: tuple[int, int, int] = (0, 0, 0)
    formats: Collection[str] = FORMATS
    reduce: int = 1
    depth: Depth = "type-range"


@dataclass(frozen=True, slots=True)
class FileAsRead:
    """A path, as `os.fspath` takes it, of a file that was read otherwise than by default, and is read so again."""

    path: str | Path
    how: _Reading

    def __fspath__(self) -> str:
        return str(self.path)


def _file_read_so(path: str | Path, how: _Reading) -> str | Path | FileAsRead:
    """Return what gives the same picture when it is read again; stricter limits and fewer formats do not matter."""
    usual = _Reading()
    wider = any(getattr(how.limits, name) > getattr(usual.limits, name) for name in ImageLimits.__slots__)
    return FileAsRead(path, how) if wider or how._replace(limits=usual.limits, formats=FORMATS) != usual else path


_Source = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | AnyArray | LoadedImage
ImageSource = _Source | FileAsRead
"""A path, the bytes of a file, a file open for reading bytes, a Pillow image, an array (H, W, 3) RGB or (H, W) gray, or
what was read."""


def default_limits(source: object) -> ImageLimits:
    """Return the limits of an image for which none were given; what was read already was judged then, and has none."""
    return ImageLimits(*[_UNBOUNDED] * 4) if isinstance(source, LoadedImage) else ImageLimits()


def read_image(
    source: ImageSource,
    *,
    limits: ImageLimits | None = None,
    background: tuple[int, int, int] = (0, 0, 0),
    formats: Collection[str] = FORMATS,
    reduce: int = 1,
    depth: Depth = "type-range",
) -> LoadedImage:
    """Return the image that a source holds, upright and in RGB.

    Parameters
    ----------
    source
        Path of a file, its bytes, a file open for reading bytes, which is read from where it stands, a Pillow image,
        or an array: (H, W, 3) RGB or (H, W) gray of dtype uint8, uint16 or float; uint8 RGB is taken as it is and not
        copied. What was read already comes back as it is; it was judged then, and is again only by ``limits``.
    limits
        The largest image to read; the defaults of `ImageLimits` when None.
    background
        RGB color under transparent pixels, each 0 to 255.
    formats
        File formats to accept, out of ``jpeg``, ``png``, ``webp``, ``tiff``, ``gif`` and ``bmp``: all when left out.
        Of several frames or pages the first is taken, and noted.
    reduce
        2, 4 or 8 returns the image at that part of its size, sides rounded up, for pictures so large that their masks
        are wanted smaller. A JPEG is decoded at that size and never held at its own. Limits are those of the whole.
    depth
        How more than 8 bits become 8, as in 16-bit PNG, float TIFF and arrays of both: ``type-range`` spreads what the
        type can hold, 0 to 65535 or 0.0 to 1.0, over 0 to 255, and notes ``narrow_range`` where the picture leaves
        most of that unused; ``min-max`` spreads its lowest to highest value; ``percentile`` its 0.5th to 99.5th
        percentile, and clips the rest.

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
    if depth not in DEPTHS:
        raise ImageError(f"depth is {depth!r}; accepted are {', '.join(DEPTHS)}", code="bad_depth")
    how = _Reading(limits or default_limits(source), background, formats, reduce, depth)
    if isinstance(source, FileAsRead):
        how, source = source.how, source.path
    # A JPEG file comes back reduced as it was decoded; whatever does not is reduced here.
    loaded, was_reduced = _read(source, how)
    if how.reduce == 1:
        return loaded
    notes = (*loaded.notes, f"reduced_{how.reduce}")
    if was_reduced:
        return loaded.with_notes(notes)
    # The file of what was read already would come back in its own size.
    path = None if isinstance(source, LoadedImage) else loaded.path
    return LoadedImage(np.asarray(Image.fromarray(loaded.pixels).reduce(how.reduce)), notes, path)


def _read(source: _Source, how: _Reading) -> tuple[LoadedImage, bool]:
    """Return the image, and whether it is reduced already."""
    if isinstance(source, str | Path):
        loaded, was_reduced = _read_bytes(read_file(source, how.limits.bytes), how)
        return LoadedImage(loaded.picture, loaded.notes, _file_read_so(source, how)), was_reduced
    if isinstance(source, bytes | bytearray | memoryview):
        check_byte_count(memoryview(source).nbytes, how.limits.bytes)
        return _read_bytes(bytes(source), how)
    if isinstance(source, Image.Image):
        _check_size(source.height, source.width, how.limits)
        # The caller's own picture may change after this.
        loaded = _read_pillow(source, how)
        return LoadedImage(loaded.pixels, loaded.notes), False
    if isinstance(source, LoadedImage):
        _check_size(*source.size_hw, how.limits)
        return source, False
    if hasattr(source, "__array__"):
        return _read_array(np.asarray(source), how), False
    if hasattr(source, "read"):
        return _read_bytes(_read_stream(source, how.limits), how)
    raise ImageError(
        f"an image cannot be read from a {type(source).__name__}; "
        "give a path, bytes, an open file, a Pillow image or an (H, W, 3) uint8 RGB array",
        code="unsupported_source",
    )


def _read_stream(stream: BinaryIO, limits: ImageLimits) -> bytes:
    data = stream.read(limits.bytes + 1)
    if not isinstance(data, bytes):
        message = (
            f"the file gives {type(data).__name__} where bytes are needed; open it in binary mode: open(path, 'rb')"
        )
        raise ImageError(message, code="unsupported_source")
    check_byte_count(len(data), limits.bytes)
    return data


def _read_bytes(data: bytes, how: _Reading) -> tuple[LoadedImage, bool]:
    name = recognise_format(data, how.formats)
    if name == "webp" and (size := webp_size(data)) is not None:
        _check_size(*size, how.limits)
    end = picture_end(data, name)
    try:
        opened = _open(data, name)
    except ImageError as error:
        # Cut off inside its header, it looks damaged to the decoder.
        raise (truncated() if end is None else error) from None
    _check_size(opened.size[1], opened.size[0], how.limits)
    if end is None:
        raise truncated()
    check_samples(opened)
    if opened.info.get("progressive"):
        check_jpeg_scans(data, opened.size[0] * opened.size[1])
    notes = ("trailing_data",) if end < len(data) else ()
    was_reduced = how.reduce > 1 and _reduce_while_decoding(opened, how.reduce)
    lower = None
    if how.depth != "type-range" and is_sixteen_bit_color(opened):
        lower = _open(data, name)
        ask_for_lower_bytes(lower)
    loaded = _read_pillow(opened, how, lower)
    if name == "jpeg" and _has_short_scan(data, opened):
        notes = ("image_damaged", *notes)
    return loaded.with_notes(notes + loaded.notes), was_reduced


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    return _decoded(lambda: _PLUGINS[name](io.BytesIO(data)))


# Bits of a scan that decode to anything but flat gray; no byte is a marker's first.
_NOISE = np.random.default_rng(0).integers(0, 255, 256, np.uint8).tobytes()
_END_OF_JPEG = b"\xff\xd9"


def _has_short_scan(data: bytes, opened: ImageFile.ImageFile) -> bool:
    """Return whether the first scan of a decoded JPEG, which holds all its blocks, stops too early.

    Its decoder does not report that, and fills what is missing, up to the last row, with the middle gray. Where that
    row is so gray, noise is put behind the scan: it is read only if data is missing. Blocks are decoded to one pixel.
    """
    is_progressive = bool(opened.info.get("progressive"))
    if not is_progressive and not _ends_gray(opened):
        return False
    scan = first_jpeg_scan(data)
    whole = _decode_blocks(scan)
    # Later scans add detail to blocks that are missing, so what a progressive file shows need not be gray.
    return _ends_gray(whole) and not np.array_equal(np.asarray(whole), np.asarray(_decode_blocks(scan + _NOISE)))


def _decode_blocks(scan: bytes) -> Image.Image:
    picture = _open(scan + _END_OF_JPEG, "jpeg")
    picture.draft(None, (max(1, picture.width // 8), max(1, picture.height // 8)))
    _decoded(picture.load)
    return picture


def _ends_gray(picture: Image.Image) -> bool:
    width, height = picture.size
    row = np.asarray(picture.crop((0, height - 1, width, height)))
    # Not exactly 128: decoders smooth blocks that have no detail.
    return bool(abs(np.median(row) - 128) <= 8)


def _reduce_while_decoding(opened: ImageFile.ImageFile, reduce: int) -> bool:
    """Ask the decoder for a smaller picture, and return whether it will give one; only JPEG's can."""
    width, height = opened.size
    if not isinstance(opened, JpegImagePlugin.JpegImageFile) or min(width, height) < reduce:
        return False
    opened.draft(None, (width // reduce, height // reduce))
    return opened.size != (width, height)


def _read_pillow(image: Image.Image, how: _Reading, lower: Image.Image | None = None) -> LoadedImage:
    notes: tuple[str, ...] = ()
    if _decoded(lambda: image.tell() == 0 and bool(getattr(image, "is_animated", False))):
        notes = ("animated_first_frame",)
    was_wide = is_sixteen_bit_color(image)
    _decoded(image.load)
    # A GIF frame may be larger than the canvas its header states.
    _check_size(image.size[1], image.size[0], how.limits)
    if lower is not None:
        upper, lower_bytes = image, lower
        _decoded(lower_bytes.load)
        image = join_bytes(upper, lower_bytes, how.depth)
    elif was_wide:
        colors = np.asarray(image)[..., : 1 if image.mode == "LA" else 3]
        notes += narrow_range(int(colors.min()), int(colors.max()))
    # Read after loading: PNG may store the block behind the pixels. TIFF files leave none, Pillow turns those itself.
    orientation = exif_orientation(image.info.get("exif"))
    if image.mode == "RGB" and "transparency" not in image.info and orientation == 1:
        return LoadedImage(image, notes)
    pixels, more = _decoded(lambda: rgb_pixels(image, how.background, how.depth))
    return LoadedImage(turn_upright(pixels, orientation), notes + more)


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
    except SyntaxError as error:
        if "unknown pixel mode" in str(error):
            raise unsupported_samples("a kind of number, or of channels, that is not read") from None
        raise _corrupt() from None
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
            f"scale it down, or raise {way('ImageLimits.pixels', '--max-pixels')}",
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


def _read_array(array: AnyArray, how: _Reading) -> LoadedImage:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3) or 0 in array.shape:
        raise ImageError(
            f"the image array has the shape {array.shape}; accepted are (H, W, 3) RGB and (H, W) gray, neither empty"
            + _shape_advice(array.shape),
            code="bad_array_shape",
        )
    if array.dtype not in (np.uint8, np.uint16) and array.dtype.kind != "f":
        raise ImageError(
            f"the image array has the dtype {array.dtype}; accepted are uint8 of 0 to 255, uint16, and floats of 0 to "
            "1; convert it with .astype(numpy.uint8) if its values are 0 to 255",
            code="bad_array_dtype",
        )
    _check_size(array.shape[0], array.shape[1], how.limits)
    values, notes = (array, ()) if array.dtype == np.uint8 else to_eight_bits(array, how.depth)
    if array.ndim == 2:
        return LoadedImage(np.repeat(values[:, :, None], 3, axis=2), notes)
    return LoadedImage(np.ascontiguousarray(values), notes)


def _shape_advice(shape: tuple[int, ...]) -> str:
    if len(shape) == 4 and shape[0] == 1:
        return "; take the image out of its batch: image[0]"
    if len(shape) != 3:
        return ""
    if shape[2] == 4:
        return "; drop alpha: image[..., :3]"
    if shape[2] == 1:
        return "; drop the axis: image[..., 0]"
    return "; transpose it: image.transpose(1, 2, 0)" if shape[0] in (1, 3, 4) else ""


# On the spoon.
DEMO_POINT_XY = (365, 290)


def demo_photograph() -> Path:
    """Return the path of the photograph inside the package, a JPEG of 600 x 400 pixels."""
    return Path(__file__).parent / "coffee.jpg"
