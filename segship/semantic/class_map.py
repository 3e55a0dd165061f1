# SPDX-License-Identifier: Apache-2.0
"""The answer of a semantic model: which class every pixel belongs to, as an array with the names and colors for it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from segship.arrays import BoolArray, Color, FloatArray, Pixels
from segship.datasets.classes import IGNORED, ClassTable
from segship.errors import InputError
from segship.images import FileAsRead, ImageSource

# In what a notebook shows.
_CLASSES_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class ClassMap:
    """Classes of all pixels of one image.

    Attributes
    ----------
    array
        (H, W) uint8 in the image frame: the number of each pixel's class, 255 for none.
    table
        Names and colors of the classes.
    notes
        What was noticed while reading the image or on the way to the map.
    probability
        (H, W) float32, 0 to 1: how probable the model finds each pixel's class; None unless it was asked for.
    image_path
        The file that the image was read from, if it was one; `save` draws over it.
    """

    array: Pixels
    table: ClassTable
    notes: tuple[str, ...] = ()
    probability: FloatArray | None = None
    image_path: str | Path | FileAsRead | None = None

    def save(
        self,
        path: str | Path,
        *,
        format: str | None = None,
        image: ImageSource | None = None,
        overwrite: bool = False,
    ) -> list[Path]:
        """Write the map to a file, in the format that its name or ``format`` says.

        ``x.jpg`` is the overlay with its legend, ``x.png`` the classes with their colors as a palette, ``x.json`` what
        occurs; the whole endings of docs/semantic.md say more, such as ``x.label_ids.png``, and ``format`` is a key of
        ``WRITERS["class maps"]``. The other parameters, what comes back and what is raised are those of
        `segship.MaskPrediction.save`.
        """
        # By name: writers stand on class maps.
        writers = import_module("segship.writers")
        return list(writers.save(self, path, format=format, image=image, overwrite=overwrite))

    def __repr__(self) -> str:
        height, width = self.array.shape
        shares = ", ".join(f"{name} {share:.0%}" for name, share in [*self.shares().items()][:_CLASSES_SHOWN])
        return f"ClassMap(size=({height}, {width}), largest: {shares or 'none'}, notes={self.notes})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Name of every class."""
        return self.table.classes

    @property
    def palette(self) -> tuple[Color, ...]:
        """Red, green and blue of every class."""
        return self.table.palette

    def areas(self) -> dict[str, int]:
        """Return the pixels of every class that occurs, largest first."""
        counts = np.bincount(self.array.ravel(), minlength=256)[: len(self.classes)]
        order = np.argsort(-counts, kind="stable")
        return {self.classes[index]: int(counts[index]) for index in order.tolist() if counts[index]}

    def shares(self) -> dict[str, float]:
        """Return which part of all pixels every class that occurs has, 0 to 1, largest first."""
        return {name: count / self.array.size for name, count in self.areas().items()}

    def mask(self, name: str) -> BoolArray:
        """Return (H, W) bool: the pixels of a class, by its name.

        Raises
        ------
        InputError
            ``unknown_class``.
        """
        if name not in self.classes:
            message = f"{name!r} is no class of {self.table.name}; accepted are {', '.join(self.classes)}"
            raise InputError(message, code="unknown_class")
        return np.asarray(self.array == self.classes.index(name))

    def coloured(self) -> Pixels:
        """Return the map as an (H, W, 3) picture in the data set's colors."""
        return self.table.paint(self.array)

    @property
    def coverage(self) -> float:
        """The part of all pixels that have a class."""
        return float((self.array != IGNORED).mean())
