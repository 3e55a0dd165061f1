# SPDX-License-Identifier: Apache-2.0
"""What a writer takes and what it is: `Result` and `Writer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segship.masks.rle import Runs
    from segship.prompts import ObjectPrompt
    from segship.writers.instances import Source


class Prediction(Protocol):
    """What is read of a prediction; `segship.prediction.MaskPrediction` is one."""

    @property
    def masks(self) -> NDArray[np.bool_] | NDArray[np.float32]:
        """(objects, masks, H, W) bool, or logits of which those above 0 are set."""

    @property
    def iou_predictions(self) -> NDArray[np.float32]:
        """(objects, masks) float32."""

    def mask(self, entry: int, index: int) -> NDArray[np.bool_]:
        """Return one mask (H, W)."""

    def mask_runs(self, entry: int, index: int) -> Runs:
        """Return the run lengths (n,) int64 of one mask."""

    @property
    def low_res_masks(self) -> NDArray[np.float32]:
        """(objects, masks, 4h, 4w) float32 logits."""

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the image, in pixels."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was noticed on the way."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One image with its prompts and its prediction, ready to be written.

    Attributes
    ----------
    stem
        What the names of its files begin with; `segship.writers.names.output_stems` makes safe ones.
    name
        The input's file name, as COCO and JSON repeat it; directories in it are left out.
    pixels
        (H, W, 3) uint8 RGB, upright.
    prediction
        Masks, scores and low-resolution logits of all objects.
    objects
        The prompts of each object, in the order of the prediction.
    notes
        More notes than the prediction has itself.
    """

    stem: str
    name: str
    pixels: NDArray[np.uint8]
    prediction: Prediction
    objects: Sequence[ObjectPrompt] = ()
    notes: tuple[str, ...] = ()

    @property
    def masks(self) -> NDArray[np.bool_]:
        """(objects, masks, H, W) bool, also if the prediction holds logits."""
        masks = self.prediction.masks
        return np.asarray(masks if masks.dtype == np.bool_ else masks > 0, np.bool_)

    @property
    def best_masks(self) -> NDArray[np.intp]:
        """(objects,) the index of the mask with the highest predicted IoU, the first of equals."""
        return np.asarray(self.prediction.iou_predictions.argmax(axis=1))


class Writer(Protocol):
    """A format."""

    @property
    def extension(self) -> str:
        """What the names of its files end with, or the name of its folder; none is the end of another one."""

    @property
    def loses(self) -> str:
        """What the format cannot keep; the table of docs/files.md repeats it."""

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes.

        A name with one ``/`` is a file inside a folder, which is written whole or not at all.
        """
