# SPDX-License-Identifier: Apache-2.0
"""The replay workload: what the decoder answers is replaced by ellipses, after the decoder has run for real.

Random weights would fail every filter of everything mode, and published ones are not at hand. So each point of the
grid gets three ellipses around it, with log-uniform radii of 6 to 80 low-resolution pixels, and predicted IoUs of which
30% pass the threshold of 0.88. Both sides of a comparison get the same logits for the same point, and the seconds
spent on drawing them are known, so that they can be taken off.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASKS = 3
RADII = (6.0, 80.0)
"""Of 256 low-resolution pixels."""
IOUS = (0.71, 0.953)
"""Uniform, so that (0.953 - 0.88) / (0.953 - 0.71) = 30% are above 0.88."""
PASSES = 0.88
"""The reference's default threshold."""
STEEPNESS = 20.0
_DRAWN_TOGETHER = 64


class Replay:
    """Ellipses for a square grid of points, and a clock of the time that drawing them takes.

    Parameters
    ----------
    points_per_side
        Of the grid of everything mode.
    input_size
        Height and width of the resized image in the model frame.
    image_size
        Side of the model frame.
    low_res_size
        Side of the decoder's masks.
    """

    def __init__(self, points_per_side: int, input_size: tuple[int, int], image_size: int, low_res_size: int) -> None:
        self.seconds = 0.0
        self.points = 0
        # Objects that were upscaled and masks that were made, of a side that says so.
        self.made: tuple[int, int] | None = None
        self._per_side = points_per_side
        self._input_wh = np.array(input_size[::-1], np.float64)
        self._pixels_per_cell = image_size / low_res_size
        self._low_res_size = low_res_size
        rng = np.random.default_rng(0)
        scale = low_res_size / 256
        radii, ious = [], []
        for begin in range(0, points_per_side**2, _DRAWN_TOGETHER):
            count = min(_DRAWN_TOGETHER, points_per_side**2 - begin)
            radii.append(scale * np.exp(rng.uniform(*np.log(RADII), (count, MASKS, 2))))
            ious.append(rng.uniform(*IOUS, (count, MASKS)))
        self._radii = np.concatenate(radii).astype(np.float32)
        self._ious = np.concatenate(ious).astype(np.float32)

    def restart(self) -> None:
        """Begin another run: no time spent, no points asked."""
        self.seconds, self.points, self.made = 0.0, 0, None

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Add the seconds of a block to those that are taken off."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started

    def count_made(self, objects: int, masks: int) -> None:
        """Remember how many objects were upscaled in a call, and how many masks were made."""
        before = self.made or (0, 0)
        self.made = (before[0] + objects, before[1] + masks)

    def passing_part(self) -> float:
        """Return the part of all masks whose predicted IoU is above the default threshold."""
        return float((self._ious > np.float32(PASSES)).mean())

    def answer(self, point_coords: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return predicted IoUs (N, 3) and logits (N, 3, 4h, 4w) at points (N, 2) of the model frame."""
        started = time.perf_counter()
        columns, rows = np.floor(np.asarray(point_coords, np.float64) / self._input_wh * self._per_side).astype(int).T
        index = rows * self._per_side + columns
        side = self._low_res_size
        logits = np.empty((len(index), MASKS, side, side), np.float32)
        places = np.arange(side, dtype=np.float32)
        for row, (which, point) in enumerate(zip(index, np.asarray(point_coords, np.float32), strict=True)):
            x, y = self._centre(which, point)
            for mask, (wide, high) in enumerate(self._radii[which]):
                target = logits[row, mask]
                np.add(((places - y) / high)[:, None] ** 2, ((places - x) / wide)[None] ** 2, out=target)
                np.subtract(1, target, out=target)
                np.clip(target, -1, 1, out=target)
                target *= np.float32(STEEPNESS * min(wide, high) / self._pixels_per_cell)
        self.points += len(index)
        self.seconds += time.perf_counter() - started
        return self._ious[index], logits

    def _centre(self, index: int, point: NDArray[np.float32]) -> tuple[float, float]:
        """Return the middle of a point's ellipses in low-resolution pixels: that of the grid, whoever rounds how."""
        row, column = divmod(int(index), self._per_side)
        middle = (np.array([column, row]) + 0.5) / self._per_side * self._input_wh
        assert np.abs(middle - point).max() < 1.0, "a point that is none of the grid"
        x, y = (middle / self._pixels_per_cell).astype(np.float32)
        return float(x), float(y)
