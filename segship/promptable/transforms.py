# SPDX-License-Identifier: Apache-2.0
"""Image frame to model frame and back: the resize, the normalisation, the coordinates and the masks.

Second step of the use road. In the model frame the image's longer side is ``image_size`` and the rest is padded, right
and bottom. Follows segment_anything/utils/transforms.py ResizeLongestSide and segment_anything/modeling/sam.py
``preprocess`` and ``postprocess_masks``; the tests compare with both. Sizes are (height, width), points are (x, y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segship.arrays import AnyArray, FloatArray, Pixels, Size
from segship.errors import ImageError
from segship.images.resizing import Band, plan_bands, resize_band, work_on_bands
from segship.masks.upscaling import LogitsPatch, upscaler
from segship.spec import Positive, Side

# Below 2**18, above which OpenCV calls its own threads; the parts then stay in the cache as well.
_LOOK_UP_PIXELS = 2**17


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a model wants done to its images; a manifest says it in these words, for readers in any language.

    Attributes
    ----------
    image_size
        Side S of the square model frame, in pixels.
    pixel_mean, pixel_std
        Per channel, red green blue, on the scale 0 to 255.
    color_order, resize, size_rounding, padding
        How `prepare_image` does it.
    """

    image_size: Side
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[Positive, Positive, Positive]
    color_order: Literal["RGB"] = "RGB"
    resize: Literal["longest_side_antialiased_bilinear"] = "longest_side_antialiased_bilinear"
    size_rounding: Literal["floor(side * scale + 0.5)"] = "floor(side * scale + 0.5)"
    padding: Literal["right_bottom_zero_after_normalize"] = "right_bottom_zero_after_normalize"


def resized_size(original_size_hw: Size, image_size: int) -> Size:
    """Return (height, width) of an image once its longer side is ``image_size``.

    Raises
    ------
    ImageError
        ``aspect_ratio`` if the shorter side would come to nothing.
    """
    height, width = original_size_hw
    scale = image_size / max(height, width)
    resized = int(height * scale + 0.5), int(width * scale + 0.5)
    if min(resized) < 1:
        raise ImageError(
            f"an image of {width} x {height} pixels shrinks to {resized[1]} x {resized[0]} when its longer side "
            f"becomes {image_size}; the longer side may be at most {2 * image_size} times the shorter; cut it up",
            code="aspect_ratio",
        )
    return resized


def resize_image(image: Pixels | Image.Image, image_size: int, *, threads: int | None = None) -> Pixels:
    """Return (h, w, 3) uint8 RGB with the longer side ``image_size``, by Pillow's antialiased bilinear.

    Takes (H, W, 3) uint8 RGB, or a Pillow image of mode RGB, which saves a copy. The pixels are the same whatever the
    number of ``threads``, which is that of the usable cores when None.
    """
    picture = _loaded_picture(image)
    size = resized_size((picture.height, picture.width), image_size)
    bands = plan_bands((picture.height, picture.width), size, threads)
    if len(bands) == 1:
        return resize_band(picture, size, bands[0])
    resized = np.empty((*size, 3), np.uint8)

    def resize(band: Band) -> None:
        resized[band.top : band.bottom, band.left : band.right] = resize_band(picture, size, band)

    work_on_bands(resize, bands, threads)
    return resized


def prepare_image(
    image: Pixels | Image.Image,
    preprocessing: Preprocessing,
    *,
    threads: int | None = None,
    out: FloatArray | None = None,
) -> FloatArray:
    """Return the input of ``image_encoder`` for one image.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB, upright, or a Pillow image of mode RGB.
    preprocessing
        Of the model that will take it.
    threads
        How many work on it; all usable cores when None. The result is the same.
    out
        (1, 3, S, S) float32, written and returned, for callers who use one again: memory that the system hands out
        anew for every image can cost more time than all arithmetic on it.

    Returns
    -------
    (1, 3, S, S) float32
        Resized by antialiased bilinear, normalised, then padded right and bottom with zero.

    Raises
    ------
    ImageError
        ``aspect_ratio`` if the shorter side would come to nothing; ``bad_out`` if ``out`` is another array.
    """
    picture, side = _loaded_picture(image), preprocessing.image_size
    size = resized_size((picture.height, picture.width), side)
    frame = np.empty((1, 3, side, side), np.float32) if out is None else _checked_out(out, side)
    planes = frame[0]
    tables = _tables(preprocessing)

    def prepare(band: Band) -> None:
        _look_up(resize_band(picture, size, band), tables, planes, band)
        # Each band clears the padding behind it: the resized picture fills one side of the frame.
        for plane in planes:
            plane[size[0] :, band.left : band.right] = 0
            plane[band.top : band.bottom, size[1] :] = 0

    work_on_bands(prepare, plan_bands((picture.height, picture.width), size, threads), threads)
    return frame


