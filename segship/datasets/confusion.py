# SPDX-License-Identifier: Apache-2.0
"""Scores of class maps: a confusion matrix, and what the field reads from it.

Counts are added picture by picture, so that no picture has to stay in memory and a run that stopped can go on from its
counts. Formulas are those of mmsegmentation's ``mIoU`` evaluation, over the sums of all pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segship.datasets.class_table import IGNORED
from segship.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Figures from 0 to 1; NaN where a class occurs neither in truth nor in prediction.

    Attributes
    ----------
    iou
        (K,) float64, of every class: intersection over union.
    accuracy
        (K,) float64: the part of the class's true pixels that was found; NaN for a class without any.
    mean_iou, mean_accuracy
        Means over the classes that have a figure.
    pixel_accuracy
        The part of all pixels with a truth that is right.
    """

    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float


class ConfusionMatrix:
    """Pixels by true class (rows) and predicted class (columns); the last column counts predictions of no class.

    Parameters
    ----------
    classes
        Number K of classes.
    counts
        (K, K + 1) int64 counts to go on from.

    Examples
    --------
    >>> import numpy as np
    >>> matrix = ConfusionMatrix(2)
    >>> matrix.add(np.array([[0, 1]], np.uint8), truth=np.array([[0, 255]], np.uint8))
    >>> matrix.scores().pixel_accuracy
    1.0
    """

    def __init__(self, classes: int, counts: NDArray[np.int64] | None = None) -> None:
        if not 1 <= classes < IGNORED:
            raise InputError(f"{classes} classes cannot be scored; accepted are 1 to {IGNORED - 1}", code="bad_classes")
        shape = (classes, classes + 1)
        if counts is not None and (counts.shape != shape or counts.dtype != np.int64 or (counts < 0).any()):
            message = (
                f"counts have shape {counts.shape} and dtype {counts.dtype}; expected {shape} int64, none negative"
            )
            raise InputError(message, code="bad_counts")
        self.classes = classes
        self.counts: NDArray[np.int64] = np.zeros(shape, np.int64) if counts is None else counts.copy()

    def add(self, prediction: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count one picture: two class maps (H, W) uint8; pixels whose truth is 255 count for nothing.

        Raises
        ------
        InputError
            ``bad_class_map`` when the maps differ in shape, are no uint8, or the truth holds an unknown class.
        """
        for name, array in (("prediction", prediction), ("truth", truth)):
            if array.dtype != np.uint8 or array.ndim != 2:
                message = f"the {name} is {array.dtype} of shape {array.shape}; expected an (H, W) uint8 class map"
                raise InputError(message, code="bad_class_map")
        if prediction.shape != truth.shape:
            message = f"the prediction is {prediction.shape} and the truth {truth.shape}; both must be of one size"
            raise InputError(message, code="bad_class_map")
        known = truth != IGNORED
        rows, columns = truth[known], prediction[known]
        if rows.size and rows.max() >= self.classes:
            message = f"the truth holds {rows.max()}; accepted are 0 to {self.classes - 1}, and {IGNORED} for none"
            raise InputError(message, code="bad_class_map")
        places = rows.astype(np.int64) * (self.classes + 1) + np.minimum(columns, self.classes)
        self.counts += np.bincount(places, minlength=self.counts.size).reshape(self.counts.shape)

    def scores(self) -> Scores:
        """Return the figures of everything counted so far."""
        right = np.diagonal(self.counts).astype(np.float64)
        true = self.counts.sum(axis=1).astype(np.float64)
        predicted = self.counts[:, : self.classes].sum(axis=0).astype(np.float64)
        iou = _divide(right, true + predicted - right)
        accuracy = _divide(right, true)
        return Scores(
            iou=iou,
            accuracy=accuracy,
            mean_iou=_mean(iou),
            mean_accuracy=_mean(accuracy),
            pixel_accuracy=float(_divide(right.sum(keepdims=True), true.sum(keepdims=True))[0]),
        )


def _divide(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(figures: NDArray[np.float64]) -> float:
    known = figures[~np.isnan(figures)]
    return float(known.mean()) if known.size else float("nan")
