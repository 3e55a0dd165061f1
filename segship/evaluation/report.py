# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, as percentages with two decimals, which is how the field writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segship.datasets.class_table import ClassTable
from segship.datasets.confusion import ConfusionMatrix, Scores
from segship.datasets.folders import FailedSample


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The score of a model, or of written class maps, on a split of a data set.

    Attributes
    ----------
    table
        Classes of the data set.
    matrix
        All counts.
    samples
        Samples of the split.
    failed
        Those that could not be used; they count for nothing.
    identity
        What was scored on what: digest of the model, data set, split, options, ...
    resumed
        Samples that an earlier run had done already.
    seconds
        Time of this run.
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
            "failed": [asdict(failure) for failure in self.failed],
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
