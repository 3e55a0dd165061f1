# SPDX-License-Identifier: Apache-2.0
"""From files to tensors."""

import hashlib
import os
import pickle
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from segship.catalog import KNOWN_CHECKPOINTS
from segship.errors import BackendUnavailable, CheckpointError
from segship.ship.checkpoints import reading as module
from segship.ship.checkpoints.reading import load_state, read_checkpoint
from segship.ship.families.sam.model import build_sam
from segship.ship.families.sam.recognise import recognise
from tests.oracle import SMALL_VIT, seeded_weights

ROOT = Path(__file__).parents[2]


def weights():
    return seeded_weights(build_sam(SMALL_VIT))


def same(state, expected):
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


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
    config = recognise({name: tuple(tensor.shape) for name, tensor in state.items()})
    with torch.device("meta"):
        sam = build_sam(config)
    load_state(sam, state)
    assert same(sam.state_dict(), weights())


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
    dtypes = {name: tensor.dtype for name, tensor in checkpoint.state_dict.items()}
    assert dtypes == {
        **dict.fromkeys(["half", "brain", "double"], torch.float32),
        "count": torch.int64,
        "flag": torch.bool,
    }
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
    assert all(tensor.is_contiguous() and not tensor.requires_grad for tensor in state.values())


def test_a_large_file_is_mapped_with_the_same_result(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAPPED_BYTES", 0)
    torch.save(weights(), tmp_path / "model.pth")
    assert same(read_checkpoint(tmp_path / "model.pth").state_dict, weights())


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


def test_what_the_loader_refuses_stays_refused(tmp_path, monkeypatch):
    def refuse_all(*_, **__):
        raise RuntimeError("invalid header")

    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(safetensors.torch, "load_file", refuse_all)
    refuse(tmp_path / "model.safetensors", "invalid header", "loader_refused")


def test_a_file_that_means_two_things_is_refused(tmp_path, monkeypatch):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    for other in ({"weight": torch.ones(3)}, {"other": torch.ones(2)}, {"weight": torch.ones(2).half()}):
        monkeypatch.setattr(safetensors.torch, "load_file", lambda *_, other=other, **__: other)
        refuse(tmp_path / "model.safetensors", "crafted", "ambiguous_checkpoint")


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


@pytest.mark.parametrize("version", ["2.9.1", "2.9.1+cpu", "1.13.1", "unknown"])
def test_an_old_torch_is_refused(tmp_path, monkeypatch, version):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pth")
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__=version))
    with pytest.raises(BackendUnavailable, match=r"2.10 or newer is needed; pip install") as refusal:
        read_checkpoint(tmp_path / "model.pth")
    assert refusal.value.code == "torch_too_old" and version in str(refusal.value)


@pytest.mark.parametrize(("name", "file"), [("torch", "model.pth"), ("safetensors", "model.safetensors")])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name, file):
    save = safetensors.torch.save_file if name == "safetensors" else torch.save
    save({"weight": torch.ones(2)}, tmp_path / file)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.torch", None)
    with pytest.raises(BackendUnavailable, match=r"segship\[export\]") as refusal:
        read_checkpoint(tmp_path / file)
    assert refusal.value.code == f"{name}_missing"


def test_importing_and_describing_load_no_torch(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pth")
    code = (
        "import sys; from segship.ship.describe import describe_checkpoint\n"
        "from segship.ship.checkpoints.reading import read_checkpoint, load_state\n"
        f"describe_checkpoint({str(tmp_path / 'model.pth')!r})\n"
        "sys.exit('torch' in sys.modules or 'safetensors' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
