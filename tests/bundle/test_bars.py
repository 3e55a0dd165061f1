# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from segship.bundle.agreement import mask_step, require_passed, tensor_step
from segship.bundle.measured import ComparisonBar
from segship.errors import ComparisonFailed

BAR = ComparisonBar()
REFERENCE = np.random.default_rng(0).normal(0, 2, (1, 4, 8, 8)).astype(np.float32)


def compare(candidate, reference=REFERENCE):
    return tensor_step("step", "graph", "tensor", [(REFERENCE, REFERENCE), (reference, candidate)], BAR)


def test_equal_tensors_pass_with_cosine_one():
    row = compare(REFERENCE)
    assert row.passed and row.max_abs == 0 and row.cosine == pytest.approx(1)
    assert row.scale == np.abs(REFERENCE).max()


def test_worst_pair_counts_not_the_mean():
    candidate = REFERENCE.copy()
    candidate.flat[7] += 0.01 * np.abs(REFERENCE).max()
    row = compare(candidate)
    assert not row.passed
    assert row.max_abs == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_values_that_are_not_finite_never_pass(value):
    candidate = REFERENCE.copy()
    candidate.flat[3] = value
    assert not compare(candidate).passed


def test_empty_reference_passes_only_against_itself():
    nothing = np.zeros_like(REFERENCE)
    assert compare(nothing, reference=nothing).passed
    assert not compare(REFERENCE, reference=nothing).passed


@pytest.mark.parametrize(("ious", "passed"), [([1.0] * 9, True), ([1.0] * 99 + [0.98], False), ([0.999] * 9, False)])
def test_masks_need_both_mean_and_minimum(ious, passed):
    assert mask_step("step", ious, BAR).passed is passed


def test_failure_names_step_tensor_and_figures():
    row = compare(-REFERENCE)
    with pytest.raises(ComparisonFailed, match=r"step, tensor: cosine -1\.0+, max abs 2\.00e\+00 of scale"):
        require_passed([compare(REFERENCE), row])
