# SPDX-License-Identifier: Apache-2.0
"""Any Pillow mode to 8-bit RGB, and the eight EXIF orientations; used by `segship.images` alone.

| mode | what happens |
|---|---|
| 1, L, P, RGB, RGBX, YCbCr, HSV | Pillow's own conversion |
| CMYK | Pillow's own; in JPEG the inks are stored inverted, as Adobe writes them, with or without Adobe's marker |
| LA, La, PA, RGBA, RGBa, and a transparent color in 1, L, P, RGB, I;16 | laid over the background color |
| I;16 and its byte orders | brought to 0..255 by the depth rule; the type's range is 0..65535 |
| I | the same; Pillow's name for 16-bit data in a wider type, so ``type-range`` refuses values outside 0..65535 |
| F | the same; the range is 0..1, and NaN and infinity are refused |
| LAB and everything else | refused by name |

Files of 16-bit colors become 8-bit pictures in Pillow, which keeps the upper bytes: that is ``type-range``, rounded
down. For the other rules `read_image` decodes the lower bytes too. Color profiles and gamma are ignored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from segship.arrays import AnyArray, Color, Pixels
from segship.errors import ImageError

_OPAQUE_MODES = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "CMYK")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_BIT_MAX = 65_535

Depth = Literal["type-range", "min-max", "percentile"]
"""How more than 8 bits become 8: all that the type can hold, 0 to 65535 or 0.0 to 1.0, is spread over 0 to 255; or the
picture's own lowest to highest value; or its 0.5th to 99.5th percentile, the rest being clipped. One range serves all
channels. Pictures of 8 bits stay as they are."""
DEPTHS: tuple[Depth, ...] = get_args(Depth)

# The percentiles of MedSAM's pre-processing (Ma et al., "Segment anything in medical images", 2024).
_PERCENTILES = (0.5, 99.5)
_NARROW = 128
"""Fewer of the 256 gray values between the darkest and the brightest pixel are a range mostly unused."""

_TIFF_BITS_TAG, _TIFF_PHOTOMETRIC_TAG, _TIFF_PLANES_TAG, _TIFF_SAMPLE_FORMAT_TAG = 258, 262, 284, 339
_TIFF_MIN_IS_WHITE = 0
_TIFF_APART = 2
_TIFF_UNSIGNED, _TIFF_SIGNED = 1, 2

_EXIF_PREFIX = b"Exif\x00\x00"
_EXIF_ORIENTATION_TAG = 0x0112
_EXIF_SHORT, _EXIF_LONG = 3, 4
_EXIF_MAX_BYTES = 64 * 1024

# Stored picture to upright picture, by the value of EXIF tag 0x0112 (Exif 2.32, section 4.6.4 A).
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels.transpose(1, 0, 2)[::-1],
}


def rgb_pixels(image: Image.Image, background: Color, depth: Depth = "type-range") -> tuple[Pixels, tuple[str, ...]]:
    """Return a loaded Pillow image as (H, W, 3) uint8 RGB, and the notes of what was done to it."""
    mode = image.mode
    if mode in _SIXTEEN_BIT_MODES or mode in ("I", "F"):
        return _wide_to_rgb(image, background, depth)
    if mode in _ALPHA_MODES or (mode in _OPAQUE_MODES and "transparency" in image.info):
        # Pillow undoes the premultiplication of gray only on the way to LA.
        pixels, was_transparent = _composite(
            (image.convert("LA") if mode == "La" else image).convert("RGBA"), background
        )
        return pixels, ("transparency_composited",) * was_transparent
    if mode in _OPAQUE_MODES:
        # Pillow would copy what needs no conversion.
        return np.array(image if mode == "RGB" else image.convert("RGB")), ()
    raise ImageError(
        f"the image has the mode {mode}, which has no agreed conversion to RGB here; save it as RGB",
        code="unsupported_mode",
    )


def check_samples(image: Image.Image) -> None:
    """Refuse a TIFF, opened and not loaded yet, whose numbers Pillow would take for others without a word."""
    bits = _tag(image, _TIFF_BITS_TAG)
    if _tag(image, _TIFF_SAMPLE_FORMAT_TAG) == _TIFF_SIGNED and bits == 8:
        raise unsupported_samples("signed 8-bit numbers")
    if _tag(image, _TIFF_PLANES_TAG) == _TIFF_APART and bits is not None and bits > 8:
        raise unsupported_samples(f"{bits}-bit channels in planes of their own")


def unsupported_samples(what: str) -> ImageError:
    """Return the refusal of a TIFF that is whole and holds what is not read."""
    message = f"the TIFF holds {what}; save it with 8 or 16 bits a channel, channels together, or as 32-bit float gray"
    return ImageError(message, code="unsupported_mode")


def _tag(image: Image.Image, number: int) -> int | None:
    """Return a number in a TIFF's tags; the first of several."""
    value = getattr(image, "tag_v2", {}).get(number)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else None


def _composite(rgba: Image.Image, background: Color) -> tuple[Pixels, bool]:
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return np.array(rgba.convert("RGB")), False
    canvas = Image.new("RGB", rgba.size, background)
    canvas.paste(rgba.convert("RGB"), mask=alpha)
    return np.array(canvas), True


