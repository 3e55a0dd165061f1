# SPDX-License-Identifier: Apache-2.0
"""As much as there is time for: a coarse grid first, then finer ones where no mask is yet, and a stop in time.

What is asked first is spread over the whole image, so a short time gives the large things everywhere rather than all
things in one corner. Without a deadline nothing of this is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segship.amg.crops import CropWork, Work
from segship.amg.grids import Crop, Points, coarse_to_fine
from segship.records import MaskRecord

if TYPE_CHECKING:
    from segship.predictor import Predictor

# A step may take longer than the longest before it: other work on the machine, larger masks.
_CAUTION = 1.5
# Time to make a found mask as large as the image: about 1 ns a pixel, twice that where outlines are ragged.
_SECONDS_PER_PIXEL = 2e-9


class Deadline:
    """A point in time, and whether anything was left out because of it.

    Parameters
    ----------
    at
        As `time.monotonic` counts.
    """

    def __init__(self, at: float) -> None:
        self.reached = False
        self._at = at

    def allows(self, seconds: float) -> bool:
        """Return whether so much more work ends in time; if not, that is remembered."""
        in_time = time.monotonic() + seconds <= self._at
        self.reached |= not in_time
        return in_time


def ask_coarse_to_fine(
    predictor: Predictor,
    pixels: NDArray[np.uint8],
    crops: Sequence[Crop],
    grids: Sequence[Points],
    work: Work,
    deadline: Deadline,
) -> list[MaskRecord]:
    """Return records of the crops, the whole image first, as far as the time goes.

    The first portion of the coarsest grid is asked in any case, so a picture is never left without an answer for lack
    of time alone.
    """
    finished: list[CropWork] = []
    slowest_encode = 0.0
    for crop in crops:
        if finished and not deadline.allows(_CAUTION * slowest_encode + _time_to_finish(finished, work)):
            break
        if finished and not _is_open(finished[0], crop, grids[crop.layer]):
            continue
        began = time.monotonic()
        crop_work = CropWork(predictor, pixels, crop, work)
        slowest_encode = max(slowest_encode, time.monotonic() - began)
        finished.append(crop_work)
        _ask_portions(crop_work, grids[crop.layer], finished, work, deadline)
    return [record for crop_work in finished for record in crop_work.records()]


def _ask_portions(
    crop_work: CropWork, grid: Points, finished: Sequence[CropWork], work: Work, deadline: Deadline
) -> None:
    points = crop_work.scale(grid)
    slowest = 0.0
    for portion in coarse_to_fine(grid):
        waiting = portion
        while len(waiting):
            waiting = waiting[~crop_work.covered(points[waiting])]
            if not len(waiting):
                break
            is_first = len(finished) == 1 and slowest == 0.0
            if not is_first and not deadline.allows(_CAUTION * slowest + _time_to_finish(finished, work)):
                return
            began = time.monotonic()
            crop_work.ask(points[waiting[: work.points_per_call]])
            waiting = waiting[work.points_per_call :]
            slowest = max(slowest, time.monotonic() - began)


def _time_to_finish(finished: Sequence[CropWork], work: Work) -> float:
    height, width = work.size_hw
    return _SECONDS_PER_PIXEL * height * width * sum(len(crop_work.candidates) for crop_work in finished)


def _is_open(whole: CropWork, crop: Crop, grid: Points) -> bool:
    """Return whether a point of the crop lies where the look at the whole image has found nothing."""
    left, top, _, _ = crop.box_xyxy
    points = grid * np.array(crop.size_hw[::-1]) + np.array([left, top])
    return bool((~whole.covered(points)).any())
