# SPDX-License-Identifier: Apache-2.0
"""Evidence: how far one way of answering agrees with another, on named cases, against a stated bar.

An export holds graphs against their torch model, ``segship tune`` backends against the graphs in ONNX Runtime. Both are
rows of figures, and both stand in the manifest. Arrays in, rows out; no runtime and no torch. What the cases are and
which rows a task has stands in its module `task`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from segship.errors import ComparisonFailed, way

Text = Annotated[str, Field(max_length=4096)]
Label = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
Pairs = Sequence[tuple[NDArray[Any], NDArray[Any]]]
"""(expected, found) arrays."""

EXACT = "fp32"
"""The precision whose bars are for rounding alone."""

FIGURES: dict[str, Literal["at least", "at most", "told"]] = {
    "cosine": "at least",
    "max_abs": "at most",
    "scale": "told",
    "mask_iou_mean": "at least",
    "mask_iou_min": "at least",
    "pixels_equal": "at least",
}
"""Every figure, and how a bar holds it: of tensors the worst cosine, the largest difference as a part of the largest
magnitude, and that magnitude; of masks at image size the IoU; of class maps the part of the pixels that are equal."""

Figures = Annotated[dict[Label, float | None], Field(max_length=16)]
"""By name; None for what is not a finite number."""
Bar = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one graph, or of a whole answer, after one step.

    Attributes
    ----------
    step
        What was compared: a step of an export, or a backend and a precision.
    graph, what
        The graph or graphs, and which of their outputs.
    cases
        How many comparisons the figures are of.
    figures
        By the names of `FIGURES`.
    passed
        Whether each is within the bar.
    """

    step: Text
    graph: Text
    what: Text
    cases: Annotated[int, Field(ge=0)]
    figures: Figures
    passed: bool

    def __str__(self) -> str:
        return f"{self.step}, {self.what}: {describe_figures(self.figures)}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Rows, and the bar that they were held against."""

    bar: Figures
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """One backend in one precision on one machine: whether it answers as the graphs do, and how fast.

    Attributes
    ----------
    timings_ms
        The fastest runs in milliseconds by name: ``load``, and what the task times. Empty where nothing ran.
    timed
        What all of them but ``load`` are the time of, in words.
    problem
        Why nothing ran; None otherwise.
    """

    backend: Label
    version: Text
    precision: Label
    cpu: Text
    threads: Annotated[int, Field(ge=1)]
    timings_ms: Annotated[dict[Label, Annotated[float, Field(gt=0)]], Field(max_length=16)]
    timed: Text
    evidence: Evidence
    passed: bool
    problem: Text | None = None

    @property
    def milliseconds(self) -> float:
        """What backends are compared by; infinite where nothing ran."""
        times = [time for name, time in self.timings_ms.items() if name != "load"]
        return sum(times) if times else math.inf


def tensor_row(step: str, graph: str, what: str, pairs: Pairs, bar: Bar) -> Row:
    """Measure pairs of tensors: the worst cosine, and the largest difference against the scale of each."""
    # numpy's min and max pass a NaN on, Python's may drop it.
    figures = {
        "cosine": float(np.min([_cosine(expected, found) for expected, found in pairs])),
        "max_abs": float(np.max([_relative_difference(expected, found) for expected, found in pairs])),
        "scale": float(np.max([np.abs(expected).max() for expected, _ in pairs])),
    }
    return _row(step, graph, what, len(pairs), figures, bar)


def mask_row(step: str, graph: str, ious: Sequence[float], bar: Bar) -> Row:
    """Hold the IoUs of masks at image size against the bar."""
    figures = {"mask_iou_mean": float(np.mean(ious)), "mask_iou_min": float(np.min(ious))}
    return _row(step, graph, "masks", len(ious), figures, bar)


def class_map_row(step: str, graph: str, pairs: Pairs, bar: Bar) -> Row:
    """Count the pixels of pairs of class maps that agree; the worst pair decides."""
    equal = float(np.min([np.mean(expected == found) for expected, found in pairs]))
    return _row(step, graph, "class_map", len(pairs), {"pixels_equal": equal}, bar)


def _row(step: str, graph: str, what: str, cases: int, figures: dict[str, float], bar: Bar) -> Row:
    passed = all(_is_within(name, value, bar) for name, value in figures.items())
    return Row(step, graph, what, cases, dict(figures), passed)


def _is_within(name: str, value: float, bar: Bar) -> bool:
    # A comparison with NaN is false, and so fails the bar.
    match FIGURES[name]:
        case "at least":
            return value >= bar[name]
        case "at most":
            return value <= bar[name]
    return True


def require_passed(rows: Sequence[Row]) -> None:
    """Raise when a row is past the bar.

    Raises
    ------
    ComparisonFailed
        Naming every row that failed with its figures.
    """
    failed = [str(row) for row in rows if not row.passed]
    if failed:
        raise ComparisonFailed(
            f"the graph differs from its model by more than the bar: {'; '.join(failed)}; nothing was written; "
            f"try another opset or {way('simplify=False', '--no-simplify')}, and report the figures if it stays"
        )


def describe_figures(figures: Mapping[str, float | None]) -> str:
    """Return figures in words."""
    value = {name: math.nan if number is None else number for name, number in figures.items()}
    if "pixels_equal" in value:
        return f"{100 * value['pixels_equal']:.4f} % of the pixels equal"
    if "mask_iou_mean" in value:
        return f"IoU mean {value['mask_iou_mean']:.6f}, min {value['mask_iou_min']:.6f}"
    return f"cosine {value['cosine']:.9f}, max abs {value['max_abs']:.2e} of scale {value['scale']:.3g}"


def _cosine(expected: NDArray[Any], found: NDArray[Any]) -> float:
    a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))


def _relative_difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max()) / scale
