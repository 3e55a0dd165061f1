# SPDX-License-Identifier: Apache-2.0
"""Masks and prompts drawn over their image, looking as people know it from Segment Anything.

Last step of the use road for human eyes: blue masks, green stars for foreground points and red ones for background
points, both with a white edge, green boxes. Colours, opacity and proportions follow the helpers of SAM's
notebooks/predictor_example.ipynb (show_mask, show_points, show_box), whose figure shows an image about 558 points
wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from segship.errors import InputError
from segship.masks.boxes import masks_to_boxes
from segship.spec import LABEL_FOREGROUND

if TYPE_CHECKING:
    from segship.prompts import ObjectPrompt

Pixels = NDArray[np.uint8]
Color = tuple[int, int, int]

SAM_BLUE: Color = (30, 144, 255)
MASK_OPACITY = 0.6
PALETTE: tuple[Color, ...] = (
    SAM_BLUE,
    (255, 140, 0),
    (186, 85, 211),
    (255, 215, 0),
    (0, 206, 209),
    (255, 105, 180),
    (154, 205, 50),
    (205, 92, 92),
)
"""RGB of the first, second, ... object; begins again after the last."""
GREEN: Color = (0, 128, 0)
RED: Color = (255, 0, 0)
WHITE: Color = (255, 255, 255)

# Of the longer side: a star is sqrt(375) points across and a box line 2 points wide on an image of 558 points.
_STAR_RADIUS = 0.5 * 375**0.5 / 558
_BOX_LINE = 2 / 558
_SMALLEST_STAR_RADIUS = 4.0
# Inner to outer radius of a star whose edges run on into one another.
_STAR_WAIST = 0.381966
# OpenCV takes fixed-point coordinates; 4 bits are a sixteenth of a pixel.
_SHIFT = 4
# OpenCV's coordinates are 32 bits wide; no prompt inside an image comes near this.
_LARGEST_COORDINATE = 1e6


def draw_overlay(
    image: Pixels,
    masks: NDArray[np.bool_],
    *,
    objects: Sequence[ObjectPrompt] = (),
    points: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    boxes: npt.ArrayLike | None = None,
    contour: bool = False,
) -> Pixels:
    """Return a copy of an image with masks, boxes and points drawn on it, in this order.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB; stays as it is.
    masks
        (objects, H, W) or (H, W) bool, one mask an object; each object has its own colour, see `PALETTE`.
    objects
        Prompts whose points and boxes are drawn.
    points, labels
        More points, (n, 2) x y pixels in the image frame, and (n,) 1 foreground or 0 background; all foreground when
        labels are left out.
    boxes
        More boxes, (n, 4) or (4,) x0 y0 x1 y1 pixels in the image frame.
    contour
        Draw a thin white line along the border of every mask.

    Returns
    -------
    NDArray
        (H, W, 3) uint8 RGB.

    Raises
    ------
    InputError
        ``bad_overlay``: an array has another shape or type.
    """
    masks = _check_masks(image, masks)
    all_points, all_labels = _gather_points(objects, points, labels)
    canvas = np.array(image, order="C")
    for index, mask in enumerate(masks):
        _blend_mask(canvas, mask, PALETTE[index % len(PALETTE)], contour)
    for box in _gather_boxes(objects, boxes):
        _draw_box(canvas, box)
    for point, label in zip(all_points, all_labels, strict=True):
        _draw_star(canvas, point, GREEN if label == LABEL_FOREGROUND else RED)
    return canvas


def _check_masks(image: Pixels, masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise _bad(f"the image has the shape {image.shape} and type {image.dtype}", "(H, W, 3) uint8 RGB")
    found = f"the masks have the shape {masks.shape} and type {masks.dtype}"
    if masks.ndim == 2:
        masks = masks[None]
    height, width = image.shape[:2]
    if masks.ndim != 3 or masks.shape[1:] != (height, width) or masks.dtype != np.bool_:
        raise _bad(found, f"({height}, {width}) or (objects, {height}, {width}) bool, the size of the image")
    return masks


def _gather_points(
    objects: Sequence[ObjectPrompt], points: npt.ArrayLike | None, labels: npt.ArrayLike | None
) -> tuple[NDArray[np.float64], list[int]]:
    more = _read_rows([] if points is None else points, 2, "points")
    more_labels = np.full(len(more), LABEL_FOREGROUND) if labels is None else np.asarray(labels).ravel()
    if len(more) != len(more_labels):
        raise _bad(f"there are {len(more)} points and {len(more_labels)} labels", "one label a point")
    every = np.concatenate([*(entry.points for entry in objects), more]).astype(np.float64)
    return every, [int(label) for row in (*(entry.labels for entry in objects), more_labels) for label in row]


def _gather_boxes(objects: Sequence[ObjectPrompt], boxes: npt.ArrayLike | None) -> NDArray[np.float64]:
    given = [entry.box.reshape(1, 4) for entry in objects if entry.box is not None]
    return np.concatenate([*given, _read_rows([] if boxes is None else boxes, 4, "boxes")]).astype(np.float64)


def _read_rows(given: npt.ArrayLike, columns: int, name: str) -> NDArray[np.float64]:
    array: NDArray[Any] = np.asarray(given)
    if not array.size:
        return np.zeros((0, columns))
    if array.ndim not in (1, 2) or array.shape[-1] != columns or array.dtype.kind not in "iuf":
        raise _bad(f"{name} has the shape {array.shape} and type {array.dtype}", f"(n, {columns}) numbers")
    if not (np.abs(array) < _LARGEST_COORDINATE).all():
        raise _bad(f"{name} holds a number that is not finite or far outside", "pixels inside the image")
    return array.reshape(-1, columns).astype(np.float64)


def _blend_mask(canvas: Pixels, mask: NDArray[np.bool_], color: Color, contour: bool) -> None:
    x0, y0, x1, y1 = masks_to_boxes(mask)
    if x0 == x1:
        return
    # Only the part of the image around the mask is touched.
    part = np.ascontiguousarray(canvas[y0:y1, x0:x1])
    inside = np.ascontiguousarray(mask[y0:y1, x0:x1]).view(np.uint8)
    blended = cv2.LUT(part, _blending_table(color))
    canvas[y0:y1, x0:x1] = cv2.copyTo(blended, inside, part)
    if contour:
        outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        thickness = max(1, round(max(canvas.shape[:2]) * _BOX_LINE / 3))
        cv2.drawContours(canvas, outlines, -1, WHITE, thickness, cv2.LINE_AA, offset=(int(x0), int(y0)))


def _blending_table(color: Color) -> Pixels:
    """Return (256, 1, 3) uint8: for every value of a pixel the one it has under the mask."""
    values = np.arange(256)[:, None] * (1 - MASK_OPACITY) + np.array(color) * MASK_OPACITY
    return np.floor(values + 0.5).astype(np.uint8)[:, None]


def _draw_box(canvas: Pixels, box_xyxy: NDArray[np.float64]) -> None:
    # On whole pixels, so that the line is sharp: the first and the last pixel inside the half-open box.
    x0, y0, x1, y1 = (round(side) for side in box_xyxy.tolist())
    thickness = max(1, round(max(canvas.shape[:2]) * _BOX_LINE))
    cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), GREEN, thickness, cv2.LINE_8)


def _draw_star(canvas: Pixels, point_xy: NDArray[np.float64], color: Color) -> None:
    radius = max(_SMALLEST_STAR_RADIUS, max(canvas.shape[:2]) * _STAR_RADIUS)
    # Ten corners, outer and inner by turns, the first pointing up.
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, radius, radius * _STAR_WAIST)
    corners = point_xy + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outline = [_fixed_point(corners)]
    # The edge first, so that it takes nothing from the colour of a small star.
    cv2.polylines(canvas, outline, True, WHITE, max(2, round(radius / 4)), cv2.LINE_AA, _SHIFT)
    cv2.fillPoly(canvas, outline, color, cv2.LINE_AA, _SHIFT)


def _fixed_point(points_xy: NDArray[np.float64]) -> NDArray[np.int32]:
    # The image frame has 0 at the edge of the first pixel, OpenCV has it at its centre.
    fixed: NDArray[np.int32] = np.rint((points_xy - 0.5) * 2.0**_SHIFT).astype(np.int32)
    return fixed


def _bad(found: str, accepted: str) -> InputError:
    return InputError(f"An overlay cannot be drawn: {found}; accepted is {accepted}.", code="bad_overlay")
