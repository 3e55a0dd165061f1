# SPDX-License-Identifier: Apache-2.0
"""State dicts inside what people save."""

import pytest

from segship.errors import CheckpointError
from segship.ship.checkpoints.archive import TensorInfo
from segship.ship.checkpoints.survey import unwrap_state_dict

WEIGHT = TensorInfo("float32", (2,))
STATE = {"image_encoder.a": WEIGHT, "mask_decoder.b": WEIGHT}


def prefixed(prefix):
    return {prefix + name: value for name, value in STATE.items()}


def test_a_flat_state_dict_stays_as_it_is():
    assert unwrap_state_dict(STATE, TensorInfo) == (STATE, ())


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state", "model_state_dict", "module"])
def test_wrappers_are_taken_off_and_noted(key):
    state, notes = unwrap_state_dict({key: STATE, "optimizer": {"state": {}}, "epoch": 7}, TensorInfo)
    assert state == STATE
    assert notes == (f"taken from {key!r}; left out 'epoch', 'optimizer'",)


def test_wrappers_in_wrappers_are_taken_off():
    state, notes = unwrap_state_dict({"state_dict": {"model": {"module": STATE}}}, TensorInfo)
    assert state == STATE and len(notes) == 3


def test_averaged_weights_beside_the_model_are_left_out():
    state, notes = unwrap_state_dict({"ema": {"image_encoder.a": None}, "model": STATE}, TensorInfo)
    assert state == STATE and "left out 'ema'" in notes[0]


def test_a_wrapper_name_that_holds_no_tensors_is_passed_over():
    contents = {"model": {"name": "vit_b"}, "weights": STATE}
    assert unwrap_state_dict(contents, TensorInfo)[0] == STATE


@pytest.mark.parametrize("prefix", ["module.", "model.", "sam.", "module.model.", "_orig_mod.", "model.sam.module."])
def test_prefixes_common_to_all_names_are_taken_off(prefix):
    state, notes = unwrap_state_dict(prefixed(prefix), TensorInfo)
    assert state == STATE
    assert len(notes) == prefix.count(".")


def test_a_prefix_of_some_names_only_stays():
    mixed = {**prefixed("module."), "other": WEIGHT}
    assert unwrap_state_dict(mixed, TensorInfo) == (mixed, ())


def test_values_beside_the_tensors_are_left_out_and_noted():
    state, notes = unwrap_state_dict({**STATE, "epoch": 7, "args": {"lr": 1}}, TensorInfo)
    assert state == STATE and notes == ("left out 'args', 'epoch'",)


def test_many_left_out_names_are_cut_short():
    _, notes = unwrap_state_dict({**STATE, **{f"key{index:02}": index for index in range(20)}}, TensorInfo)
    assert notes[0].endswith("and 12 more") and len(notes[0]) < 200


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([WEIGHT], "a list"),
        (WEIGHT, "a TensorInfo"),
        ({}, "the keys"),
        ({"epoch": 1, "config": {}}, "the keys 'config', 'epoch'"),
        ({"model": {"model": {"model": {"model": {"model": STATE}}}}}, "the keys 'model'"),
    ],
)
def test_what_holds_no_state_dict_is_refused(contents, words):
    with pytest.raises(CheckpointError, match=words) as refusal:
        unwrap_state_dict(contents, TensorInfo)
    assert refusal.value.code == "no_state_dict"
    assert "save model.state_dict()" in str(refusal.value)


def test_a_wrapper_inside_itself_ends():
    loop: dict[str, object] = {}
    loop["model"] = loop
    with pytest.raises(CheckpointError, match="no state dict"):
        unwrap_state_dict(loop, TensorInfo)
