# SPDX-License-Identifier: Apache-2.0
"""The pickle interpreter: nothing runs, hostile pickles are named, honest ones are read."""

import io
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch

from segship.errors import CheckpointError, UnsafeCheckpoint
from segship.ship.checkpoints.archive import StoredTensor
from segship.ship.checkpoints.pickles import MAX_OPCODES, scan_pickle
from segship.ship.checkpoints.reading import read_checkpoint
from tests.ship.checkpoints.containers import state_dict, tensor, text, write_archive
from tests.ship.checkpoints.hostile import hostile_pickles

SECONDS = 2.0


def processor_seconds():
    """Time of this process and of the one that reads: a busy machine makes no file slow."""
    return sum(os.times()[:4])


KINDS = list(hostile_pickles(Path("canary")))


def saved_pickle(contents):
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def test_at_least_forty_kinds_are_tried():
    assert len(KINDS) >= 40


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_checkpoint_is_refused_by_name_and_runs_nothing(kind, tmp_path):
    canary = tmp_path / "canary"
    data, named = hostile_pickles(canary)[kind]
    path = write_archive(tmp_path / "hostile.pth", data, {"data/0": bytes(16)})
    began = processor_seconds()
    with pytest.raises(UnsafeCheckpoint) as refusal:
        read_checkpoint(path)
    assert processor_seconds() - began < SECONDS
    assert named in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert refusal.value.code == "unsafe_checkpoint"
    assert not canary.exists()


def test_the_canary_works_when_a_pickle_is_loaded_the_usual_way(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(hostile_pickles(canary)["protocol 0"][0])
    pickle.loads(hostile_pickles(canary)["stack global through the memo"][0])
    assert canary.read_text() == "hit\n"


MALFORMED = {
    "empty": b"",
    "no stop": b"\x80\x02}",
    "stop on an empty stack": b"\x80\x02.",
    "values left": b"\x80\x02K\x01K\x02.",
    "mark left": b"\x80\x02(K\x01.",
    "unknown opcode": b"\x80\x02\xff.",
    "protocol 6": b"\x80\x06}.",
    "text longer than the file": b"\x80\x04\x8d" + (2**63).to_bytes(8, "little") + b"x.",
    "number longer than the file": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "digits without end": b"L" + b"9" * 100_000 + b"L\n.",
    "memo of nothing": b"\x80\x02h\x07.",
    "items of a number": b"\x80\x02K\x01K\x02K\x03s.",
    "items appended to a dict": b"\x80\x02}K\x01a.",
    "odd items": b"\x80\x02}(K\x01u.",
    "list as a key": b"\x80\x02}]K\x01s.",
    "dict as a key": b"\x80\x02}}K\x01s.",
    "invalid text": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "parameter of nothing": b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
    "ordered dict of a number": b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.",
    "sizes of text": b"\x80\x02ctorch\nSize\n" + text("x") + b"\x85R.",
    "nine axes": state_dict(tensor((1,) * 9, (1,) * 9)),
    "negative storage": state_dict(tensor(elements=-1)),
    "negative shape": state_dict(tensor(shape=(-2, 2))),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_pickle_is_refused(kind):
    with pytest.raises(CheckpointError, match="malformed") as refusal:
        scan_pickle(MALFORMED[kind])
    assert refusal.value.code == "malformed_pickle"


BOMBS = {
    "more opcodes than are read": b"]0" * (MAX_OPCODES // 2 + 1) + b"N.",
    "tuples in tuples as a key": b"\x80\x02)" + b"2\x86" * 10_000 + b"q\x000}h\x00Ns.",
    "lists in lists": b"\x80\x02" + b"]" * 240_000 + b"a" * 239_999 + b".",
    "marks without end": b"(" * 490_000 + b".",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_pickle_that_unfolds_is_refused_in_time(kind, tmp_path):
    began = processor_seconds()
    with pytest.raises(CheckpointError):
        read_checkpoint(write_archive(tmp_path / "bomb.pth", BOMBS[kind]))
    assert processor_seconds() - began < SECONDS


OUTSIDE = {
    "past the end": tensor(shape=(2, 3), strides=(3, 1)),
    "offset past the end": tensor(offset=1),
    "negative offset": tensor(offset=-1),
    "huge offset": tensor(offset=2**62),
    "huge shape": tensor(shape=(2**40, 2**40), strides=(1, 1)),
    "huge stride": tensor(strides=(2**40, 1)),
    "stride 0 unfolds": tensor(shape=(2**30,), strides=(0,)),
    "overlaps itself": tensor(shape=(2, 2), strides=(1, 1)),
    "fewer strides than axes": tensor(strides=(1,)),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_a_tensor_outside_its_storage_is_refused(kind):
    with pytest.raises(CheckpointError, match="does not lie in its storage") as refusal:
        scan_pickle(state_dict(OUTSIDE[kind]))
    assert refusal.value.code == "bad_tensor_layout"


def test_a_training_checkpoint_of_torch_is_read():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    scan = scan_pickle(
        saved_pickle(
            {
                "model": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "parameter": module[0].weight,
                "milestones": Counter({30: 1}),
                "epoch": 3,
                "rest": [None, True, 1.5, "text", torch.Size([1, 2]), torch.device("cpu"), torch.float16, 2**40],
            }
        )
    )
    value = scan.value
    assert value["model"]["0.weight"].shape == (4, 3)
    assert value["model"]["1.num_batches_tracked"] == StoredTensor("int64", (), (), 0, "6", 1)
    assert value["optimizer"]["state"][0]["exp_avg"].dtype == "float32"
    assert value["parameter"].storage == value["model"]["0.weight"].storage
    assert value["milestones"] == {30: 1}
    assert value["rest"][:5] == [None, True, 1.5, "text", (1, 2)] and value["rest"][-1] == 2**40
    assert len(scan.tensors) == 7 + 3 * 4 + 1  # each parameter once


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_every_protocol_are_read(protocol):
    values = {"list": [1, -2, 2**70, 0.5], "tuple": (1, (2, (3, 4, 5, 6))), "none": None, "bytes": b"x", "": {}}
    assert scan_pickle(pickle.dumps(values, protocol=max(protocol, 3))).value == values
    assert scan_pickle(pickle.dumps(OrderedDict(a=1), protocol=protocol)).value == {"a": 1}


def test_the_oldest_protocol_is_read_too():
    values = {"list": [1, True, 0.5], "text": "ü", "tuple": (1, 2), "big": 2**70}
    assert scan_pickle(pickle.dumps(values, protocol=0)).value == values


def test_a_list_inside_itself_is_read_once():
    value = scan_pickle(b"\x80\x02]q\x00h\x00a.").value
    assert isinstance(value, list) and value[0] is value
