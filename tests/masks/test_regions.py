# SPDX-License-Identifier: Apache-2.0
"""Small regions against the reference, pixel for pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segship.errors import InputError
from segship.masks.regions import clean_runs, remove_small_regions
from segship.masks.rle import mask_to_runs
from tests.oracle import reference

modes = st.sampled_from(["holes", "islands"])


@st.composite
def windowed_masks(draw: st.DrawFn) -> np.ndarray:
    """Masks that are set in a window alone, as masks of objects are."""
    window = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(np.bool_, size)))
    margins = draw(st.tuples(*[st.integers(0, 5)] * 4))
    return np.pad(window, (margins[:2], margins[2:]))


@given(windowed_masks(), st.sampled_from([0, 1, 2, 3.5, 8, 30, 400]), modes)
def test_small_regions_go_exactly_as_in_the_reference(mask: np.ndarray, threshold: float, mode: Any) -> None:
    reference()
    from segment_anything.utils.amg import remove_small_regions as oracle

    before = mask.copy()
    expected, expected_change = oracle(mask, threshold, mode)
    cleaned, is_changed = remove_small_regions(mask, threshold, mode)
    assert cleaned.dtype == np.bool_ and is_changed is expected_change
    assert np.array_equal(cleaned, expected)
    assert np.array_equal(mask, before)
    runs, is_changed = clean_runs(mask_to_runs(mask), mask.shape, threshold, mode)
    assert is_changed is expected_change and np.array_equal(runs, mask_to_runs(expected))


@pytest.mark.parametrize("mode", ["holes", "islands"])
@pytest.mark.parametrize("density", [0.3, 0.6])
def test_many_regions_go_as_in_the_reference(mode: Any, density: float) -> None:
    reference()
    from segment_anything.utils.amg import remove_small_regions as oracle

    mask = np.zeros((300, 401), bool)
    mask[33:270, 7:395] = np.random.default_rng(0).random((237, 388)) < density
    for threshold in (4, 40, 10_000, 1_000_000):
        expected, _ = oracle(mask, threshold, mode)
        assert np.array_equal(remove_small_regions(mask, threshold, mode)[0], expected)


def test_of_small_islands_only_the_largest_stays() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1, 1] = mask[4, 4:7] = mask[8, 0:2] = True
    cleaned, is_changed = remove_small_regions(mask, 100, "islands")
    assert is_changed and cleaned.sum() == 3 and cleaned[4, 4:7].all()


def test_holes_at_the_edge_of_the_image_are_holes_too() -> None:
    mask = np.ones((6, 6), bool)
    mask[0, 0] = mask[3, 3] = mask[5, 4:] = False
    assert remove_small_regions(mask, 2, "holes")[0].sum() == 34
    assert remove_small_regions(mask, 3, "holes")[0].all()


@pytest.mark.parametrize("mode", ["holes", "islands"])
def test_nothing_to_do_gives_back_the_mask_itself(mode: Any) -> None:
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    for threshold in (0, 9):
        cleaned, is_changed = remove_small_regions(mask, threshold, mode)
        assert cleaned is mask and not is_changed
        runs = mask_to_runs(mask)
        assert clean_runs(runs, (5, 5), threshold, mode)[0] is runs


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_masks_without_pixels_have_no_regions(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, bool)
    assert remove_small_regions(mask, 10, "holes") == (mask, False)
    assert clean_runs(mask_to_runs(mask), shape, 10, "holes")[0].tolist() == [0]


def test_areas_are_counted_beyond_16_bits() -> None:
    mask = np.zeros((3, 40_000), bool)
    mask[1, 1] = True
    assert remove_small_regions(mask, 100_000, "holes") == (mask, False)


def test_bad_options_are_refused_by_name() -> None:
    mask = np.zeros((3, 3), bool)
    with pytest.raises(InputError, match="mode is 'gaps'; accepted are 'holes' and 'islands'"):
        remove_small_regions(mask, 3, "gaps")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="area_threshold is -1; accepted is a finite number from 0 up"):
        remove_small_regions(mask, -1, "holes")
    with pytest.raises(InputError, match="area_threshold is nan"):
        remove_small_regions(mask, float("nan"), "holes")
