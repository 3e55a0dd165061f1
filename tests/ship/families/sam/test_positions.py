# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from segship.errors import CheckpointError
from segship.ship.families.sam.family import change_image_size
from segship.ship.families.sam.model import build_sam
from segship.ship.loading import load_model, load_state
from segship.ship.options import ExportOptions
from tests.oracle import SMALL_VIT, as_arrays, build_reference, seeded_weights, with_image_size


def test_same_size_changes_nothing():
    state = as_arrays(seeded_weights(build_sam(SMALL_VIT)))
    config, same, changes = change_image_size(SMALL_VIT, state, SMALL_VIT.image_size)
    assert config == SMALL_VIT and changes == ()
    assert all(same[name] is state[name] for name in state)


def test_resized_tables_load_and_every_change_is_named():
    state = as_arrays(seeded_weights(build_sam(SMALL_VIT)))
    config, resized, changes = change_image_size(SMALL_VIT, state, 192)
    load_state(build_sam(config), resized)
    assert changes[0] == "image size 192 instead of 128"
    assert {change.split(" ")[0] for change in changes[1:]} == {
        "image_encoder.pos_embed",
        "image_encoder.blocks.1.attn.rel_pos_h",
        "image_encoder.blocks.1.attn.rel_pos_w",
    }


def test_window_blocks_keep_their_tables():
    state = as_arrays(seeded_weights(build_sam(SMALL_VIT)))
    _, resized, _ = change_image_size(SMALL_VIT, state, 192)
    assert resized["image_encoder.blocks.0.attn.rel_pos_h"] is state["image_encoder.blocks.0.attn.rel_pos_h"]


@pytest.mark.parametrize("size", [0, 8, 100])
def test_size_off_the_stride_is_refused_with_one_that_fits(size):
    state = as_arrays(seeded_weights(build_sam(SMALL_VIT)))
    with pytest.raises(CheckpointError, match=f"image size {size} .*multiples of 16"):
        change_image_size(SMALL_VIT, state, size)


def test_a_position_table_resized_alone_runs_as_the_reference_runs_it(tmp_path):
    """The reference resizes the tables of relative positions each time that they do not fit the grid."""
    larger = build_reference(with_image_size(SMALL_VIT, 192))
    state = dict(seeded_weights(build_sam(SMALL_VIT)))
    tables = {name: state[name] for name in state if ".blocks.1.attn.rel_pos" in name}
    grid = torch.randn(1, 12, 12, 32, generator=torch.Generator().manual_seed(3))
    torch.save({**state, "image_encoder.pos_embed": grid}, tmp_path / "model.pth")
    for name, table in tables.items():
        setattr(larger.image_encoder.blocks[1].attn, name.rpartition(".")[2], torch.nn.Parameter(table))
    larger.load_state_dict({**state, "image_encoder.pos_embed": grid})
    model = load_model(tmp_path / "model.pth")
    assert (model.config.image_size, model.config.encoder.global_attention_blocks) == (192, (1,))
    assert [change.split(" ")[0] for change in model.changes] == list(tables)
    image = torch.randn(1, 3, 192, 192, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        assert torch.allclose(model.module.image_encoder(image), larger.image_encoder(image), atol=1e-5)
    again = load_model(tmp_path / "model.pth", ExportOptions(image_size=128))
    assert again.changes[0] == "image size 128 instead of 192"
    assert all(torch.equal(again.module.state_dict()[name], table) for name, table in tables.items())
