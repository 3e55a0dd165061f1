# SPDX-License-Identifier: Apache-2.0
"""Class maps drawn over their image, with a legend that names the classes and says how much of the picture each has.

The last step of the use road for human eyes. Colours are the data set's. The legend stands beside the picture and hides
nothing of it: below a wide one, right of a tall one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segship.draw import draw_masks
from segship.errors import InputError
from segship.masks.rle import Runs
from segship.semantic.class_map import ClassMap

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

OPACITY = 0.55
"""Of the classes' colours, so that the picture is still seen."""

_BACKGROUND: Colour = (255, 255, 255)
_TEXT: Colour = (32, 32, 32)
_PALE_TEXT: Colour = (96, 96, 96)
_EDGE: Colour = (150, 150, 150)
_BORDER = np.array((255, 255, 255), np.float32)
_BORDER_OPACITY = 0.6
# Text grows with the picture, and stays readable on a small one.
_TEXT_PART = 1 / 64
_SMALLEST_TEXT, _LARGEST_TEXT = 12, 48
UNKNOWN = "no class"
# Towards white above zero, towards black below.
_SHADES = (0.0, 0.3, -0.25, 0.15, -0.12)


class LegendRow(NamedTuple):
    """One line of a legend."""

    colour: Colour
    name: str
    share: str


def draw_class_map(image: Pixels, class_map: ClassMap, *, opacity: float = OPACITY, legend: bool = True) -> Pixels:
    """Return a copy of an image with the colours of its classes over it, borders between them, and a legend.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB; stays as it is.
    class_map
        Of the image's size.
    opacity
        How much of a class's colour is seen, 0 to 1.
    legend
        Add the legend, which makes the picture higher or wider: classes that occur, the largest first, with their
        share of the pixels.

    Returns
    -------
    ndarray
        (H', W', 3) uint8 RGB; the image is its upper left part.

    Raises
    ------
    InputError
        ``bad_overlay``: the image is no such array or has another size, or the opacity is out of range.
    """
    _check(image, class_map, opacity)
    colours = class_map.coloured()
    blended = cv2.addWeighted(image, 1 - opacity, colours, opacity, 0)
    # What has no class stays as it is.
    canvas = np.where((class_map.array < len(class_map.classes))[..., None], blended, image)
    borders = class_borders(class_map.array)
    canvas[borders] = np.rint(canvas[borders] * (1 - _BORDER_OPACITY) + _BORDER * _BORDER_OPACITY)
    return add_legend(canvas, legend_rows(class_map)) if legend else canvas


def draw_labelled_masks(
    image: Pixels, masks: Sequence[Runs], names: Sequence[str], palette: Mapping[str, Colour]
) -> Pixels:
    """Return a copy of an image with masks in the colours of their classes, and a legend that counts them.

    Parameters
    ----------
    image
        (H, W, 3) uint8 RGB; stays as it is.
    masks
        Run lengths of each mask.
    names
        The class of each.
    palette
        Class -> RGB; those that are not in it are gray. Masks of one class differ a little, so that neighbours can be
        told apart.
    """
    colours = [_shade(palette.get(name, _EDGE), index) for index, name in enumerate(names)]
    canvas = draw_masks(image, masks, opacity=OPACITY, colors=colours)
    rows = [
        LegendRow(palette.get(name, _EDGE), name, f"{count} mask" + ("s" if count > 1 else ""))
        for name, count in Counter(names).most_common()
    ]
    return add_legend(canvas, rows)


def _shade(colour: Colour, index: int) -> Colour:
    """Return a colour that is a little lighter or darker, by the place of its mask."""
    change = _SHADES[index % len(_SHADES)]
    red, green, blue = (round(value + (255 - value if change > 0 else value) * change) for value in colour)
    return red, green, blue


def class_borders(array: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return (H, W) bool: pixels whose right or lower neighbour has another class."""
    borders = np.zeros(array.shape, np.bool_)
    borders[:, :-1] |= array[:, :-1] != array[:, 1:]
    borders[:-1] |= array[:-1] != array[1:]
    return borders


def legend_rows(class_map: ClassMap) -> list[LegendRow]:
    """Return a row for every class that occurs, the largest first, and one for what has none."""
    colours = dict(zip(class_map.classes, class_map.palette, strict=True))
    rows = [LegendRow(colours[name], name, percent(share)) for name, share in class_map.shares().items()]
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
    size = int(np.clip(round(max(height, width) * _TEXT_PART), _SMALLEST_TEXT, _LARGEST_TEXT))
    block = _Block(rows, size)
    columns = block.columns_in(width) if width >= height else -(-len(rows) // block.rows_in(height))
    legend = block.draw(columns)
    if width >= height:
        whole = np.full((height + legend.shape[0], max(width, legend.shape[1]), 3), 255, np.uint8)
        whole[height:, : legend.shape[1]] = legend
    else:
        whole = np.full((max(height, legend.shape[0]), width + legend.shape[1], 3), 255, np.uint8)
        whole[: legend.shape[0], width:] = legend
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
        legend = Image.new("RGB", size, _BACKGROUND)
        drawer = ImageDraw.Draw(legend)
        for index, row in enumerate(self._rows):
            column, line = divmod(index, lines)
            self._draw_row(drawer, row, self._gap + column * self._column, self._gap + line * self._line)
        return np.asarray(legend, np.uint8)

    def _draw_row(self, drawer: ImageDraw.ImageDraw, row: LegendRow, x: int, y: int) -> None:
        middle = y + self._line // 2
        top = middle - self._swatch // 2
        drawer.rectangle((x, top, x + self._swatch - 1, top + self._swatch - 1), fill=row.colour, outline=_EDGE)
        x += self._swatch + self._gap
        drawer.text((x, middle), row.name, fill=_TEXT, font=self._font, anchor="lm")
        x += self._names + 2 * self._gap + self._shares
        drawer.text((x, middle), row.share, fill=_PALE_TEXT, font=self._font, anchor="rm")


def _check(image: Pixels, class_map: ClassMap, opacity: float) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise _bad(f"the image has the shape {image.shape} and type {image.dtype}", "(H, W, 3) uint8 RGB")
    if class_map.array.shape != image.shape[:2]:
        raise _bad(f"the class map has the shape {class_map.array.shape}", f"the image's size {image.shape[:2]}")
    if not 0 <= opacity <= 1:
        raise _bad(f"opacity is {opacity}", "a number from 0 to 1")


def _bad(found: str, accepted: str) -> InputError:
    return InputError(f"A class map cannot be drawn: {found}; accepted is {accepted}.", code="bad_overlay")
