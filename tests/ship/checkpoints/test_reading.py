# SPDX-License-Identifier: Apache-2.0
"""From files to tensors."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from segship.catalog import KNOWN_CHECKPOINTS
from segship.errors import CheckpointError
from segship.ship.checkpoints import reading as module
from segship.ship.checkpoints.reading import read_checkpoint
from segship.ship.families.sam.model import build_sam
from segship.ship.families.sam.recognise import recognise
from segship.ship.loading import load_state
from tests.oracle import SMALL_VIT, seeded_weights
from tests.ship.checkpoints.containers import state_dict, tensor, write_archive

ROOT = Path(__file__).parents[3]


def weights():
    return seeded_weights(build_sam(SMALL_VIT))


def same(state, expected):
    return state.keys() == expected.keys() and all(equal(state[name], expected[name]) for name in expected)


def equal(array, tensor):
    """Whether an array is a tensor's numbers, shape and kind."""
    found = torch.from_numpy(array)
    return found.dtype == tensor.dtype and torch.equal(found, tensor)


def refuse(path, words, code):
    with pytest.raises(CheckpointError, match=words) as refusal:
        read_checkpoint(path)
    assert refusal.value.code == code and str(path) in str(refusal.value)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_both_formats_give_the_same_weights(tmp_path, suffix):
    path, expected = tmp_path / f"model{suffix}", weights()
    save = safetensors.torch.save_file if suffix == ".safetensors" else torch.save
    save(expected, path)
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.state_dict, expected)
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checkpoint.bytes == path.stat().st_size and checkpoint.path == path
    assert checkpoint.known is None and checkpoint.notes == ()


