# SPDX-License-Identifier: Apache-2.0
"""Scores of class maps: a confusion matrix, and what the field reads from it.

Counts are added picture by picture, so that no picture has to stay in memory and a run that stopped can go on from its
counts. Formulas are those of mmsegmentation's ``mIoU`` evaluation, over the sums of all pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.arrays import IntArray, Pixels
from segship.datasets.classes import IGNORED, ClassTable
from segship.datasets.folders import FailedSample
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

    def __init__(self, classes: int, counts: IntArray | None = None) -> None:
        if not 1 <= classes < IGNORED:
            raise InputError(f"{classes} classes cannot be scored; accepted are 1 to {IGNORED - 1}", code="bad_classes")
        shape = (classes, classes + 1)
        if counts is not None and (counts.shape != shape or counts.dtype != np.int64 or (counts < 0).any()):
            message = (
                f"counts have shape {counts.shape} and dtype {counts.dtype}; expected {shape} int64, none negative"
            )
            raise InputError(message, code="bad_counts")
        self.classes = classes
        self.counts: IntArray = np.zeros(shape, np.int64) if counts is None else counts.copy()

    def add(self, prediction: Pixels, truth: Pixels) -> None:
        """Count one picture: two class maps (H, W) uint8; pixels whose truth is 255 count for nothing.

        Maps that differ in shape or are no uint8, and a truth of an unknown class, are refused as ``bad_class_map``.
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


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The score of a model, or of written class maps, on a split of a data set.

    Attributes
    ----------
    samples, failed
        How many samples were asked for, and those that could not be used and count for nothing.
    identity
        What was scored on what: digest of the model, data set, split, options, ...
    resumed, seconds
        Samples that an earlier run had done already, and the time of this one.
    file
        Where the JSON document was written, if it was.
    """

    table: ClassTable
    matrix: ConfusionMatrix
    samples: int
    failed: tuple[FailedSample, ...]
    identity: Mapping[str, str]
    resumed: int
    seconds: float
    file: Path | None = None

    @property
    def scores(self) -> Scores:
        """Figures from 0 to 1."""
        return self.matrix.scores()

    @property
    def is_complete(self) -> bool:
        """Whether every sample of the split was scored: neither limited nor failed."""
        return not self.failed and "limited" not in self.identity

    def rows(self) -> list[tuple[str, float | None, float | None]]:
        """Return name, IoU and accuracy of every class, in percent; None where there is no figure."""
        scores = self.scores
        figures = zip(scores.iou.tolist(), scores.accuracy.tolist(), strict=True)
        return [
            (name, percent(iou), percent(accuracy))
            for name, (iou, accuracy) in zip(self.table.classes, figures, strict=True)
        ]

    def summary(self) -> dict[str, float | None]:
        """Return aAcc, mIoU and mAcc in percent."""
        scores = self.scores
        return {
            "aAcc": percent(scores.pixel_accuracy),
            "mIoU": percent(scores.mean_iou),
            "mAcc": percent(scores.mean_accuracy),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the counts, for `json.dumps`."""
        return {
            **self.identity,
            **self.summary(),
            "classes": [{"name": name, "IoU": iou, "Acc": accuracy} for name, iou, accuracy in self.rows()],
            "samples": self.samples,
            "scored": self.samples - len(self.failed),
            "complete": self.is_complete,
            "failed": [failure.to_dict() for failure in self.failed],
            "resumed": self.resumed,
            "seconds": round(self.seconds, 1),
        }

    def encode(self) -> bytes:
        """Return a JSON document of everything; ``confusion`` has a row for each true class, last column none."""
        head = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
        rows = ",\n".join(f"    {json.dumps(row)}" for row in self.matrix.counts.tolist())
        return f'{head},\n  "confusion": [\n{rows}\n  ]\n}}\n'.encode()


def percent(part: float) -> float | None:
    """Return a figure from 0 to 1 in percent with two decimals; None for NaN.

    Examples
    --------
    >>> percent(0.76543), percent(float("nan"))
    (76.54, None)
    """
    return None if math.isnan(part) else round(100 * part, 2)
