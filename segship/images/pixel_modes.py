# SPDX-License-Identifier: Apache-2.0
"""Any Pillow mode to 8-bit RGB, and the eight EXIF orientations; used by `segship.images` alone.

| mode | what happens |
|---|---|
| 1, L, P, RGB, RGBX, YCbCr, HSV | Pillow's own conversion |
| CMYK | Pillow's own; in JPEG the inks are stored inverted, as Adobe writes them, with or without Adobe's marker |
| LA, La, PA, RGBA, RGBa, and a transparent color in 1, L, P, RGB, I;16 | laid over the background color |
| I;16 and its byte orders | 0..65535 scaled linearly to 0..255, rounded |
| I | the same; Pillow's name for 16-bit data in a wider type, so values outside 0..65535 are refused |
| F | 0..1 scaled linearly to 0..255, rounded; values outside are refused, and NaN and infinity too |
| LAB and everything else | refused by name |

16-bit RGB files reach us as 8 bits, because Pillow has no wider color mode: it keeps the upper byte. Color profiles
and gamma are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from segship.arrays import Color, Pixels
from segship.errors import ImageError

_OPAQUE_MODES = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV", "CMYK")
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_BIT_MAX = 65_535

_TIFF_PHOTOMETRIC_TAG = 262
_TIFF_MIN_IS_WHITE = 0

_EXIF_PREFIX = b"Exif\x00\x00"
_EXIF_ORIENTATION_TAG = 0x0112
_EXIF_SHORT = 3
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


def rgb_pixels(image: Image.Image, background: Color) -> tuple[Pixels, bool]:
    """Return a loaded Pillow image as (H, W, 3) uint8 RGB, and whether any of it was transparent."""
    mode = image.mode
    if mode in _SIXTEEN_BIT_MODES or mode in ("I", "F"):
        return _wide_to_rgb(image, background)
    if mode in _ALPHA_MODES or (mode in _OPAQUE_MODES and "transparency" in image.info):
        # Pillow undoes the premultiplication of gray only on the way to LA.
        return _composite((image.convert("LA") if mode == "La" else image).convert("RGBA"), background)
    if mode in _OPAQUE_MODES:
        # Pillow would copy what needs no conversion.
        return np.array(image if mode == "RGB" else image.convert("RGB")), False
    raise ImageError(
        f"the image has the mode {mode}, which has no agreed conversion to RGB here; save it as RGB",
        code="unsupported_mode",
    )


def _composite(rgba: Image.Image, background: Color) -> tuple[Pixels, bool]:
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return np.array(rgba.convert("RGB")), False
    canvas = Image.new("RGB", rgba.size, background)
    canvas.paste(rgba.convert("RGB"), mask=alpha)
    return np.array(canvas), True


def _wide_to_rgb(image: Image.Image, background: Color) -> tuple[Pixels, bool]:
    # Pillow turns "0 is white" round for 8-bit TIFF files but not for wider ones.
    if getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC_TAG) == _TIFF_MIN_IS_WHITE:
        raise ImageError(
            f"the image is a TIFF of mode {image.mode} in which 0 means white; save it with 0 as black",
            code="unsupported_mode",
        )
    values = np.asarray(image)
    gray = _scale_float(values) if image.mode == "F" else _scale_sixteen_bit(values, image.mode)
    pixels: Pixels = np.repeat(gray[:, :, None], 3, axis=2)
    key = image.info.get("transparency")
    if not isinstance(key, int) or not (transparent := values == key).any():
        return pixels, False
    pixels[transparent] = background
    return pixels, True


def _scale_sixteen_bit(values: npt.NDArray[np.generic], mode: str) -> Pixels:
    _check_range(values, 0, _SIXTEEN_BIT_MAX, mode)
    # A table costs no wide copy of the picture. 257 = 65535 / 255; adding half of it rounds.
    table = ((np.arange(_SIXTEEN_BIT_MAX + 1) + 128) // 257).astype(np.uint8)
    scaled: Pixels = table[values.astype(np.uint16)]
    return scaled


def _scale_float(values: npt.NDArray[np.generic]) -> Pixels:
    if not np.isfinite(values).all():
        raise ImageError(
            "the image has pixels that are NaN or infinite; replace them by numbers from 0 to 1",
            code="non_finite_pixels",
        )
    _check_range(values, 0, 1, "F")
    return np.rint(values.astype(np.float32) * 255).astype(np.uint8)


def _check_range(values: npt.NDArray[np.generic], low: int, high: int, mode: str) -> None:
    found_low, found_high = values.min(), values.max()
    if found_low < low or found_high > high:
        raise ImageError(
            f"the image of mode {mode} has values from {found_low} to {found_high}; accepted are {low} to {high}; "
            "scale it to that range, or to 8 bits, first",
            code="value_range",
        )


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
            stated = number(entry + 8, 2) if number(entry + 2, 2) == _EXIF_SHORT else 1
            return stated if stated in _UPRIGHT else 1
    return 1


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels as a viewer shows them, for the EXIF orientation they are stored in."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))
