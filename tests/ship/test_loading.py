# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a module: wrappers taken off, keys that do not fit listed, options of the other task refused."""

import pytest
import torch

from segship.errors import BackendUnavailable, CheckpointError, ExportError
from segship.ship.families import family_module, graphs_module
from segship.ship.loading import load_model
from segship.ship.options import ExportOptions
from segship.ship.weights import Weights
from tests.oracle import SMALL_VIT
from tests.small_models import save_checkpoint


@pytest.mark.parametrize("wrap", [lambda state: {"model": state}, lambda state: {"state_dict": state, "epoch": 3}])
def test_wrapped_checkpoint_loads_and_says_so(tmp_path, wrap):
    model = load_model(save_checkpoint(tmp_path / "wrapped.pth", wrap=wrap))
    assert model.config == SMALL_VIT
    assert model.changes


def test_checkpoint_that_does_not_fit_lists_the_keys(tmp_path):
    def without_a_key(state):
        return {name: tensor for name, tensor in state.items() if name != "mask_decoder.iou_token.weight"}

    with pytest.raises(CheckpointError, match="mask_decoder.iou_token.weight"):
        load_model(save_checkpoint(tmp_path / "broken.pth", wrap=without_a_key))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"sam": state, "params": {"lr": 1}},
        lambda state: [state],
        lambda state: (state, {"epoch": 3}),
        lambda state: {f"base_model.model.{name}": tensor for name, tensor in state.items()},
        lambda state: {**{f"module.{name}": tensor for name, tensor in state.items()}, "n_averaged": torch.tensor(3)},
        lambda state: {**state, "pixel_mean": torch.tensor([[[123.675]], [[116.28]], [[103.53]]])},
    ],
)
def test_wrappings_of_any_name_are_taken_off(tmp_path, wrap):
    model = load_model(save_checkpoint(tmp_path / "wrapped.pth", wrap=wrap))
    assert model.config == SMALL_VIT and model.changes


def test_pixels_that_are_normalised_otherwise_are_refused(tmp_path):
    path = save_checkpoint(tmp_path / "a.pth", wrap=lambda state: {**state, "pixel_std": torch.full((3,), 0.225)})
    with pytest.raises(
        CheckpointError, match=r"pixel_std is \[0.225, 0.225, 0.225\], and models of this layout"
    ) as caught:
        load_model(path)
    assert caught.value.code == "unsupported_architecture"


def test_the_family_is_found_and_its_task_told(small_checkpoint, small_semask_checkpoint):
    promptable, semantic = load_model(small_checkpoint), load_model(small_semask_checkpoint)
    assert (promptable.family, promptable.task) == ("sam", "promptable")
    assert (semantic.family, semantic.task) == ("semask", "semantic")


def test_another_image_size_is_a_change(small_checkpoint):
    model = load_model(small_checkpoint, ExportOptions(image_size=96))
    assert (model.config.image_size, model.module.config.image_size) == (96, 96)
    assert model.changes[0] == "image size 96 instead of 128"


def test_options_of_the_other_task_are_refused(small_checkpoint, small_semask_checkpoint):
    with pytest.raises(ExportError, match="is a promptable model; leave out semantic_window") as caught:
        load_model(small_checkpoint, ExportOptions(semantic_window="all"))
    assert caught.value.code == "other_family"
    with pytest.raises(ExportError, match="is a semantic model; leave out image_size") as caught:
        load_model(small_semask_checkpoint, ExportOptions(image_size=96))
    assert caught.value.code == "other_family"
    with pytest.raises(ExportError, match="is a semantic model, and contract official belongs to prom") as caught:
        load_model(small_semask_checkpoint, ExportOptions(contract="official"))
    assert caught.value.code == "other_family"


@pytest.mark.parametrize("version", ["2.9.1", "2.9.1+cpu", "1.13.1", "unknown"])
def test_an_old_torch_is_refused(small_checkpoint, monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(BackendUnavailable, match=r"2.10 or newer is needed; pip install") as refusal:
        load_model(small_checkpoint)
    assert refusal.value.code == "torch_too_old" and version in str(refusal.value)


def test_a_model_is_its_weights_and_has_their_memory(small_checkpoint):
    model = load_model(small_checkpoint)
    assert isinstance(model, Weights) and model.verbs is family_module("sam") and model.networks is graphs_module("sam")
    assert all(tensor.data_ptr() == model.state[name].ctypes.data for name, tensor in model.module.state_dict().items())
