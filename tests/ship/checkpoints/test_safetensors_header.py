# SPDX-License-Identifier: Apache-2.0
"""The header of safetensors files."""

import io
import json

import pytest
import safetensors.torch
import torch

from segship.errors import CheckpointError
from segship.ship.checkpoints.archive import MAX_HEADER_BYTES, read_safetensors_header

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def build(header, data=bytes(8), length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def read(data):
    return read_safetensors_header(io.BytesIO(data), len(data))


def refuse(data, words, code="bad_safetensors"):
    with pytest.raises(CheckpointError, match=words) as refusal:
        read(data)
    assert refusal.value.code == code


def test_what_the_library_writes_is_read():
    tensors = {
        "weight": torch.ones(2, 3),
        "half": torch.ones(4).half(),
        "brain": torch.ones(1).bfloat16(),
        "count": torch.tensor(7),
        "flag": torch.ones(3, dtype=torch.bool),
        "empty": torch.ones(0, 5),
    }
    data = safetensors.torch.save(tensors, metadata={"format": "pt"})
    found, storages = read(data)
    assert {name: (info.dtype, info.shape, info.strides, info.offset) for name, info in found.items()} == {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.stride(), 0)
        for name, tensor in tensors.items()
        if name != "empty"
    } | {"empty": ("float32", (0, 5), (5, 1), 0)}
    for name, tensor in tensors.items():
        start, size = storages[found[name].storage]
        assert data[start : start + size] == bytes(tensor.view(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER_BYTES + 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_length_out_of_bounds_is_refused(length):
    refuse(build({"x": ENTRY}, length=length), "claims a header")


def test_a_header_past_the_cap_is_refused_even_if_it_is_there():
    refuse(build(b"{}" + b" " * MAX_HEADER_BYTES, b""), "at most 8388608 are read")


@pytest.mark.parametrize("size", range(8))
def test_less_than_a_length_is_refused(size):
    refuse(bytes([2] * size), "claims a header")


def test_every_truncation_is_refused():
    data = safetensors.torch.save({"weight": torch.ones(40, 40)})
    for size in range(0, len(data), 61):
        refuse(data[:size], "malformed")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"\xff{}", "no JSON in UTF-8"),
        (b"not json", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b"[]", "no object"),
        (b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "x": 1}', "twice"),
        ({"x": 7}, "entry of 'x'"),
        ({"x": {**ENTRY, "more": 1}}, "entry of 'x'"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "entry of 'x'"),
        ({"x": {**ENTRY, "data_offsets": [0, 8, 9]}}, "entry of 'x'"),
        ({"x": {**ENTRY, "shape": [-2]}}, "shape of 'x'"),
        ({"x": {**ENTRY, "shape": [1.5]}}, "shape of 'x'"),
        ({"x": {**ENTRY, "shape": [True]}}, "shape of 'x'"),
        ({"x": {**ENTRY, "shape": [2**62, 2**62]}}, "shape of 'x'"),
        ({"x": {**ENTRY, "shape": [1] * 9}}, "shape of 'x'"),
        ({"x": {**ENTRY, "shape": [3]}}, "has 12 bytes and spans 8"),
        ({"x": {**ENTRY, "data_offsets": [-8, 0]}}, "spans"),
        ({"x": {**ENTRY, "data_offsets": [8, 0]}}, "spans"),
        ({"x": {**ENTRY, "shape": [1], "data_offsets": [4, 8]}}, "hole or an overlap before 'x'"),
        ({"x": ENTRY, "y": ENTRY}, "hole or an overlap before 'y'"),
        ({"x": {**ENTRY, "shape": [1], "data_offsets": [0, 4]}}, "tensors have 4 bytes and the file holds 8"),
    ],
)
def test_a_crafted_header_is_refused(header, words):
    refuse(build(header), words)


def test_a_dtype_that_no_model_here_has_is_named():
    refuse(build({"x": {**ENTRY, "dtype": "F4"}}), "dtype F4", code="unsupported_dtype")
