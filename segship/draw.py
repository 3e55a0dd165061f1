# SPDX-License-Identifier: Apache-2.0
"""Masks and prompts drawn over their image, looking as people know it from Segment Anything.

`draw_overlay` shows prompts and what came of them, `draw_masks` every mask of a picture, each in a color of its own.

Last step of the use road for human eyes. Prompts: blue masks, green stars for foreground points and red ones for
background points, both with a white edge, green boxes. Colors, opacity and proportions follow the helpers of SAM's
notebooks/predictor_example.ipynb (show_mask, show_points, show_box), whose figure shows an image about 558 points
wide.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segship.arrays import AnyArray, BoolArray, Color, Pixels, Points
from segship.datasets.classes import GOLDEN_STEP
from segship.errors import InputError
from segship.masks.rle import Runs, mask_to_runs, paint_order, runs_to_crop
from segship.semantic.class_map import ClassMap
from segship.spec import LABEL_FOREGROUND

if TYPE_CHECKING:
    from segship.promptable.prompts import ObjectPrompt

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

EVERYTHING_OPACITY = 0.45
"""Of the masks of a whole picture, so that the picture is still seen."""

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
    masks: BoolArray | Sequence[Runs],
    *,
    objects: Sequence[ObjectPrompt] = (),
    points: npt.ArrayLike | None = None,
    labels: npt.ArrayLike | None = None,
    boxes: npt.ArrayLike | None = None,
    contour: bool = False,
) -> Pixels:
    """Return a copy of an image with masks, boxes and points drawn on it, in this order.

    The largest mask is drawn first, so that small ones stay visible, and of equal areas the earlier one.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB; stays as it is.
    masks
        (objects, H, W) or (H, W) bool, or run lengths of each mask (`segship.masks.rle`), one mask an object; each
        object has its own color, see `PALETTE`.
    objects
        Prompts whose points and boxes are drawn.
    points, labels
        More points, (n, 2) x y pixels in the image frame, and (n,) 1 foreground or 0 background; all foreground when
        labels are left out.
    boxes
        More boxes, (n, 4) or (4,) x0 y0 x1 y1 pixels in the image frame.
    contour
        Draw a thin white line along the border of every mask.

    Raises
    ------
    InputError
        ``bad_overlay``: an array has another shape or type.
    """
    size = (image.shape[0], image.shape[1])
    runs = _gather_runs(image, masks)
    all_points, all_labels = _gather_points(objects, points, labels)
    canvas = np.array(image, order="C")
    for index in paint_order(runs):
        crop, corner_xy = runs_to_crop(runs[index], size)
        if crop.size:
            inside = crop.view(np.uint8)
            # Only the part of the image around the mask is touched.
            _blend_crop(canvas, inside, corner_xy, _blending_table(PALETTE[index % len(PALETTE)], MASK_OPACITY))
            if contour:
                _draw_border(canvas, inside, corner_xy, WHITE)
    for box in _gather_boxes(objects, boxes):
        _draw_box(canvas, box)
    for point, label in zip(all_points, all_labels, strict=True):
        _draw_star(canvas, point, GREEN if label == LABEL_FOREGROUND else RED)
    return canvas


def draw_masks(
    image: Pixels,
    masks: BoolArray | Sequence[Runs],
    *,
    seed: int = 0,
    opacity: float = EVERYTHING_OPACITY,
    borders: bool = True,
    colors: Sequence[Color] | None = None,
) -> Pixels:
    """Return a copy of an image with all masks of it drawn on it, the largest first, so that small ones stay visible.

    Of equal areas the earlier mask is drawn first. Follows show_anns of SAM's
    notebooks/automatic_mask_generator_example.ipynb; the colors are lighter and the same in every run.

    Parameters
    ----------
    image, masks
        As `draw_overlay` takes them; run lengths need no memory for pixels.
    seed
        Of the colors, see `seeded_colors`; mask i has color i whatever the order of drawing.
    opacity
        How much of a mask's color is seen, from 0 to 1.
    borders
        Draw the border of every mask, in its color at full strength.
    colors
        RGB of every mask, instead of seeded ones.

    Raises
    ------
    InputError
        ``bad_overlay``: an array has another shape or type, or the opacity is out of range.
    """
    runs = _gather_runs(image, masks)
    _check_opacity(opacity)
    canvas = np.array(image, order="C")
    colors = seeded_colors(len(runs), seed) if colors is None else colors
    if len(colors) != len(runs):
        raise _bad(f"there are {len(colors)} colors and {len(runs)} masks", "one color a mask")
    size = (image.shape[0], image.shape[1])
    for index in paint_order(runs):
        crop, (x0, y0) = runs_to_crop(runs[index], size)
        if crop.size:
            inside = crop.view(np.uint8)
            _blend_crop(canvas, inside, (x0, y0), _blending_table(colors[index], opacity))
            if borders:
                _draw_border(canvas, inside, (x0, y0), colors[index])
    return canvas


def seeded_colors(count: int, seed: int = 0) -> list[Color]:
    """Return RGB colors that differ well and depend on the seed and their place alone, not on their number.

    Examples
    --------
    >>> seeded_colors(2) == seeded_colors(5)[:2]
    True
    """
    random = np.random.default_rng(seed)
    first = random.random()
    saturations_values = random.random((count, 2)) * (0.4, 0.3) + (0.6, 0.7)
    hues = (first + GOLDEN_STEP * np.arange(count)) % 1.0
    return [_from_hsv(hue, *pair) for hue, pair in zip(hues.tolist(), saturations_values.tolist(), strict=True)]


def _from_hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return (red, green, blue)


def _gather_runs(image: Pixels, masks: BoolArray | Sequence[Runs]) -> list[Runs]:
    """Return masks as run lengths that fill the image exactly."""
    _check_image(image)
    if isinstance(masks, np.ndarray) and masks.ndim != 1:
        return [mask_to_runs(mask) for mask in _check_masks(image, masks)]
    runs = [np.asarray(one) for one in masks]
    pixels = image.shape[0] * image.shape[1]
    for index, one in enumerate(runs):
        if one.ndim != 1 or one.dtype.kind not in "iu" or (one < 0).any() or int(one.sum()) != pixels:
            found = f"mask {index} has the shape {one.shape}, type {one.dtype} and sum {one.sum()}"
            raise _bad(found, f"run lengths (n,) of whole numbers with the sum {pixels}, the pixels of the image")
    return runs


def _check_image(image: Pixels) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise _bad(f"the image has the shape {image.shape} and type {image.dtype}", "(H, W, 3) uint8 RGB")


def _check_opacity(opacity: float) -> None:
    if not 0 <= opacity <= 1:
        raise _bad(f"opacity is {opacity}", "a number from 0 to 1")


def _check_masks(image: Pixels, masks: BoolArray) -> BoolArray:
    found = f"the masks have the shape {masks.shape} and type {masks.dtype}"
    if masks.ndim == 2:
        masks = masks[None]
    height, width = image.shape[:2]
    if masks.ndim != 3 or masks.shape[1:] != (height, width) or masks.dtype != np.bool_:
        raise _bad(found, f"({height}, {width}) or (objects, {height}, {width}) bool, the size of the image")
    return masks


def _gather_points(
    objects: Sequence[ObjectPrompt], points: npt.ArrayLike | None, labels: npt.ArrayLike | None
) -> tuple[Points, list[int]]:
    more = _read_rows([] if points is None else points, 2, "points")
    more_labels = np.full(len(more), LABEL_FOREGROUND) if labels is None else np.asarray(labels).ravel()
    if len(more) != len(more_labels):
        raise _bad(f"there are {len(more)} points and {len(more_labels)} labels", "one label a point")
    every = np.concatenate([*(entry.points for entry in objects), more]).astype(np.float64)
    return every, [int(label) for row in (*(entry.labels for entry in objects), more_labels) for label in row]


def _gather_boxes(objects: Sequence[ObjectPrompt], boxes: npt.ArrayLike | None) -> Points:
    given = [entry.box.reshape(1, 4) for entry in objects if entry.box is not None]
    return np.concatenate([*given, _read_rows([] if boxes is None else boxes, 4, "boxes")]).astype(np.float64)


def _read_rows(given: npt.ArrayLike, columns: int, name: str) -> Points:
    array: AnyArray = np.asarray(given)
    if not array.size:
        return np.zeros((0, columns))
    if array.ndim not in (1, 2) or array.shape[-1] != columns or array.dtype.kind not in "iuf":
        raise _bad(f"{name} has the shape {array.shape} and type {array.dtype}", f"(n, {columns}) numbers")
    if not (np.abs(array) < _LARGEST_COORDINATE).all():
        raise _bad(f"{name} holds a number that is not finite or far outside", "pixels inside the image")
    return array.reshape(-1, columns).astype(np.float64)


def _blend_crop(canvas: Pixels, inside: Pixels, corner_xy: tuple[int, int], table: Pixels) -> None:
    (x0, y0), (height, width) = corner_xy, inside.shape
    part = np.ascontiguousarray(canvas[y0 : y0 + height, x0 : x0 + width])
    canvas[y0 : y0 + height, x0 : x0 + width] = cv2.copyTo(cv2.LUT(part, table), inside, part)


def _draw_border(canvas: Pixels, inside: Pixels, corner_xy: tuple[int, int], color: Color) -> None:
    outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    thickness = max(1, round(max(canvas.shape[:2]) * _BOX_LINE / 3))
    cv2.drawContours(canvas, outlines, -1, color, thickness, cv2.LINE_AA, offset=corner_xy)


def _blending_table(color: Color, opacity: float) -> Pixels:
    """Return (256, 1, 3) uint8: for every value of a pixel the one it has under the mask."""
    values = np.arange(256)[:, None] * (1 - opacity) + np.array(color) * opacity
    return np.floor(values + 0.5).astype(np.uint8)[:, None]


def _draw_box(canvas: Pixels, box_xyxy: Points) -> None:
    # On whole pixels, so that the line is sharp: the first and the last pixel inside the half-open box.
    x0, y0, x1, y1 = (round(side) for side in box_xyxy.tolist())
    thickness = max(1, round(max(canvas.shape[:2]) * _BOX_LINE))
    cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), GREEN, thickness, cv2.LINE_8)


def _draw_star(canvas: Pixels, point_xy: Points, color: Color) -> None:
    radius = max(_SMALLEST_STAR_RADIUS, max(canvas.shape[:2]) * _STAR_RADIUS)
    # Ten corners, outer and inner by turns, the first pointing up.
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, radius, radius * _STAR_WAIST)
    corners = point_xy + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outline = [_fixed_point(corners)]
    # The edge first, so that it takes nothing from the color of a small star.
    cv2.polylines(canvas, outline, True, WHITE, max(2, round(radius / 4)), cv2.LINE_AA, _SHIFT)
    cv2.fillPoly(canvas, outline, color, cv2.LINE_AA, _SHIFT)


def _fixed_point(points_xy: Points) -> NDArray[np.int32]:
    # The image frame has 0 at the edge of the first pixel, OpenCV has it at its centre.
    fixed: NDArray[np.int32] = np.rint((points_xy - 0.5) * 2.0**_SHIFT).astype(np.int32)
    return fixed


def _bad(found: str, accepted: str) -> InputError:
    return InputError(f"an overlay cannot be drawn: {found}; accepted is {accepted}", code="bad_overlay")


CLASS_OPACITY = 0.55
"""Of the classes' colors, so that the picture is still seen."""