def _wide_to_rgb(image: Image.Image, background: Color, depth: Depth) -> tuple[Pixels, tuple[str, ...]]:
    # Pillow turns "0 is white" round for 8-bit TIFF files but not for wider ones.
    if _tag(image, _TIFF_PHOTOMETRIC_TAG) == _TIFF_MIN_IS_WHITE:
        raise ImageError(
            f"the image is a TIFF of mode {image.mode} in which 0 means white; save it with 0 as black",
            code="unsupported_mode",
        )
    values = np.asarray(image)
    if values.dtype == np.int32 and _tag(image, _TIFF_SAMPLE_FORMAT_TAG) in (None, _TIFF_UNSIGNED):
        # Pillow knows no unsigned numbers of 32 bits; a picture that is no TIFF has none of its tags.
        values = values.view(np.uint32) if _tag(image, _TIFF_BITS_TAG) == 32 else values
    gray, notes = to_eight_bits(values, depth)
    pixels: Pixels = np.repeat(gray[:, :, None], 3, axis=2)
    key = image.info.get("transparency")
    if not isinstance(key, int) or not (transparent := values == key).any():
        return pixels, notes
    pixels[transparent] = background
    return pixels, (*notes, "transparency_composited")


def to_eight_bits(values: AnyArray, depth: Depth) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Return values of any real dtype, whole numbers of up to 16 bits or floats, in 0 to 255, rounded, and notes.

    Raises
    ------
    ImageError
        ``non_finite_pixels``; and with ``type-range`` ``value_range``, for values outside 0..65535, or 0..1 of floats.
    """
    is_float = values.dtype.kind == "f"
    if is_float and not np.isfinite(values).all():
        raise ImageError(
            "the image has pixels that are NaN or infinite; replace them by finite numbers", code="non_finite_pixels"
        )
    if depth == "type-range":
        _check_range(values, 1 if is_float else _SIXTEEN_BIT_MAX)
        scaled = np.rint(values.astype(np.float32) * 255).astype(np.uint8) if is_float else _upper_bytes(values)
        return scaled, narrow_range(int(scaled.min()), int(scaled.max()))
    low, high = (values.min(), values.max()) if depth == "min-max" else np.percentile(values, _PERCENTILES)
    scale = 255 / (float(high) - float(low)) if high > low else 0.0
    # In float64, since 32-bit whole numbers may stand here; row by row, since a picture of them is large.
    rows = [np.rint((row.clip(low, high).astype(np.float64) - float(low)) * scale).astype(np.uint8) for row in values]
    return np.stack(rows), ()


def narrow_range(darkest: int, brightest: int) -> tuple[str, ...]:
    """Return the note that a scaled picture gets when it leaves most of the 256 gray values unused."""
    return ("narrow_range",) if brightest - darkest < _NARROW else ()


def _upper_bytes(values: AnyArray) -> npt.NDArray[np.uint8]:
    # A table costs no wide copy of the picture. 257 = 65535 / 255; adding half of it rounds.
    table = ((np.arange(_SIXTEEN_BIT_MAX + 1) + 128) // 257).astype(np.uint8)
    scaled: npt.NDArray[np.uint8] = table[values.astype(np.uint16)]
    return scaled


def _check_range(values: AnyArray, high: int) -> None:
    found_low, found_high = values.min(), values.max()
    if found_low < 0 or found_high > high:
        raise ImageError(
            f"the image has {values.dtype.name} values from {found_low} to {found_high}; the type range is 0 to {high};"
            " choose the depth min-max or percentile, or scale it to 8 bits first",
            code="value_range",
        )


def is_sixteen_bit_color(image: Image.Image) -> bool:
    """Return whether a file that was opened and not loaded yet holds 16-bit colors, which Pillow would shorten."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in _raw_mode(tile) for tile in getattr(image, "tile", ()))


def ask_for_lower_bytes(image: ImageFile.ImageFile) -> None:
    """Turn the byte order of such a file round, so that Pillow keeps the lower bytes when it loads it."""
    turned = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
    for index, tile in enumerate(image.tile):
        raw = _raw_mode(tile)
        raw = raw[:-1] + turned[raw[-1]]
        image.tile[index] = tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)


def _raw_mode(tile: ImageFile._Tile) -> str:
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


def join_bytes(upper: Image.Image, lower: Image.Image, depth: Depth) -> Image.Image:
    """Return a picture of 16-bit colors, loaded as its upper and its lower bytes, in 8 bits by a depth rule."""
    high, low = np.asarray(upper), np.asarray(lower)
    colors = min(3, high.shape[2])
    joined = high.copy()
    joined[..., :colors], _ = to_eight_bits(high[..., :colors].astype(np.uint16) * 256 + low[..., :colors], depth)
    picture = Image.fromarray(joined)
    picture.info = {key: value for key, value in upper.info.items() if key == "exif"}
    return picture


def exif_orientation(block: object) -> int:
    """Return the orientation, 1 to 8, that an EXIF block states in its first directory; 1 where it states none.

    Only this one number is read, from the first 64 KiB, without recursion; a damaged block counts as none.
    """
    if not isinstance(block, bytes):
        return 1
    data = block[:_EXIF_MAX_BYTES].removeprefix(_EXIF_PREFIX)
    if data[:4] == b"II*\x00":
        return _orientation_in_directory(data, "little")
    if data[:4] == b"MM\x00*":
        return _orientation_in_directory(data, "big")
    return 1


def _orientation_in_directory(data: bytes, order: Literal["little", "big"]) -> int:
    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], order)

    start = number(4, 4)
    for entry in range(start + 2, min(start + 2 + 12 * number(start, 2), len(data) - 11), 12):
        if number(entry, 2) == _EXIF_ORIENTATION_TAG:
            # Exif says SHORT; some writers use LONG.
            size = {_EXIF_SHORT: 2, _EXIF_LONG: 4}.get(number(entry + 2, 2), 0)
            stated = number(entry + 8, size)
            return stated if stated in _UPRIGHT else 1
    return 1


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels as a viewer shows them, for the EXIF orientation they are stored in."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))
