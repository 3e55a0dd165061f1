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


def test_of_other_models_the_better_wrapper_and_the_inner_mapping_win():
    inner, other = {"conv": WEIGHT}, {"other": WEIGHT}
    assert unwrap_state_dict({"model": {"module": other}, "state_dict": inner}, TensorInfo)[0] == inner
    assert unwrap_state_dict({"model": {"module": inner, **other}}, TensorInfo)[0] == inner
    assert unwrap_state_dict({"somewhere": other, **inner}, TensorInfo)[0] == inner


@pytest.mark.parametrize("prefix", ["module.", "model.", "sam.", "module.model.", "_orig_mod.", "model.sam.module."])
def test_prefixes_common_to_all_names_are_taken_off(prefix):
    state, notes = unwrap_state_dict(prefixed(prefix), TensorInfo)
    assert state == STATE
    assert len(notes) == prefix.count(".")


@pytest.mark.parametrize("prefix", ["net.", "network.", "student.", "sam_model.", "base_model.model.", "a.b.c."])
def test_what_stands_before_the_root_of_the_names_goes_whatever_it_is(prefix):
    state, notes = unwrap_state_dict(prefixed(prefix), TensorInfo)
    assert state == STATE
    assert notes == tuple(f"prefix '{part}.' taken off every name" for part in prefix.split(".")[:-1])


def test_tensors_beside_a_common_prefix_are_left_out_and_noted():
    mixed = {**prefixed("module."), "n_averaged": WEIGHT, "criterion.weight": WEIGHT}
    state, notes = unwrap_state_dict(mixed, TensorInfo)
    assert state == STATE
    assert notes == ("prefix 'module.' taken off every name", "left out 'criterion.weight', 'n_averaged'")


def test_tensors_beside_names_without_a_prefix_stay_for_the_strict_check():
    mixed = {**STATE, "other": WEIGHT, "teacher.image_encoder.a": WEIGHT}
    assert unwrap_state_dict(mixed, TensorInfo) == (mixed, ())


def test_a_model_of_another_layout_keeps_all_names():
    mixed = {"module.conv": WEIGHT, "other": WEIGHT}
    assert unwrap_state_dict(mixed, TensorInfo) == (mixed, ())


@pytest.mark.parametrize("key", ["sam", "params", "net_state_dict", "ema", "student", 7, ("a", 1)])
def test_any_wrapper_around_names_of_a_model_is_taken_off(key):
    state, notes = unwrap_state_dict({key: prefixed("net."), "epoch": 7}, TensorInfo)
    assert state == STATE and notes[0].endswith("left out 'epoch'")


@pytest.mark.parametrize(
    ("contents", "note"), [([STATE], "taken from 'item 0'"), ((STATE, {"epoch": 7}), "left out 'item 1'")]
)
def test_lists_around_a_state_dict_are_taken_off(contents, note):
    state, notes = unwrap_state_dict(contents, TensorInfo)
    assert state == STATE and notes[0].endswith(note)


@pytest.mark.parametrize("better", ["state_dict", "model", "net"])
def test_of_several_state_dicts_the_one_that_is_trained_is_taken(better):
    other = {name: TensorInfo("float16", (2,)) for name in STATE}
    state, notes = unwrap_state_dict({"ema": other, "teacher": other, better: STATE}, TensorInfo)
    assert state == STATE and "left out 'ema', 'teacher'" in notes[0]
    mixed = {**{f"ema_model.{name}": info for name, info in other.items()}, **prefixed("model.")}
    assert unwrap_state_dict(mixed, TensorInfo)[0] == STATE


def test_two_models_side_by_side_are_told_apart_by_the_user():
    with pytest.raises(CheckpointError, match="holds several models, under 'a.', 'b.'; save the state dict") as refusal:
        unwrap_state_dict({**prefixed("a."), **prefixed("b.")}, TensorInfo)
    assert refusal.value.code == "several_models"


@pytest.mark.parametrize("name", ["\ud800", "a\x1b[2J", "x" * 513, ""])
def test_names_that_no_tensor_has_are_refused(name):
    with pytest.raises(CheckpointError, match="the tensor name '.*' is not 1 to 512 printable characters") as refusal:
        unwrap_state_dict({**STATE, name: WEIGHT}, TensorInfo)
    assert refusal.value.code == "bad_tensor_name" and str(refusal.value).isascii()


def test_keys_of_six_thousand_digits_are_told_by_their_size():
    assert unwrap_state_dict({**STATE, 10**6000: 7}, TensorInfo)[1] == ("left out 'a number of 19932 bits'",)
    state, _ = unwrap_state_dict({**STATE, 10**6000: WEIGHT}, TensorInfo)
    assert set(state) == {*STATE, "a number of 19932 bits"}


def test_containers_that_hold_each_other_are_looked_at_once():
    level: object = [STATE]
    for _ in range(5):
        level = {f"key{index}": level for index in range(1000)}
    with pytest.raises(CheckpointError, match="no state dict"):
        unwrap_state_dict(level, TensorInfo)


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