_TEXT: Color = (32, 32, 32)
_PALE_TEXT: Color = (96, 96, 96)
_EDGE: Color = (150, 150, 150)
_BORDER_OPACITY = 0.6
# Text grows with the picture, and stays readable on a small one.
_TEXT_PART = 1 / 64
_SMALLEST_TEXT, _LARGEST_TEXT = 12, 48
UNKNOWN = "no class"
# Towards white above zero, towards black below.
_SHADES = (0.0, 0.3, -0.25, 0.15, -0.12)


class LegendRow(NamedTuple):
    """One line of a legend."""

    color: Color
    name: str
    share: str


def draw_class_map(
    image: Pixels, class_map: ClassMap, *, opacity: float = CLASS_OPACITY, legend: bool = True
) -> Pixels:
    """Return a copy of an image with the colors of its classes over it, borders between them, and a legend.

    With the legend it is larger than the image, which is its upper left part.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB; stays as it is.
    class_map
        Of the image's size.
    opacity
        How much of a class's color is seen, 0 to 1.
    legend
        Add the classes that occur, the largest first, with their share of the pixels.

    Raises
    ------
    InputError
        ``bad_overlay``: the image is no such array or has another size, or the opacity is out of range.
    """
    _check_image(image)
    _check_opacity(opacity)
    if class_map.array.shape != image.shape[:2]:
        raise _bad(f"the class map has the shape {class_map.array.shape}", f"the image's size {image.shape[:2]}")
    colors = class_map.coloured()
    blended = cv2.addWeighted(image, 1 - opacity, colors, opacity, 0)
    # What has no class stays as it is.
    canvas = np.where((class_map.array < len(class_map.classes))[..., None], blended, image)
    borders = class_borders(class_map.array)
    canvas[borders] = np.rint(canvas[borders] * (1 - _BORDER_OPACITY) + np.array(WHITE) * _BORDER_OPACITY)
    return add_legend(canvas, legend_rows(class_map)) if legend else canvas


