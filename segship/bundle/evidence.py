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
Label = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
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
    "mean_abs": "at most",
    "relative_l2": "at most",
    "largest": "told",
    "headroom": "told",
    "not_finite": "at most",
    "mask_iou_p5": "at least",
    "mask_iou_low": "at most",
    "boundary_f": "at least",
    "iou_error": "at most",
    "flips": "at most",
    "map_iou": "at least",
}
"""Every figure, and how a bar holds it, if it names it.

Of tensors the worst cosine, the largest and the mean difference as parts of the largest magnitude, and that magnitude;
the norm of all differences as a part of the norm; the largest magnitude that was found, how many times it fits below
65504, where float16 ends, and how many values are not finite. Of masks at image size the IoU: mean, least, 5th
percentile, the part that lies below 0.9; the boundary F score at 2 pixels, the mean difference of predicted IoUs, and
how many masks became empty or full, or ceased to be. Of class maps the part of the pixels that are equal, and the mean
IoU of the classes.
"""

FP16_END = 65504.0
LOW_IOU = 0.9

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


@dataclass(frozen=True, slots=True)
class Choice:
    """What `segship.tune.tune_budget` took of all that it tried on one machine, for ``auto`` to follow there.

    Attributes
    ----------
    budget
        What was asked for: least figures by their names, ``memory_bytes`` and ``latency_ms`` at most.
    figures
        What was measured of it, by the same names, and ``bytes`` of its artifacts.
    tried
        How many there were.
    """

    backend: Label
    version: Text
    precision: Label
    cpu: Text
    threads: Annotated[int, Field(ge=1)]
    budget: Figures
    figures: Figures
    tried: Annotated[int, Field(ge=1)]


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
    return _row(step, graph, "masks", len(ious), mask_figures(ious), bar)


def class_map_row(step: str, graph: str, pairs: Pairs, bar: Bar) -> Row:
    """Count the pixels of pairs of class maps that agree; the worst pair decides."""
    equal = float(np.min([np.mean(expected == found) for expected, found in pairs]))
    return _row(step, graph, "class_map", len(pairs), {"pixels_equal": equal}, bar)


class TensorErrors:
    """Pairs of tensors, counted one after the other, so that only one has to be in memory."""

    def __init__(self) -> None:
        self.pairs, self.values, self.not_finite = 0, 0, 0
        self.cosine, self.max_abs, self.scale, self.largest = 1.0, 0.0, 0.0, 0.0
        self._differences, self._squares, self._norm = 0.0, 0.0, 0.0

    def add(self, expected: NDArray[Any], found: NDArray[Any]) -> None:
        """Count a pair of one shape."""
        finite = np.isfinite(found)
        self.pairs, self.values = self.pairs + 1, self.values + found.size
        self.not_finite += found.size - int(np.count_nonzero(finite))
        # numpy's min and max pass a NaN on, Python's may drop it.
        self.cosine = float(np.minimum(self.cosine, _cosine(expected, found)))
        self.max_abs = float(np.maximum(self.max_abs, _relative_difference(expected, found)))
        self.scale = max(self.scale, float(np.abs(expected).max(initial=0)))
        self.largest = max(self.largest, float(np.abs(found, where=finite, out=np.zeros_like(found)).max(initial=0)))
        differences = expected.astype(np.float64) - found
        self._differences += float(np.abs(differences).sum())
        self._squares += float(np.square(differences).sum())
        self._norm += float(np.square(expected, dtype=np.float64).sum())

    def figures(self) -> dict[str, float]:
        """Return what was counted, by the names of `FIGURES`."""
        return {
            "cosine": self.cosine,
            "max_abs": self.max_abs,
            "scale": self.scale,
            "mean_abs": self._differences / max(1, self.values) / (self.scale or 1.0),
            "relative_l2": math.sqrt(self._squares / self._norm) if self._norm else math.sqrt(self._squares),
            "largest": self.largest,
            "headroom": FP16_END / self.largest if self.largest else math.inf,
            "not_finite": float(self.not_finite),
        }


def mask_figures(ious: Sequence[float]) -> dict[str, float]:
    """Return what stands for many IoUs of masks, by the names of `FIGURES`."""
    return {
        "mask_iou_mean": float(np.mean(ious)),
        "mask_iou_p5": float(np.percentile(ious, 5)),
        "mask_iou_min": float(np.min(ious)),
        "mask_iou_low": float(np.mean(np.asarray(ious) < LOW_IOU)),
    }


def figures_row(step: str, graph: str, what: str, cases: int, figures: Mapping[str, float], bar: Bar) -> Row:
    """Hold figures that were counted against the bar."""
    return _row(step, graph, what, cases, dict(figures), bar)


def _row(step: str, graph: str, what: str, cases: int, figures: dict[str, float], bar: Bar) -> Row:
    passed = all(_is_within(name, value, bar) for name, value in figures.items())
    return Row(step, graph, what, cases, dict(figures), passed)


def _is_within(name: str, value: float, bar: Bar) -> bool:
    if name not in bar:
        return True
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
        fifth = f", 5th percentile {value['mask_iou_p5']:.6f}" if "mask_iou_p5" in value else ""
        return f"IoU mean {value['mask_iou_mean']:.6f}{fifth}, min {value['mask_iou_min']:.6f}"
    return f"cosine {value['cosine']:.9f}, max abs {value['max_abs']:.2e} of scale {value['scale']:.3g}"


def _cosine(expected: NDArray[Any], found: NDArray[Any]) -> float:
    a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))


def _relative_difference(expected: NDArray[Any], found: NDArray[Any]) -> float:
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max()) / scale
