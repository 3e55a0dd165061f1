# SPDX-License-Identifier: Apache-2.0
"""What training programs save beside weights: described, never built, and the tensors load."""

import argparse
import datetime
import decimal
import fractions
import pathlib
import subprocess
import sys
import types
import uuid
import warnings
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch

from segship.errors import CheckpointError, UnsafeCheckpoint
from segship.ship.checkpoints.pickles import SAVE_AGAIN
from segship.ship.checkpoints.reading import read_checkpoint
from segship.ship.checkpoints.survey import survey_checkpoint
from segship.ship.loading import load_model
from tests.small_models import save_checkpoint, small_sam

WEIGHTS = {"image_encoder.a": torch.arange(6.0).reshape(2, 3)}
HARMLESS = {
    "a scalar of numpy": np.float32(0.5),
    "an array of numpy": np.arange(5),
    "an array of texts": np.array(["road", "tree"]),
    "a dtype of numpy": np.dtype("f4"),
    "a random state": np.random.RandomState(0).get_state(),
    "a generator": np.random.default_rng(0),
    "options": argparse.Namespace(lr=1e-4, out=pathlib.PosixPath("out")),
    "a date": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "times": [datetime.date(2026, 1, 2), datetime.time(3), datetime.timedelta(4)],
    "a path": pathlib.PosixPath("weights/vit_b.pth"),
    "a default dict": defaultdict(list, {"losses": [1.0]}),
    "sets": [{1, 2}, frozenset("ab"), set()],
    "a complex number": 1j,
    "bytes": [b"ab", bytearray(b"cd")],
    "keys of tuples": {(0, 1): "a", ("b", (2, 3)): "c"},
    "others": [
        deque([1], 3),
        types.SimpleNamespace(a=1),
        decimal.Decimal(1),
        fractions.Fraction(1, 2),
        uuid.UUID(int=1),
    ],
    "ranges": [range(3), slice(1, 2), Counter("ab"), OrderedDict(a=1), Ellipsis is None],
    "a version": torch.__version__,
    "devices": [torch.device("cpu"), torch.float16, torch.Size([1])],
}


def save(path, value, protocol=2):
    torch.save({"state_dict": WEIGHTS, "epoch": 3, "more": value}, path, pickle_protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", HARMLESS)
def test_what_carries_no_weights_is_left_out_and_the_tensors_load(tmp_path, kind, protocol):
    checkpoint = read_checkpoint(save(tmp_path / "model.pth", HARMLESS[kind], protocol))
    assert np.array_equal(checkpoint.state_dict["image_encoder.a"], WEIGHTS["image_encoder.a"])
    (note,) = checkpoint.notes
    assert note.startswith("taken from 'state_dict'; left out 'epoch', 'more'")


def test_what_mmengine_and_lightning_save_is_passed_over(tmp_path, monkeypatch):
    """Objects with a state, dicts of an own class and methods of harmless classes, of packages that are not here."""
    for module, name, base in (
        ("mmengine.logging.history_buffer", "HistoryBuffer", object),
        ("lightning.fabric.utilities.data", "AttributeDict", dict),
        ("omegaconf.dictconfig", "DictConfig", object),
    ):
        kind = type(name, (base,), {"__module__": module, "mean": lambda self: 0})
        kind.mean.__qualname__, kind.mean.__module__ = f"{name}.mean", module
        for end in [place for place, letter in enumerate(module) if letter == "."]:
            monkeypatch.setitem(sys.modules, module[:end], types.ModuleType(module[:end]))
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: kind}))
    buffer = sys.modules["mmengine.logging.history_buffer"].HistoryBuffer()
    buffer.log, buffer.methods = np.ones(3), {"mean": type(buffer).mean}
    options = sys.modules["lightning.fabric.utilities.data"].AttributeDict(lr=1e-4, path=pathlib.PosixPath("a"))
    config = sys.modules["omegaconf.dictconfig"].DictConfig()
    config.content = {"lr": 1}
    save(tmp_path / "model.pth", {"message_hub": {"log_scalars": {"loss": buffer}}, "hparams": options, "cfg": config})
    assert set(read_checkpoint(tmp_path / "model.pth").state_dict) == set(WEIGHTS)


@pytest.mark.parametrize("kind", HARMLESS)
def test_it_may_stand_beside_the_tensors_and_its_place_is_noted(tmp_path, kind):
    torch.save({**WEIGHTS, "args": HARMLESS[kind]}, tmp_path / "model.pth")
    (note,) = survey_checkpoint(tmp_path / "model.pth").notes
    assert note.startswith("left out 'args'")


