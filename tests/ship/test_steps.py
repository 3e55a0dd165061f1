# SPDX-License-Identifier: Apache-2.0
"""Steps are taken in order, reported, and stopped at the first that differs by too much."""

import pytest

from segship.bundle.measured import SemanticStep
from segship.errors import ComparisonFailed, ExportError, OutputError
from segship.ship.steps import check_opset, refuse_taken, take_steps

STEPS = [("traced", "trace"), ("simplified", "simplify"), ("lowered", "lower")]


def row(step, passed=True):
    measured = {"cosine": None, "max_abs": None, "scale": None, "pixels_equal": 1.0 if passed else 0.5}
    return SemanticStep(step=step, graph="semantic", what="class_map", cases=1, passed=passed, **measured)


def test_rows_of_all_steps_come_back_in_order():
    taken, reported = [], []

    def write_and_compare(step, change):
        taken.append(change)
        return [row(step)]

    rows = take_steps(STEPS, write_and_compare, lambda step, rows: reported.append((step, len(rows))))
    assert taken == ["trace", "simplify", "lower"]
    assert reported == [("traced", 1), ("simplified", 1), ("lowered", 1)]
    assert [found.step for found in rows] == ["traced", "simplified", "lowered"]


def test_step_that_fails_is_reported_and_the_last():
    seen = []
    with pytest.raises(ComparisonFailed, match="simplified, class_map: 50.0000 % of the pixels equal"):
        take_steps(STEPS, lambda step, _: [row(step, step != "simplified")], lambda step, _: seen.append(step))
    assert seen == ["traced", "simplified"]


@pytest.mark.parametrize("opset", [13, 25])
def test_opset_outside_the_range_is_refused(opset):
    with pytest.raises(ExportError, match=f"opset {opset} cannot be written; accepted are 14 to 24"):
        check_opset(opset)


def test_folder_that_is_there_is_refused_unless_forced(tmp_path):
    with pytest.raises(OutputError, match="exists; choose another folder, or replace a bundle with --force"):
        refuse_taken(tmp_path, force=False)
    refuse_taken(tmp_path, force=True)
    refuse_taken(tmp_path / "new", force=False)
