# SPDX-License-Identifier: Apache-2.0
"""The answer of a semantic model: which class every pixel belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segship.datasets.class_table import IGNORED, ClassTable


@dataclass(frozen=True, slots=True, eq=False)
class ClassMap:
    """Classes of all pixels of one image.

    Attributes
    ----------
    array
        (H, W) uint8 in the image frame: the number of each pixel's class, 255 for none.
    table
        Names and colours of the classes.
    notes
        What was noticed while reading the image or on the way to the map.
    """

    array: NDArray[np.uint8]
    table: ClassTable
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of every class."""
        return self.table.classes

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """Red, green and blue of every class."""
        return self.table.palette

    def areas(self) -> dict[str, int]:
        """Return the pixels of every class that occurs, largest first."""
        counts = np.bincount(self.array.ravel(), minlength=256)[: len(self.classes)]
        order = np.argsort(-counts, kind="stable")
        return {self.classes[index]: int(counts[index]) for index in order.tolist() if counts[index]}

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return (H, W) bool: the pixels of a class, by its name."""
        return np.asarray(self.array == self.classes.index(name))

    def coloured(self) -> NDArray[np.uint8]:
        """Return the map as an (H, W, 3) picture in the data set's colours."""
        return self.table.colour(self.array)

    @property
    def coverage(self) -> float:
        """The part of all pixels that have a class."""
        return float((self.array != IGNORED).mean())
