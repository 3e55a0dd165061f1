# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from segship.errors import CheckpointError
from segship.ship.families.sam.model import build_sam, change_image_size
from tests.oracle import SMALL_VIT, seeded_weights


def test_same_size_changes_nothing():
    state = seeded_weights(build_sam(SMALL_VIT))
    config, same, changes = change_image_size(SMALL_VIT, state, SMALL_VIT.image_size)
    assert config == SMALL_VIT and changes == ()
    assert all(same[name] is state[name] for name in state)


def test_resized_tables_load_and_every_change_is_named():
    state = seeded_weights(build_sam(SMALL_VIT))
    config, resized, changes = change_image_size(SMALL_VIT, state, 192)
    build_sam(config).load_state_dict(resized, strict=True)
    assert changes[0] == "image size 192 instead of 128"
    assert {change.split(" ")[0] for change in changes[1:]} == {
        "image_encoder.pos_embed",
        "image_encoder.blocks.1.attn.rel_pos_h",
        "image_encoder.blocks.1.attn.rel_pos_w",
    }


def test_window_blocks_keep_their_tables():
    state = seeded_weights(build_sam(SMALL_VIT))
    _, resized, _ = change_image_size(SMALL_VIT, state, 192)
    assert torch.equal(resized["image_encoder.blocks.0.attn.rel_pos_h"], state["image_encoder.blocks.0.attn.rel_pos_h"])


@pytest.mark.parametrize("size", [0, 8, 100])
def test_size_off_the_stride_is_refused_with_one_that_fits(size):
    state = seeded_weights(build_sam(SMALL_VIT))
    with pytest.raises(CheckpointError, match=f"image size {size} .*multiples of 16"):
        change_image_size(SMALL_VIT, state, size)