def _checked_out(out: FloatArray, side: int) -> FloatArray:
    expected = (1, 3, side, side)
    if out.shape != expected or out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        found = f"out has the shape {out.shape} and type {out.dtype}"
        raise ImageError(f"{found}; accepted is {expected} float32, contiguous and writeable", code="bad_out")
    return out


def _loaded_picture(image: Pixels | Image.Image) -> Image.Image:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    # Pillow reads files late; two threads must not do it at once.
    picture.load()
    return picture


def _tables(preprocessing: Preprocessing) -> list[FloatArray]:
    """Return for each channel what becomes of the values 0 to 255, (256,) float32 each."""
    values = np.arange(256, dtype=np.float32)
    return [
        (values - np.float32(mean)) / np.float32(std)
        for mean, std in zip(preprocessing.pixel_mean, preprocessing.pixel_std, strict=True)
    ]


def _look_up(pixels: Pixels, tables: Sequence[FloatArray], planes: FloatArray, band: Band) -> None:
    """Write a band's pixels (h, w, 3) normalised into planes (3, S, S): each value looked up where it stands."""
    rows = max(1, _LOOK_UP_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        part = pixels[top : top + rows]
        place = slice(band.top + top, band.top + top + len(part))
        for plane, channel, table in zip(planes, cv2.split(part), tables, strict=True):
            cv2.LUT(channel, table, dst=plane[place, band.left : band.right])


def to_model_frame(points_xy: npt.ArrayLike, original_size: Size, input_size: Size) -> FloatArray:
    """Return points (..., 2), x y pixels of the upright original image, as (..., 2) float32 of the model frame.

    Sizes are those of the image and of its resized copy (`resized_size`). Each axis has its own exact ratio, since the
    resized sides are rounded.
    """
    ratio_xy = np.array([input_size[1] / original_size[1], input_size[0] / original_size[0]])
    # In double precision, as the reference does, and rounded once.
    rescaled: FloatArray = (np.asarray(points_xy, np.float64) * ratio_xy).astype(np.float32)
    return rescaled


def to_image_frame(points_xy: npt.ArrayLike, original_size: Size, input_size: Size) -> FloatArray:
    """Return points of the model frame in the image frame, as (..., 2) float32; undoes `to_model_frame`."""
    # The way back is the way there with the sizes exchanged.
    return to_model_frame(points_xy, input_size, original_size)


def upscale_mask(low_res: FloatArray, *, image_size: int, input_size: Size, original_size: Size) -> FloatArray:
    """Return one low-resolution mask at the size of its image.

    Logits (4h, 4w) float32 over the whole model frame become (H, W) float32 in the image frame; what lies outside
    ``input_size`` is padding, and is cut off. `segship.masks.upscaling` says how.
    """
    return upscaler(len(low_res), image_size, input_size, original_size).enlarge(LogitsPatch(low_res))


# A cell of nothing but one side has no finite logit.
_SUREST = 1e-3


def masks_to_logits(masks: AnyArray, image_size: int, low_res_size: int) -> FloatArray:
    """Return masks (B, H, W), set where above 0, as (B, 1, 4h, 4w) float32 logits; the way back of `upscale_mask`."""
    height, width = resized_size((masks.shape[1], masks.shape[2]), image_size)
    frame = np.zeros((image_size, image_size), np.float32)
    logits = np.empty((len(masks), 1, low_res_size, low_res_size), np.float32)
    for mask, cells in zip(masks, logits, strict=True):
        frame[:height, :width] = cv2.resize(
            (mask > 0).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
        )
        part = cv2.resize(frame, (low_res_size, low_res_size), interpolation=cv2.INTER_AREA)
        part = np.clip(part, _SUREST, 1 - _SUREST)
        cells[0] = np.log(part / (1 - part))
    return logits
