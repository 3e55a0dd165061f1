# SPDX-License-Identifier: Apache-2.0
"""A data set's classes: names and colours by the number that a class map holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORED = 255
"""What maps of classes hold where no class is known; such pixels count for nothing."""
OWN_CLASSES = "own"
"""Name of a table that is none of the known data sets'."""
MOST_CLASSES = IGNORED
"""A class map is uint8, and one of its numbers is `IGNORED`."""


@dataclass(frozen=True, slots=True)
class ClassTable:
    """The classes of a data set.

    Attributes
    ----------
    name
        The data set, such as ``cityscapes``.
    classes
        Name of every class, in the order of a model's logits.
    palette
        Red, green and blue of every class, 0 to 255.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def colour(self, class_map: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Paint a class map (H, W) as an (H, W, 3) picture; numbers without a class are black."""
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(self.palette)] = self.palette
        return colours[class_map]


def read_table(name: str, text: str) -> ClassTable:
    """Read classes written as ``rrggbb class name``, separated by commas."""
    rows = [row.strip().split(maxsplit=1) for row in text.replace("\n", " ").split(",")]
    colours = tuple((int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for code, _ in rows)
    return ClassTable(name, tuple(label for _, label in rows), colours)
