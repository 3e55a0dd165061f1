# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from segship.bundle.evidence import (
    Check,
    Evidence,
    TensorErrors,
    class_map_row,
    figures_row,
    mask_figures,
    mask_row,
    require_passed,
    tensor_row,
)
from segship.errors import ComparisonFailed
from segship.promptable import task as promptable
from segship.semantic import task as semantic

REFERENCE = np.random.default_rng(0).normal(0, 2, (1, 4, 8, 8)).astype(np.float32)


def compare(candidate, reference=REFERENCE):
    pairs = [(REFERENCE, REFERENCE), (reference, candidate)]
    return tensor_row("step", "graph", "tensor", pairs, promptable.EXACT_BAR)


def test_equal_tensors_pass_with_cosine_one():
    row = compare(REFERENCE)
    assert row.passed and row.figures["max_abs"] == 0 and row.figures["cosine"] == pytest.approx(1)
    assert row.figures["scale"] == np.abs(REFERENCE).max()


def test_worst_pair_counts_not_the_mean():
    candidate = REFERENCE.copy()
    candidate.flat[7] += 0.01 * np.abs(REFERENCE).max()
    row = compare(candidate)
    assert not row.passed
    assert row.figures["max_abs"] == pytest.approx(0.01, rel=1e-3)


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
    assert mask_row("step", "graphs", ious, promptable.EXACT_BAR).passed is passed


def test_failure_names_step_tensor_and_figures():
    row = compare(-REFERENCE)
    with pytest.raises(ComparisonFailed, match=r"step, tensor: cosine -1\.0+, max abs 2\.00e\+00 of scale"):
        require_passed([compare(REFERENCE), row])


def class_rows(pairs, step="traced"):
    return class_map_row(step, "semantic", pairs, semantic.EXACT_BAR)


def logit_rows(pairs):
    return tensor_row("traced", "semantic", "logits", pairs, semantic.EXACT_BAR)


def maps(wrong):
    """A class map of 100 x 100 pixels, and one that differs at so many of them."""
    expected = np.arange(10_000, dtype=np.uint8).reshape(1, 100, 100)
    found = expected.copy()
    found.flat[:wrong] += 1
    return expected, found


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (1, True), (2, False)])
def test_one_pixel_in_ten_thousand_may_differ(wrong, passed):
    row = class_rows([maps(wrong)])
    assert (row.figures["pixels_equal"], row.passed) == (1 - wrong / 10_000, passed)


def test_worst_picture_counts_not_the_mean():
    row = class_rows([maps(0)] * 99 + [maps(2)])
    assert row.cases == 100 and row.figures["pixels_equal"] == 0.9998 and not row.passed


def test_numbers_of_other_types_are_compared_by_value():
    expected, _ = maps(0)
    assert class_rows([(expected, expected.astype(np.int64))]).figures["pixels_equal"] == 1


def test_logits_are_held_against_their_scale():
    expected = np.linspace(-20, 10, 600, dtype=np.float32).reshape(1, 6, 10, 10)
    close, far = expected.copy(), expected.copy()
    close.flat[0] += 0.01
    far.flat[0] += 0.03
    assert logit_rows([(expected, close)]).passed
    row = logit_rows([(expected, far)])
    assert not row.passed and row.figures["scale"] == 20 and row.figures["max_abs"] == pytest.approx(0.0015, rel=1e-3)


def test_logits_that_are_not_finite_never_pass():
    expected = np.ones((1, 2, 3, 3), np.float32)
    assert not logit_rows([(expected, np.full_like(expected, np.nan))]).passed


def test_rows_are_told_in_words_and_failures_raise():
    row = class_rows([maps(2)], "simplified")
    assert str(row) == "simplified, class_map: 99.9800 % of the pixels equal"
    with pytest.raises(
        ComparisonFailed, match="simplified, class_map: 99.9800 % of the pixels equal; nothing was written"
    ):
        require_passed([row])


@pytest.mark.parametrize("task", [promptable, semantic])
def test_reduced_precisions_have_a_bar_of_their_own(task):
    assert task.bar("bf16") == task.bar("fp16") == task.REDUCED_BAR != task.bar("fp32")
    assert task.REDUCED_BAR.keys() == task.EXACT_BAR.keys()


def test_backends_are_compared_by_all_times_but_that_of_loading():
    facts = dict(backend="b", version="1", precision="fp32", cpu="c", threads=1, timed="t", evidence=Evidence({}, ()))
    times = {"load": 1000.0, "encode": 30.0, "decode": 4.0}
    assert Check(**facts, timings_ms=times, passed=True).milliseconds == 34
    assert Check(**facts, timings_ms={}, passed=False).milliseconds == float("inf")


def test_tensor_errors_count_pair_after_pair():
    errors = TensorErrors()
    errors.add(np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32))
    errors.add(np.array([0.0, 8.0], np.float32), np.array([0.0, 8.0], np.float32))
    figures = errors.figures()
    assert (errors.pairs, figures["scale"], figures["largest"], figures["headroom"]) == (2, 8, 8, 65504 / 8)
    assert figures["max_abs"] == 0.125 and figures["mean_abs"] == 0.5 / 4 / 8 and figures["not_finite"] == 0
    assert figures["relative_l2"] == pytest.approx(np.sqrt(0.25 / 89)) and 0.99 < figures["cosine"] < 1


def test_values_that_are_not_finite_are_counted_and_fail():
    errors = TensorErrors()
    errors.add(np.ones(3, np.float32), np.array([1, np.nan, np.inf], np.float32))
    row = figures_row("step", "graph", "what", 1, errors.figures(), {"cosine": 0.5})
    assert not row.passed and row.figures["not_finite"] == 2 and row.figures["largest"] == 1


def test_figures_of_masks_tell_the_tail():
    ious = [1.0] * 18 + [0.85, 0.5]
    figures = mask_figures(ious)
    assert (figures["mask_iou_min"], figures["mask_iou_low"]) == (0.5, 0.1)
    assert figures["mask_iou_mean"] == pytest.approx(np.mean(ious)) and 0.5 < figures["mask_iou_p5"] < 0.86
