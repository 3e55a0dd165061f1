# SPDX-License-Identifier: Apache-2.0
"""MindSpore's checkpoints: what it wrote is read, and nothing else."""

import io
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from segship.errors import CheckpointError
from segship.ship.checkpoints.ckpt import CKPT_DTYPES, mindformers_name, published_name, read_ckpt
from segship.ship.checkpoints.reading import read_checkpoint
from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.sam.model import build_sam
from segship.ship.graph.wire import field, varint
from segship.ship.targets.ckpt import entries
from tests.ship.checkpoints.record_ckpt import ADDED, BRAIN, PIECE, RECORDINGS, tables


def recorded(name):
    return (RECORDINGS / f"{name}.ckpt").read_bytes()


def read(data):
    return read_ckpt(io.BytesIO(data), len(data))


def refuse(data, words, code="bad_ckpt"):
    with pytest.raises(CheckpointError, match=words) as refusal:
        read(data)
    assert refusal.value.code == code


def tensor(sizes=(2,), kind="Float32", data=bytes(8)):
    return b"".join(field(1, size) for size in sizes) + field(2, kind.encode()) + field(3, data)


def entry(name="x", content=None, number=2):
    return field(1, field(1, name.encode()) + field(number, tensor() if content is None else content))


@pytest.mark.parametrize("name", ["kinds", "empty", "split"])
def test_what_is_written_is_what_mindspore_wrote_byte_for_byte(monkeypatch, name):
    monkeypatch.setattr("segship.ship.targets.ckpt.LARGEST_PIECE", PIECE if name == "split" else 512 << 20)
    assert b"".join(entries(tables()[name])) == recorded(name)


@pytest.mark.parametrize("name", ["kinds", "crc", "split"])
def test_what_mindspore_wrote_is_read(name):
    state = read_checkpoint(RECORDINGS / f"{name}.ckpt").state_dict
    expected = {published_name(key): array for key, array in tables()[name].items()}
    assert list(state) == list(expected)
    for key, array in expected.items():
        same = array.astype(np.float32) if array.dtype.kind == "f" else array
        assert state[key].dtype == same.dtype and state[key].shape == same.shape
        assert state[key].tobytes() == same.tobytes() and state[key].flags.writeable


def test_safetensors_of_mindspore_have_the_same_names():
    state = read_checkpoint(RECORDINGS / "named.safetensors").state_dict
    expected = {published_name(name): array for name, array in tables()["kinds"].items() if "." in name}
    assert sorted(state) == sorted(expected) and "prompt_encoder.point_embeddings.0.weight" in state
    for name, array in expected.items():
        assert state[name].tobytes() == array.tobytes() and state[name].shape == array.shape


def test_safetensors_of_others_keep_their_names(tmp_path):
    names = ["stage.gamma", "stage.beta", "prompt_encoder.no_mask_embed.weight"]
    save_file({name: np.ones(1, np.float32) for name in names}, tmp_path / "other.safetensors")
    assert sorted(read_checkpoint(tmp_path / "other.safetensors").state_dict) == sorted(names)
    names = ["stage.gamma", "stage.weight", "mask_decoder.iou_token.embedding_table"]
    save_file({name: np.ones(1, np.float32) for name in names}, tmp_path / "twice.safetensors")
    with pytest.raises(CheckpointError, match="'stage.(gamma|weight)' stands in it twice") as refusal:
        read_checkpoint(tmp_path / "twice.safetensors")
    assert refusal.value.code == "bad_ckpt"


def test_bfloat16_is_read():
    checkpoint = read_checkpoint(RECORDINGS / "brain.ckpt")
    assert checkpoint.state_dict["brain"].tolist() == list(BRAIN) and checkpoint.stored_dtypes == ("bfloat16",)


def test_what_training_adds_is_numbers_and_texts_which_are_left_out():
    checkpoint = read_checkpoint(RECORDINGS / "added.ckpt")
    assert checkpoint.state_dict.pop("x").tolist() == [1, 2]
    assert {name: array.item() for name, array in checkpoint.state_dict.items()} == {
        name: value for name, value in ADDED.items() if name != "note"
    }
    assert checkpoint.notes == ("left out 'note'",)


def test_a_file_of_torch_may_be_called_ckpt(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(2)}}, tmp_path / "epoch=3.ckpt")
    assert read_checkpoint(tmp_path / "epoch=3.ckpt").state_dict["weight"].tolist() == [1, 1]


def test_a_file_of_neither_kind_says_so(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="model.ckpt: its 13 bytes are no zip container of torch.save"):
        read_checkpoint(tmp_path / "model.ckpt")


def test_one_axis_of_no_size_is_how_older_versions_mark_a_single_number():
    found, places = read(entry(content=tensor((0,), data=np.float32(7).tobytes())))
    assert found["x"].shape == () and places == {"0": (20, 4)}
    refuse(entry(content=tensor((0,), data=b"")), "has 4 bytes, and 0 are there")


def test_every_truncation_is_refused():
    data = recorded("kinds")
    whole = {0}
    with suppress(StopIteration):
        at = 0
        while at < len(data):
            at += 2 + data[at + 1] if data[at + 1] < 0x80 else 3 + (data[at + 1] & 0x7F | data[at + 2] << 7)
            whole.add(at)
    for size in set(range(len(data))) - whole:
        refuse(data[:size], "not as MindSpore writes|near byte")


