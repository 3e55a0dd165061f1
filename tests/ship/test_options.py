# SPDX-License-Identifier: Apache-2.0
"""Options that no export can follow are refused before any work."""

from dataclasses import fields
from pathlib import Path

import pytest

from segship.errors import ExportError
from segship.semantic.preprocessing import ScaleLimits
from segship.ship.export import export_bundle
from segship.ship.options import ExportOptions


@pytest.mark.parametrize("opset", [13, 25])
def test_opset_out_of_range_is_refused_before_any_work(tmp_path, opset):
    with pytest.raises(ExportError, match=f"opset {opset} cannot be written; accepted are 14 to 24"):
        export_bundle(tmp_path / "missing.pth", tmp_path / "bundle", ExportOptions(opset=opset))


def test_single_mask_belongs_to_the_other_contracts(small_checkpoint, tmp_path):
    with pytest.raises(ExportError, match="single_mask belongs to the contracts"):
        export_bundle(small_checkpoint, tmp_path / "bundle", ExportOptions(single_mask=True))


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        ({"opset": 13}, "opset 13 cannot be written; accepted are 14 to 24", "bad_opset"),
        ({"size": (16, 64)}, "a size of 16,64 .* sides of 32 to 8192", "bad_size"),
        ({"batch": 4}, "a bundle's is 1 or None", "bad_batch"),
        ({"batch": 0, "contract": "ascend"}, "a batch of 0 cannot be exported", "bad_batch"),
        ({"output": "logits", "contract": "ascend"}, "output='logits', classes and scale belong to", "bad_option"),
        ({"scale": ScaleLimits(640, 480), "contract": "ascend"}, "holds neither names nor a scale", "bad_option"),
    ],
)
def test_options_out_of_range_are_refused(options, words, code):
    with pytest.raises(ExportError, match=words) as caught:
        ExportOptions(**options)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("task", "contract", "opset"),
    [
        ("promptable", "segship", 18),
        ("promptable", "official", 17),
        ("promptable", "ascend", 14),
        ("promptable", "samexporter", 17),
        ("semantic", "segship", 18),
        ("semantic", "ascend", 14),
    ],
)
def test_every_contract_has_an_opset_of_its_own(task, contract, opset):
    assert ExportOptions(contract=contract).graph_opset(task) == opset
    assert ExportOptions(contract=contract, opset=16).graph_opset(task) == 16


def test_an_option_that_is_not_given_is_of_no_task():
    for task in ("promptable", "semantic"):
        ExportOptions().check_task(task, Path("model.pth"))
    assert all(option.default is None for option in fields(ExportOptions) if "task" in option.metadata)