def test_a_read_checkpoint_is_recognised_and_loads_strictly(tmp_path):
    torch.save(weights(), tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth").state_dict
    config = recognise({name: array.shape for name, array in state.items()})
    with torch.device("meta"):
        sam = build_sam(config)
    load_state(sam, state)
    assert same(state, weights()) and same(state, sam.state_dict())


def test_a_training_checkpoint_of_a_parallel_module_is_unwrapped(tmp_path):
    expected = weights()
    sam = build_sam(SMALL_VIT)
    optimizer = torch.optim.AdamW(sam.parameters())
    sam.image_encoder.pos_embed.sum().backward()
    optimizer.step()
    contents = {
        "model": {f"module.{name}": tensor for name, tensor in expected.items()},
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
    }
    torch.save(contents, tmp_path / "model.pth")
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    assert same(checkpoint.state_dict, expected)
    assert checkpoint.notes == (
        "taken from 'model'; left out 'epoch', 'optimizer'",
        "prefix 'module.' taken off every name",
    )


def test_other_precisions_become_float32_and_integers_stay(tmp_path):
    contents = {
        "half": torch.tensor([0.5, -2.0]).half(),
        "brain": torch.tensor([1.5]).bfloat16(),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "count": torch.tensor(7),
        "flag": torch.tensor([True]),
    }
    torch.save(contents, tmp_path / "model.pth")
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    dtypes = {name: array.dtype for name, array in checkpoint.state_dict.items()}
    assert dtypes == {**dict.fromkeys(["half", "brain", "double"], np.float32), "count": np.int64, "flag": np.bool_}
    assert checkpoint.state_dict["half"].tolist() == [0.5, -2.0]
    assert checkpoint.notes == tuple(
        f"1 tensors converted from {name} to float32" for name in ("bfloat16", "float16", "float64")
    )


def test_views_parameters_and_tied_weights_come_out_right(tmp_path):
    table = torch.arange(12.0).view(3, 4)
    contents = {"t": table.T, "column": table[:, 1], "same": table, "p": torch.nn.Parameter(torch.ones(2))}
    torch.save(contents, tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth").state_dict
    assert same(state, {name: tensor.detach() for name, tensor in contents.items()})
    assert all(array.flags.c_contiguous and array.flags.writeable for array in state.values())


KINDS = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 bool uint16 uint32 uint64"
)
FLOATS = [getattr(torch, name) for name in KINDS.split() if "float" in name]


def numbers(dtype, count=240):
    """Numbers of all sizes of a kind, the smallest included."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.randn(count, generator=generator) * 2.0 ** torch.randint(-20, 9, (count,), generator=generator)
    drawn = drawn.clamp(-440, 440)
    return (drawn if dtype in FLOATS or dtype in (torch.int64, torch.int16) else drawn.abs().clamp(max=100)).to(dtype)


def views(flat):
    """A tensor as every view that a file can hold."""
    cube = flat.view(4, 6, 10)
    parts = {"whole": flat, "cube": cube, "turned": cube.permute(2, 0, 1), "part": cube[1:3, ::2, 3:9:4]}
    parts |= {"column": cube[..., 7].T, "scalar": flat[17], "one": cube[2:3, 5:, 9:], "none": cube[:, :0], "tied": cube}
    return parts


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", KINDS.split())
def test_numbers_are_those_of_the_programs_that_wrote_them(tmp_path, monkeypatch, name, suffix, mapped):
    monkeypatch.setattr(module, "_MAPPED_BYTES", 0 if mapped else 1 << 30)
    dtype, path = getattr(torch, name), tmp_path / f"model{suffix}"
    contents = views(numbers(dtype))
    if suffix == ".pth":
        torch.save(contents, path)
        expected = torch.load(path, weights_only=True)
    else:
        data = safetensors.torch.save({key: value.clone().contiguous() for key, value in contents.items()})
        expected = safetensors.torch.load(data)
        # A header that is longer by a space, so that nothing lies at a multiple of its size.
        length = int.from_bytes(data[:8], "little") + 1
        path.write_bytes(length.to_bytes(8, "little") + data[8 : 7 + length] + b" " + data[7 + length :])
    found = read_checkpoint(path).state_dict
    assert same(found, {key: value.float() if dtype in FLOATS else value for key, value in expected.items()})
    assert all(array.flags.carray and array.flags.writeable for array in found.values())


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_every_number_of_a_short_kind_is_read(tmp_path, kind):
    dtype = getattr(torch, kind)
    bits = torch.arange(256, dtype=torch.uint8) if "8_" in kind else torch.arange(1 << 16).to(torch.uint16)
    every = bits.view(dtype)
    every = every[every.float().isfinite()]
    torch.save({"every": every}, tmp_path / "model.pth")
    found = read_checkpoint(tmp_path / "model.pth").state_dict["every"]
    assert len(found) > len(bits) // 2
    assert found.tobytes() == every.float().numpy().tobytes()


def test_every_number_that_is_none_is_refused(tmp_path):
    for dtype in FLOATS[2:]:
        bits = torch.arange(256, dtype=torch.uint8) if dtype.itemsize == 1 else torch.arange(1 << 16).to(torch.uint16)
        every = bits.view(dtype)
        bad = every[~every.float().isfinite()]
        torch.save({f"k{index}": value.clone() for index, value in enumerate(bad[:50])}, tmp_path / "model.pth")
        refuse(
            tmp_path / "model.pth", f"{min(len(bad), 50)} tensors hold values that are not finite", "non_finite_weights"
        )


def test_a_large_file_is_mapped_and_its_weights_are_the_mapping(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAPPED_BYTES", 0)
    torch.save(weights(), tmp_path / "model.pth")
    before = (tmp_path / "model.pth").read_bytes()
    state = read_checkpoint(tmp_path / "model.pth").state_dict
    assert same(state, weights())
    mapped = {id(array.base): array.base for array in state.values()}
    assert [type(base) for base in mapped.values()] == [mmap]
    # What is written into them stays in this process.
    for array in state.values():
        array[...] = 0
    assert (tmp_path / "model.pth").read_bytes() == before


def test_a_file_that_is_not_aligned_gives_aligned_arrays(tmp_path):
    values, pickle = np.arange(6, dtype=np.float32).reshape(2, 3), state_dict(tensor((2, 3), (3, 1), elements=6))
    starts = set()
    for root in ("a", "ab", "abc", "abcd"):
        path = write_archive(tmp_path / f"{root}.pth", pickle, {"data/0": values.tobytes()}, root)
        (array,) = read_checkpoint(path).state_dict.values()
        assert array.flags.carray and np.array_equal(array, values)
        starts.add(module.survey_checkpoint(path).storages["0"][0] % 4)
    assert starts - {0}


def test_an_empty_tensor_past_any_memory_is_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [0, 1 << 47, 1 << 47], "data_offsets": [0, 0]}
    header = json.dumps({"x": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refuse(tmp_path / "model.safetensors", r"shape \(0, 140737488355328, 140737488355328\)", "bad_tensor_layout")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value, suffix):
    contents = {"good": torch.ones(2), "bad": torch.tensor([[1.0, value]]), "empty": torch.ones(0)}
    path = tmp_path / f"model{suffix}"
    (safetensors.torch.save_file if suffix == ".safetensors" else torch.save)(contents, path)
    refuse(path, "1 tensors hold values that are not finite .*: bad;", "non_finite_weights")


def test_only_the_first_keys_that_are_not_finite_are_listed(tmp_path):
    torch.save({f"k{index:02}": torch.tensor([float("nan")]) for index in range(12)}, tmp_path / "model.pth")
    refuse(tmp_path / "model.pth", "12 tensors .*k09 and 2 more", "non_finite_weights")


def test_a_double_past_float32_is_refused(tmp_path):
    torch.save({"big": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "model.pth")
    refuse(tmp_path / "model.pth", "big", "non_finite_weights")


def test_a_published_file_is_known(tmp_path, monkeypatch):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pth")
    digest = hashlib.sha256((tmp_path / "model.pth").read_bytes()).hexdigest()
    known = replace(KNOWN_CHECKPOINTS["vit_b"], file="model.pth", bytes=1, sha256=digest)
    monkeypatch.setitem(KNOWN_CHECKPOINTS, "vit_b", known)
    assert read_checkpoint(tmp_path / "model.pth").known is known


def test_no_unpickler_ever_sees_the_file(tmp_path, monkeypatch):
    torch.save(weights(), tmp_path / "model.pth")

    def refuse_all(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse_all)
    monkeypatch.setattr(pickle, "Unpickler", refuse_all)
    monkeypatch.setattr(pickle, "loads", refuse_all)
    assert same(read_checkpoint(tmp_path / "model.pth").state_dict, weights())


@pytest.mark.parametrize("change", [lambda path: os.utime(path, ns=(1, 1)), lambda path: path.write_bytes(b"PK")])
def test_a_file_that_changes_meanwhile_is_refused(tmp_path, monkeypatch, change):
    path, survey = tmp_path / "model.pth", module.survey_checkpoint
    torch.save({"weight": torch.ones(2)}, path)

    def survey_and_change(*args):
        found = survey(*args)
        change(path)
        return found

    monkeypatch.setattr(module, "survey_checkpoint", survey_and_change)
    refuse(path, "was changed while it was read", "file_changed")


def test_reading_loads_neither_torch_nor_safetensors(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pth")
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    code = (
        "import sys; sys.modules |= dict.fromkeys(['torch', 'safetensors'])\n"
        "from segship.ship.describe import describe_checkpoint\n"
        "from segship.ship.checkpoints.reading import read_checkpoint\n"
        f"for path in {[str(tmp_path / name) for name in ('model.pth', 'model.safetensors')]}:\n"
        "    describe_checkpoint(path)\n"
        "    assert read_checkpoint(path).state_dict['weight'].tolist() == [1, 1]\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


PEAK = """
import sys
from segship.ship.checkpoints.reading import read_checkpoint
def of(key):
    # Of the processes' table: the resource module counts what the process that started this one held.
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
before = of("VmHWM")
state = read_checkpoint(sys.argv[1]).state_dict
print(of("VmHWM") - before, of("VmRSS") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(("dtype", "peak", "held"), [(torch.float32, 1.1, 0.1), (torch.float16, 2.1, 2.1)])
def test_a_large_file_takes_no_memory_but_what_is_converted(tmp_path, dtype, peak, held):
    path = tmp_path / "model.pth"
    torch.save({f"k{index}": torch.full((5_000_000,), 0.5, dtype=dtype) for index in range(32 // dtype.itemsize)}, path)
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], cwd=ROOT, capture_output=True, check=True)
    found = [int(number) / path.stat().st_size for number in done.stdout.split()]
    assert found[0] < peak and found[1] < held, found
