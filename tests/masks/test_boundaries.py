# SPDX-License-Identifier: Apache-2.0
"""Boundaries and their F score against distances of every pixel to every other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segship.errors import InputError
from segship.masks import scores as boundaries
from segship.masks.scores import boundary_f_score, mask_boundary

pairs = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: st.tuples(*[arrays(np.bool_, size)] * 2))
# Some of them distances between pixels: 1, the roots of 2 and of 5, 5 (3 and 4), and some between those.
reaches = st.sampled_from([0, 0.5, 1, 2**0.5, 1.9, 5**0.5, 3, 5])


def slow_boundary(mask: np.ndarray) -> np.ndarray:
    """Every set pixel with a neighbour that is not set, or none."""
    points = set(map(tuple, np.argwhere(mask).tolist()))
    edge = [(y, x) for y, x in points if not {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} <= points]
    return np.array(sorted(edge)).reshape(-1, 2)


def slow_score(first: np.ndarray, second: np.ndarray, reach: float) -> float:
    one, other = slow_boundary(first), slow_boundary(second)
    if not len(one) or not len(other):
        return float(len(one) == len(other))
    is_near = ((one[:, None] - other) ** 2).sum(axis=-1) <= reach * reach
    precision, recall = is_near.any(axis=1).mean(), is_near.any(axis=0).mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


@given(pairs)
def test_boundary_is_that_of_the_neighbours(masks: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.argwhere(mask_boundary(masks[0])).tolist() == slow_boundary(masks[0]).tolist()


@given(pairs, reaches)
def test_score_is_that_of_all_distances(masks: tuple[np.ndarray, np.ndarray], reach: float) -> None:
    assert boundary_f_score(*masks, tolerance_px=reach) == pytest.approx(slow_score(*masks, reach))


@given(pairs, reaches)
def test_measured_and_grown_distances_agree(masks: tuple[np.ndarray, np.ndarray], reach: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundaries, "_SMALL_REACH", -1)
        measured = boundary_f_score(*masks, tolerance_px=reach)
    assert measured == boundary_f_score(*masks, tolerance_px=reach)


@given(pairs, reaches)
def test_order_of_the_masks_does_not_matter(masks: tuple[np.ndarray, np.ndarray], reach: float) -> None:
    assert boundary_f_score(*masks, tolerance_px=reach) == boundary_f_score(*masks[::-1], tolerance_px=reach)


def test_long_distances_are_exact() -> None:
    first, second = np.zeros((2, 60, 60), bool)
    first[5, 5] = second[35, 45] = True
    assert boundary_f_score(first, second, tolerance_px=50) == 1.0
    assert boundary_f_score(first, second, tolerance_px=49.999) == 0.0


def test_empty_masks_agree_with_empty_masks_only() -> None:
    empty, full = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    assert boundary_f_score(empty, empty) == 1.0
    assert boundary_f_score(empty, full) == boundary_f_score(full, empty) == 0.0
    assert boundary_f_score(full, full) == 1.0


def test_bad_input_is_refused_by_name() -> None:
    mask = np.zeros((4, 5), bool)
    with pytest.raises(InputError, match=r"shapes \(4, 5\) and \(5, 4\); give one size"):
        boundary_f_score(mask, mask.T)
    with pytest.raises(InputError, match="tolerance_px is -1"):
        boundary_f_score(mask, mask, tolerance_px=-1)
    with pytest.raises(InputError, match="second has the type float64"):
        boundary_f_score(mask, mask.astype(float))
