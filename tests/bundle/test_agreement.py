# SPDX-License-Identifier: Apache-2.0
"""How far class maps and logits agree; the same for masks stands in test_bars.py."""

import numpy as np
import pytest

from segship.bundle.agreement import class_map_step, describe_step, logits_step, require_passed
from segship.bundle.measured import SemanticBar
from segship.errors import ComparisonFailed

BAR = SemanticBar()


def maps(wrong):
    """A class map of 100 x 100 pixels, and one that differs at so many of them."""
    expected = np.arange(10_000, dtype=np.uint8).reshape(1, 100, 100)
    found = expected.copy()
    found.flat[:wrong] += 1
    return expected, found


@pytest.mark.parametrize(("wrong", "passed"), [(0, True), (1, True), (2, False)])
def test_one_pixel_in_ten_thousand_may_differ(wrong, passed):
    row = class_map_step("traced", [maps(wrong)], BAR)
    assert (row.pixels_equal, row.passed) == (1 - wrong / 10_000, passed)


def test_worst_picture_counts_not_the_mean():
    row = class_map_step("traced", [maps(0)] * 99 + [maps(2)], BAR)
    assert row.cases == 100 and row.pixels_equal == 0.9998 and not row.passed


def test_numbers_of_other_types_are_compared_by_value():
    expected, _ = maps(0)
    assert class_map_step("traced", [(expected, expected.astype(np.int64))], BAR).pixels_equal == 1


def test_logits_are_held_against_their_scale():
    expected = np.linspace(-20, 10, 600, dtype=np.float32).reshape(1, 6, 10, 10)
    close, far = expected.copy(), expected.copy()
    close.flat[0] += 0.01
    far.flat[0] += 0.03
    assert logits_step("traced", [(expected, close)], BAR).passed
    row = logits_step("traced", [(expected, far)], BAR)
    assert not row.passed and row.scale == 20 and row.max_abs == pytest.approx(0.0015, rel=1e-3)


def test_logits_that_are_not_finite_never_pass():
    expected = np.ones((1, 2, 3, 3), np.float32)
    assert not logits_step("traced", [(expected, np.full_like(expected, np.nan))], BAR).passed


def test_rows_are_told_in_words_and_failures_raise():
    row = class_map_step("simplified", [maps(2)], BAR)
    assert describe_step(row) == "simplified, class_map: 99.9800 % of the pixels equal"
    with pytest.raises(
        ComparisonFailed, match="simplified, class_map: 99.9800 % of the pixels equal. Nothing was written"
    ):
        require_passed([row])