def test_the_type_of_what_was_not_built_is_said(tmp_path):
    torch.save({**WEIGHTS, "args": argparse.Namespace(lr=1), "seen": {1, 2}}, tmp_path / "model.pth")
    note = "left out 'args' (argparse.Namespace), 'seen' (builtins.set)"
    assert survey_checkpoint(tmp_path / "model.pth").notes == (note,)


@pytest.mark.parametrize(
    ("dtype", "becomes"),
    [
        (torch.float8_e4m3fn, torch.float32),
        (torch.float8_e5m2, torch.float32),
        (torch.uint16, torch.uint16),
        (torch.uint32, torch.uint32),
        (torch.complex64, torch.complex64),
        (torch.complex128, torch.complex128),
    ],
)
def test_tensors_of_rare_dtypes_are_read_and_floats_become_float32(tmp_path, dtype, becomes):
    values = torch.tensor([[1.0, 2.0], [0.5, 4.0]]).to(dtype)
    torch.save({**WEIGHTS, "image_encoder.b": values}, tmp_path / "model.pth")
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    found = torch.from_numpy(checkpoint.state_dict["image_encoder.b"])
    assert found.dtype == becomes and torch.equal(found, values.to(becomes))
    assert str(dtype).removeprefix("torch.") in checkpoint.stored_dtypes


def test_attributes_of_tensors_and_parameters_are_left_out(tmp_path):
    tensor, parameter = torch.arange(4.0), torch.nn.Parameter(torch.arange(3.0))
    tensor.group = parameter.group = {"decay": False}
    torch.save({**WEIGHTS, "tensor": tensor, "parameter": parameter}, tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth").state_dict
    assert state["tensor"].tolist() == [0, 1, 2, 3] and state["parameter"].tolist() == [0, 1, 2]


def strange():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            ("quantised", torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)),
            ("sparse", torch.eye(2).to_sparse()),
            ("sparse", torch.eye(2).to_sparse_csr()),
            ("meta", torch.ones(2, 2, device="meta")),
        ]


@pytest.mark.parametrize(("kind", "value"), strange())
def test_tensors_that_cannot_become_weights_are_left_out_and_named(tmp_path, kind, value):
    torch.save({**WEIGHTS, "mask_decoder.b": value}, tmp_path / "model.pth")
    checkpoint = read_checkpoint(tmp_path / "model.pth")
    assert set(checkpoint.state_dict) == set(WEIGHTS) and checkpoint.unusable == {"mask_decoder.b": kind}
    assert checkpoint.notes == (f"1 tensors cannot become weights and were left out: mask_decoder.b ({kind})",)
    assert survey_checkpoint(tmp_path / "model.pth").tensors["mask_decoder.b"].shape == (2, 2)


def test_a_model_refuses_them_by_name_only_where_it_needs_them(tmp_path):
    quantised = strange()[0][1]
    assert load_model(save_checkpoint(tmp_path / "a.pth", wrap=lambda state: {"model": state, "more": quantised}))
    name = "mask_decoder.iou_token.weight"
    path = save_checkpoint(tmp_path / "b.pth", wrap=lambda state: {**state, name: state[name].to_sparse()})
    with pytest.raises(
        CheckpointError, match=rf"1 missing: {name}.*become weights: {name} \(sparse\); save them as"
    ) as caught:
        load_model(path)
    assert caught.value.code == "state_mismatch"
    path = save_checkpoint(tmp_path / "c.pth", wrap=lambda state: {**state, name: state[name].to(torch.complex64)})
    with pytest.raises(CheckpointError, match=rf"{name} \(1, 32\) complex64 instead of"):
        load_model(path)


class Trainer:
    """Of a kind that nobody knows."""

    def __init__(self):
        self.state = 1


@pytest.mark.parametrize("contents", [lambda sam: sam, lambda sam: {"model": sam.state_dict(), "trainer": Trainer()}])
def test_what_is_refused_is_saved_again_by_the_line_in_the_message(tmp_path, monkeypatch, contents):
    torch.save(contents(small_sam()), tmp_path / "OLD.pth")
    with pytest.raises(UnsafeCheckpoint) as refusal:
        load_model(tmp_path / "OLD.pth")
    assert SAVE_AGAIN in str(refusal.value) and "where you trust it" in str(refusal.value)
    monkeypatch.chdir(tmp_path)
    code = SAVE_AGAIN.removeprefix('python -c "').removesuffix('"')
    root = pathlib.Path(__file__).parents[3]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path.append({str(root)!r})\n{code}"], check=True
    )
    assert load_model(tmp_path / "NEW.pth").config == small_sam().config
