# SPDX-License-Identifier: Apache-2.0
"""Measure how far two sets of results agree, and hold the differences against a bar.

Arrays in, rows of a manifest out; no runtime and no torch. `segship.ship.verify_promptable` and
`segship.ship.verify_semantic` hold graphs against the torch models with it, `segship.tune` backends against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.bundle.measured import AnyStep, ComparisonBar, ComparisonStep, SemanticBar, SemanticStep
from segship.errors import ComparisonFailed


def tensor_step(
    step: str,
    graph: str,
    tensor: str,
    pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    bar: ComparisonBar,
) -> ComparisonStep:
    """Measure pairs of (reference, candidate) tensors: the worst cosine and the largest difference against the scale.

    The scale of a tensor is the largest magnitude of its reference.
    """
    # numpy's min and max pass a NaN on, Python's may drop it; a comparison with NaN is false and so fails the bar.
    cosine = float(np.min([_cosine(expected, actual) for expected, actual in pairs]))
    scale = float(np.max([np.abs(expected).max() for expected, _ in pairs]))
    relative = float(np.max([_relative_difference(expected, actual) for expected, actual in pairs]))
    passed = bool(cosine >= bar.cosine and relative <= bar.max_abs)
    return ComparisonStep(
        step=step, graph=graph, what=tensor, cases=len(pairs), cosine=cosine, max_abs=relative, scale=scale,
        mask_iou_mean=None, mask_iou_min=None, passed=passed,
    )  # fmt: skip


def mask_step(step: str, ious: Sequence[float], bar: ComparisonBar) -> ComparisonStep:
    """Hold the IoUs of masks at image size against the bar."""
    mean, lowest = float(np.mean(ious)), float(np.min(ious))
    return ComparisonStep(
        step=step, graph="image_encoder, mask_decoder", what="masks", cases=len(ious), cosine=None, max_abs=None,
        scale=None, mask_iou_mean=mean, mask_iou_min=lowest,
        passed=bool(mean >= bar.mask_iou_mean and lowest >= bar.mask_iou_min),
    )  # fmt: skip


def logits_step(step: str, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], bar: SemanticBar) -> SemanticStep:
    """Measure logits of a semantic graph as `tensor_step` does."""
    row = tensor_step(step, "semantic", "logits", pairs, ComparisonBar(cosine=bar.cosine, max_abs=bar.max_abs))
    return SemanticStep(
        step=step, graph=row.graph, what=row.what, cases=row.cases, cosine=row.cosine, max_abs=row.max_abs,
        scale=row.scale, pixels_equal=None, passed=row.passed,
    )  # fmt: skip


def class_map_step(step: str, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]], bar: SemanticBar) -> SemanticStep:
    """Count the pixels of pairs of class maps that agree, the worst pair deciding."""
    equal = float(np.min([np.mean(expected == actual) for expected, actual in pairs]))
    return SemanticStep(
        step=step, graph="semantic", what="class_map", cases=len(pairs), cosine=None, max_abs=None, scale=None,
        pixels_equal=equal, passed=bool(equal >= bar.pixels_equal),
    )  # fmt: skip


def require_passed(steps: Sequence[AnyStep]) -> None:
    """Raise when a row is past the bar.

    Raises
    ------
    ComparisonFailed
        Naming every row that failed with its figures.
    """
    failed = [row for row in steps if not row.passed]
    if failed:
        rows = "; ".join(describe_step(row) for row in failed)
        raise ComparisonFailed(
            f"the graph differs from its model by more than the bar: {rows}. Nothing was written. "
            "Try another opset or --no-simplify, and report the figures if it stays"
        )


def describe_step(row: AnyStep) -> str:
    """Return one row as a short sentence."""
    if isinstance(row, SemanticStep):
        if row.pixels_equal is not None:
            return f"{row.step}, {row.what}: {100 * row.pixels_equal:.4f} % of the pixels equal"
    elif row.mask_iou_mean is not None:
        return f"{row.step}, {row.what}: IoU mean {row.mask_iou_mean:.6f}, min {row.mask_iou_min:.6f}"
    return f"{row.step}, {row.what}: cosine {row.cosine:.9f}, max abs {row.max_abs:.2e} of scale {row.scale:.3g}"


def _cosine(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    a, b = expected.astype(np.float64).ravel(), actual.astype(np.float64).ravel()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))


def _relative_difference(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    scale = float(np.abs(expected).max()) or 1.0
    return float(np.abs(expected.astype(np.float64) - actual.astype(np.float64)).max()) / scale