@given(st.integers(0, len(recorded("crc")) - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place, change):
    data = bytearray(recorded("crc"))
    data[place] ^= change
    with pytest.raises(CheckpointError):
        read(bytes(data))


@given(st.binary(max_size=80))
def test_any_bytes_give_tensors_or_a_refusal(data):
    with suppress(CheckpointError):
        read(data)
    with suppress(CheckpointError):
        read(entry()[:20] + data)


NUMBERS = [name for name in CKPT_DTYPES.values() if name != "bfloat16"]


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.tuples(st.sampled_from(NUMBERS), st.lists(st.integers(1, 2), max_size=8)),
        max_size=5,
    ),
    st.integers(1, 100),
)
def test_what_is_written_is_read_back(table, piece):
    arrays = {
        name: np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
        for name, (dtype, shape) in table.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segship.ship.targets.ckpt.LARGEST_PIECE", piece)
        data = b"".join(entries(arrays))
    if len({published_name(name) for name in arrays}) < len(arrays):
        return refuse(data, "twice")
    found, places = read(data)
    assert [*found] == [published_name(name) for name in arrays]
    for info, array in zip(found.values(), arrays.values(), strict=True):
        assert (info.dtype, info.shape) == (array.dtype.name, array.shape) and info.lies_within_storage()
        spans = places[info.storage]
        held = b"".join(data[at : at + size] for at, size in zip(spans[::2], spans[1::2], strict=True))
        assert held == array.tobytes()


TOO_LONG = b"\xff" * 10 + b"\x01"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a", "cut off"),
        (b"\x0a\x80", "cut off"),
        (b"\x0a" + TOO_LONG, "the number at byte 0 is too long"),
        (b"\x0a" + varint(2**64 - 1) + bytes(40), "ends at byte 18446744073709551626, and what it is a part of at 51"),
        (entry() + b"\x12\x00", "is no beginning of the field"),
        (b"\x08\x01" + entry(), "is no beginning of the field"),
        (field(1, b""), "cut off|no beginning"),
        (field(1, field(2, tensor())), "is no beginning of the field"),
        (field(1, field(1, b"\xff") + field(2, tensor())), "is not UTF-8"),
        (field(1, field(1, b"x" * 5000) + field(2, tensor())), "names are too long"),
        (field(1, field(1, b"x")), "cut off"),
        (entry(number=3), "'x' is a map parameter"),
        (entry(content=field(2, b"Float32")), "cut off"),
        (entry(content=field(3, bytes(8))), "is no beginning"),
        (entry(content=field(2, b"Float32") + field(1, 2) + field(3, bytes(8))), "is no beginning"),
        (entry(content=tensor() + field(3, bytes(8))), "holds more than"),
        (entry(content=tensor() + field(9, 1)), "holds more than"),
        (field(1, field(1, b"x") + field(2, tensor()) + field(2, tensor())), "holds more than"),
        (field(1, field(1, b"x") + b"\x12\x40" + tensor()), "ends at byte"),
        (entry(content=tensor((2,) * 9)), "the shape of 'x'"),
        (entry(content=tensor((2**48,))), "the shape of 'x'"),
        (entry(content=tensor((2**64 - 1,))), "the shape of 'x'"),
        (entry(content=tensor((2**47, 2**47))), "and 8 are there"),
        (entry(content=tensor((3,))), "has 12 bytes, and 8 are there"),
        (entry(content=tensor((1,))), "has 4 bytes, and 8 are there"),
        (entry(content=tensor((4,))) + entry(content=tensor((4,))) + entry(content=tensor((4,))), "and 24 are there"),
        (entry(content=tensor((4,))) + entry(content=tensor((4,), "Int32")), "different dtypes or shapes"),
        (entry(content=tensor((4,))) + entry(content=tensor((2, 2))), "different dtypes or shapes"),
        (entry() + entry(), "and 16 are there"),
        (entry() + entry("y") + entry(), "stands in it twice"),
        (entry("a.gamma") + entry("a.weight"), "'a.weight' stands in it twice"),
        (entry() * 20_001, "more than 20000 entries"),
        (b"".join(entry(str(number)) for number in range(20_001)), "more than 20000 entries"),
        (entry() + b"crc_num" + bytes(10), "the CRC at its end is wrong"),
    ],
)
def test_a_crafted_file_is_refused(data, words):
    refuse(data, words)


@pytest.mark.parametrize("kind", ["Int4", "float32", "Complex64", ""])
def test_a_dtype_that_no_model_here_has_is_named(kind):
    refuse(entry(content=tensor(kind=kind)), f"has the dtype {kind}; read are Float64", "unsupported_dtype")


def test_names_go_to_mindformers_and_back():
    with torch.device("meta"):
        names = [*build_sam(SAM_ARCHITECTURES["vit_b"]).state_dict()]
    theirs = [mindformers_name(name) for name in names]
    assert [published_name(name) for name in theirs] == names and len(set(theirs)) == 314
    ends = [name.rpartition(".")[2] for name in theirs]
    assert [ends.count(end) for end in ("gamma", "beta", "embedding_table")] == [33, 33, 8]
    assert sum(a == b for a, b in zip(names, theirs, strict=True)) == 240
    assert {"image_encoder.neck.1.weight", "mask_decoder.output_upscaling.1.bias"} <= {*theirs}
