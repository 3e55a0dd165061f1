# SPDX-License-Identifier: Apache-2.0
"""A data set's classes: names and colors by the number that a class map holds."""

from __future__ import annotations

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, Len

from segship.arrays import Color, Pixels
from segship.errors import InputError
from segship.files import read_bytes

IGNORED = 255
"""What maps of classes hold where no class is known; such pixels count for nothing."""
OWN_CLASSES = "own"
"""Name of a table that is none of the known data sets'."""
MOST_CLASSES = IGNORED
"""A class map is uint8, and one of its numbers is `IGNORED`."""
LONGEST_NAME = 128
GOLDEN_STEP = 0.6180339887498949
"""Steps of the golden ratio around a circle of hues never meet again, and neighbours lie far apart."""
_MAX_FILE_BYTES = 1 << 20
_VALUES = (0.9, 0.9, 0.6, 0.75)

ClassName = Annotated[str, Len(1, LONGEST_NAME)]
Byte = Annotated[int, Interval(ge=0, le=255)]


@dataclass(frozen=True, slots=True)
class ClassTable:
    """The classes of a data set.

    Attributes
    ----------
    name
        The data set, such as ``cityscapes``.
    classes
        Name of every class, in the order of a model's logits; no two are alike.
    palette
        Red, green and blue of every class, 0 to 255.
    """

    name: Annotated[str, Len(1, 64)]
    classes: Annotated[tuple[ClassName, ...], Len(1, MOST_CLASSES)]
    palette: Annotated[tuple[tuple[Byte, Byte, Byte], ...], Len(1, MOST_CLASSES)]

    def __post_init__(self) -> None:
        # Areas, legends and categories are found by these names.
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            message = f"the class {twice!r} stands twice in {self.name}; give every class a name of its own"
            raise InputError(message, code="bad_classes")

    def paint(self, class_map: Pixels) -> Pixels:
        """Paint a class map (H, W) as an (H, W, 3) picture; numbers without a class are black."""
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(self.palette)] = self.palette
        return colors[class_map]


def read_table(name: str, text: str) -> ClassTable:
    """Read classes written as ``rrggbb class name``, separated by commas."""
    rows = [row.strip().split(maxsplit=1) for row in text.replace("\n", " ").split(",")]
    colors = tuple((int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for code, _ in rows)
    return ClassTable(name, tuple(label for _, label in rows), colors)


_FORMS = '["road", "tree"] or {"classes": ["road", "tree"], "palette": [[128, 64, 128], [0, 128, 0]]}'


def make_palette(count: int) -> tuple[Color, ...]:
    """Return so many colors that differ well.

    Examples
    --------
    >>> make_palette(2)
    ((229, 68, 68), (68, 115, 229))
    """
    colors = (colorsys.hsv_to_rgb(index * GOLDEN_STEP % 1.0, 0.7, _VALUES[index % 4]) for index in range(count))
    return tuple((int(red * 255), int(green * 255), int(blue * 255)) for red, green, blue in colors)


def read_class_file(path: Path) -> ClassTable:
    """Read a JSON file of classes: a list of names, or an object with ``classes`` and ``palette``.

    Any other is refused as ``bad_classes``, with what is accepted.
    """
    try:
        document: Any = json.loads(read_bytes(path, limit=_MAX_FILE_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"it is no JSON ({error})") from error
    names = document.get("classes") if isinstance(document, dict) else document
    palette = document.get("palette") if isinstance(document, dict) else None
    if not isinstance(names, list) or not 0 < len(names) <= MOST_CLASSES:
        raise _bad(path, f"it holds no list of 1 to {MOST_CLASSES} names")
    for name in names:
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise _bad(path, f"{str(name)[:60]!r} is no name of 1 to {LONGEST_NAME} printable characters")
    if len(set(names)) != len(names):
        raise _bad(path, f"{next(name for name in names if names.count(name) > 1)[:60]!r} stands twice")
    colors = make_palette(len(names)) if palette is None else _colors(path, palette, names)
    return ClassTable(OWN_CLASSES, tuple(names), colors)


def _colors(path: Path, palette: Any, names: list[str]) -> tuple[Color, ...]:
    if not isinstance(palette, list) or len(palette) != len(names):
        count = len(palette) if isinstance(palette, list) else "no"
        raise _bad(path, f"it has {len(names)} classes and {count} colors")
    for row in palette:
        numbers = row if isinstance(row, list) and len(row) == 3 else []
        if not numbers or not all(type(number) is int and 0 <= number <= 255 for number in numbers):
            raise _bad(path, f"{str(row)[:60]} is no color of three numbers from 0 to 255")
    return tuple((row[0], row[1], row[2]) for row in palette)


def _bad(path: Path, problem: str) -> InputError:
    return InputError(f"the classes of {path} cannot be used: {problem}; accepted is {_FORMS}", code="bad_classes")
