# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a module: wrappers taken off, keys that do not fit listed, options of the other task refused."""

import pytest

from segship.errors import CheckpointError, ExportError
from segship.ship.loading import load_model
from segship.ship.options import ExportOptions
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


def test_the_family_is_found_and_its_task_told(small_checkpoint, small_semask_checkpoint):
    promptable, semantic = load_model(small_checkpoint), load_model(small_semask_checkpoint)
    assert (promptable.family, promptable.task) == ("sam", "promptable")
    assert (semantic.family, semantic.task) == ("semask", "semantic")


def test_another_image_size_is_a_change(small_checkpoint):
    model = load_model(small_checkpoint, ExportOptions(image_size=96))
    assert (model.config.image_size, model.module.config.image_size) == (96, 96)
    assert model.changes[0] == "image size 96 instead of 128"


def test_options_of_the_other_task_are_refused(small_checkpoint, small_semask_checkpoint):
    with pytest.raises(ExportError, match="is a promptable model; leave out --semantic-window") as caught:
        load_model(small_checkpoint, ExportOptions(semantic_window="all"))
    assert caught.value.code == "other_family"
    with pytest.raises(ExportError, match="is a semantic model; leave out --image-size") as caught:
        load_model(small_semask_checkpoint, ExportOptions(image_size=96))
    assert caught.value.code == "other_family"
    with pytest.raises(ExportError, match="is a semantic model, and --contract official belongs to prom") as caught:
        load_model(small_semask_checkpoint, ExportOptions(contract="official"))
    assert caught.value.code == "other_family"
