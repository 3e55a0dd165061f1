# SPDX-License-Identifier: Apache-2.0
"""Strict loading: everything fits, or the message lists what does not and nothing changes."""

import numpy as np
import pytest
import torch

from segship.errors import CheckpointError
from segship.ship.families.sam.model import build_sam
from segship.ship.loading import load_state
from tests.oracle import SMALL_VIT, as_arrays


def make():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor + 5
        for name, tensor in make().state_dict().items()
    }


def test_a_module_with_memory_gets_copies():
    module, given = make(), state()
    load_state(module, as_arrays(given))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, given[name])
        assert tensor.data_ptr() != given[name].data_ptr()
    assert module[1].num_batches_tracked == 5


def test_a_module_on_meta_takes_the_tensors_themselves():
    with torch.device("meta"):
        module = build_sam(SMALL_VIT)
    given = build_sam(SMALL_VIT).state_dict()
    load_state(module, as_arrays(given))
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
    assert all(tensor.data_ptr() == given[name].data_ptr() for name, tensor in module.state_dict().items())


def test_all_that_does_not_fit_is_listed_and_nothing_changes():
    module, given = make(), state()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    del given["0.bias"]
    given |= {
        "2.weight": torch.ones(1),
        "0.weight": torch.ones(4, 2),
        "1.running_mean": torch.ones(4, dtype=torch.int64),
    }
    with pytest.raises(CheckpointError) as refusal:
        load_state(module, as_arrays(given))
    message = str(refusal.value)
    assert refusal.value.code == "state_mismatch"
    assert "1 missing: 0.bias" in message and "1 unexpected: 2.weight" in message
    assert "2 of another shape: 0.weight (4, 2) float32 instead of (4, 3) float32" in message
    assert "1.running_mean (4,) int64 instead of (4,) float32" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_long_lists_are_cut_at_ten():
    with pytest.raises(CheckpointError) as refusal:
        load_state(make(), {f"key{index:02}": np.ones(1) for index in range(25)})
    message = str(refusal.value)
    assert "25 unexpected: key00" in message and "key09 and 15 more" in message and "key10" not in message
