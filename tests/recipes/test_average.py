# SPDX-License-Identifier: Apache-2.0
"""Averaging the weights of two runs."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipes.tiny.average import average


def test_floats_are_mixed_by_the_share_and_counters_are_the_seconds(tmp_path):
    save_file({"weight": torch.tensor([0.0, 10.0]), "steps": torch.tensor(3)}, tmp_path / "first")
    save_file({"weight": torch.tensor([1.0, 20.0]), "steps": torch.tensor(5)}, tmp_path / "second")
    average(tmp_path / "first", tmp_path / "second", tmp_path / "out", 0.25)
    mixed = load_file(tmp_path / "out")
    assert mixed["weight"].tolist() == [0.25, 12.5]
    assert mixed["steps"].item() == 5


@pytest.mark.parametrize(("other", "share"), [({"weight": torch.zeros(3)}, 0.5), ({"weight": torch.zeros(2)}, 1.5)])
def test_files_that_do_not_fit_and_shares_outside_0_to_1_are_refused(tmp_path, other, share):
    save_file({"weight": torch.zeros(2)}, tmp_path / "first")
    save_file(other, tmp_path / "second")
    with pytest.raises(ValueError, match=r"other tensors|share is 1\.5"):
        average(tmp_path / "first", tmp_path / "second", tmp_path / "out", share)
    assert not (tmp_path / "out").exists()