def draw_labelled_masks(
    image: Pixels, masks: Sequence[Runs], names: Sequence[str], palette: Mapping[str, Color]
) -> Pixels:
    """Return a copy of an image with masks in the colors of their classes, and a legend that counts them.

    ``masks`` are run lengths, ``names`` their classes; those that ``palette`` does not have are gray. Masks
    of one class differ a little, so that neighbours can be told apart.
    """
    colors = [_shade(palette.get(name, _EDGE), index) for index, name in enumerate(names)]
    canvas = draw_masks(image, masks, opacity=CLASS_OPACITY, colors=colors)
    rows = [
        LegendRow(palette.get(name, _EDGE), name, f"{count} mask" + ("s" if count > 1 else ""))
        for name, count in Counter(names).most_common()
    ]
    return add_legend(canvas, rows)


def _shade(color: Color, index: int) -> Color:
    """Return a color that is a little lighter or darker, by the place of its mask."""
    change = _SHADES[index % len(_SHADES)]
    red, green, blue = (round(value + (255 - value if change > 0 else value) * change) for value in color)
    return red, green, blue


def class_borders(array: Pixels) -> BoolArray:
    """Return (H, W) bool: pixels whose right or lower neighbour has another class."""
    borders = np.zeros(array.shape, np.bool_)
    borders[:, :-1] |= array[:, :-1] != array[:, 1:]
    borders[:-1] |= array[:-1] != array[1:]
    return borders


def legend_rows(class_map: ClassMap) -> list[LegendRow]:
    """Return a row for every class that occurs, the largest first, and one for what has none."""
    colors = dict(zip(class_map.classes, class_map.palette, strict=True))
    rows = [LegendRow(colors[name], name, percent(share)) for name, share in class_map.shares().items()]
    nothing = 1 - sum(class_map.areas().values()) / class_map.array.size
    return [*rows, LegendRow((0, 0, 0), UNKNOWN, percent(nothing))] if nothing > 0 else rows


def percent(share: float) -> str:
    """Return a part as percent for people.

    Examples
    --------
    >>> percent(0.3141), percent(0.0001)
    ('31.4 %', '< 0.1 %')
    """
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def add_legend(picture: Pixels, rows: Sequence[LegendRow]) -> Pixels:
    """Return the picture (H, W, 3) with a legend below it, or beside it if it is higher than wide."""
    if not rows:
        return picture
    height, width = picture.shape[:2]
    is_below = width >= height
    block = _Block(rows, int(np.clip(round(max(height, width) * _TEXT_PART), _SMALLEST_TEXT, _LARGEST_TEXT)))
    legend = block.draw(block.columns_in(width) if is_below else -(-len(rows) // block.rows_in(height)))
    top, left = (height, 0) if is_below else (0, width)
    bottom, right = top + legend.shape[0], left + legend.shape[1]
    whole = np.full((max(height, bottom), max(width, right), 3), 255, np.uint8)
    whole[top:bottom, left:right] = legend
    whole[:height, :width] = picture
    return whole


class _Block:
    """Rows of a legend in columns of one width, filled column by column."""

    def __init__(self, rows: Sequence[LegendRow], text_size: int) -> None:
        self._rows = rows
        self._font = ImageFont.load_default(size=text_size)
        self._line, self._swatch, self._gap = round(text_size * 1.6), round(text_size * 1.1), round(text_size * 0.6)
        self._names = max(self._length(row.name) for row in rows)
        self._shares = max(self._length(row.share) for row in rows)
        # Swatch, name, share, and the space to the next column.
        self._column = self._swatch + self._gap + self._names + 2 * self._gap + self._shares + 3 * self._gap

    def _length(self, text: str) -> int:
        return int(np.ceil(self._font.getlength(text)))

    def columns_in(self, width: int) -> int:
        return int(np.clip((width - self._gap) // self._column, 1, len(self._rows)))

    def rows_in(self, height: int) -> int:
        return max(1, (height - 2 * self._gap) // self._line)

    def draw(self, columns: int) -> Pixels:
        lines = -(-len(self._rows) // columns)
        size = (self._gap + columns * self._column, 2 * self._gap + lines * self._line)
        legend = Image.new("RGB", size, WHITE)
        drawer = ImageDraw.Draw(legend)
        for index, row in enumerate(self._rows):
            column, line = divmod(index, lines)
            self._draw_row(drawer, row, self._gap + column * self._column, self._gap + line * self._line)
        return np.asarray(legend, np.uint8)

    def _draw_row(self, drawer: ImageDraw.ImageDraw, row: LegendRow, x: int, y: int) -> None:
        middle = y + self._line // 2
        top = middle - self._swatch // 2
        drawer.rectangle((x, top, x + self._swatch - 1, top + self._swatch - 1), fill=row.color, outline=_EDGE)
        x += self._swatch + self._gap
        drawer.text((x, middle), row.name, fill=_TEXT, font=self._font, anchor="lm")
        x += self._names + 2 * self._gap + self._shares
        drawer.text((x, middle), row.share, fill=_PALE_TEXT, font=self._font, anchor="rm")
