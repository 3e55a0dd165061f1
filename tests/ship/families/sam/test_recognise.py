# SPDX-License-Identifier: Apache-2.0
"""Architectures from shapes: the published key tables, other sizes, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segship.errors import CheckpointError
from segship.ship import families
from segship.ship.families.sam.config import SAM_ARCHITECTURES, HybridConfig, TinyVitConfig, VitConfig
from segship.ship.families.sam.family import prepare
from segship.ship.families.sam.model import build_sam
from segship.ship.families.sam.recognise import recognise
from segship.ship.options import ExportOptions
from tests.oracle import SMALL_VIT, as_arrays, seeded_weights

# Keys and elements of the published files, buffers left out.
PUBLISHED = {"vit_b": (314, 93_735_472), "vit_l": (482, 312_342_832), "vit_h": (594, 641_090_608)}
PUBLISHED["vit_t"] = (439, 10_130_092)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "gaussian_matrix")


def shapes_of(config):
    with torch.device("meta"):
        model = build_sam(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def refuse(shapes, words, code="unknown_architecture"):
    with pytest.raises(CheckpointError, match=words) as refusal:
        families.recognise(shapes)
    assert refusal.value.code == code
    assert "accepted are SAM" in str(refusal.value)


def published_vit(dim, depth, head_dim, global_blocks):
    """Write down the published image encoder's table independently of our modules."""
    shapes = {
        "pos_embed": (1, 64, 64, dim),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "neck.0.weight": (256, dim, 1, 1),
        "neck.2.weight": (256, 256, 3, 3),
    }
    for norm in ("neck.1", "neck.3"):
        shapes |= {f"{norm}.weight": (256,), f"{norm}.bias": (256,)}
    linears = {
        "attn.qkv": (3 * dim, dim),
        "attn.proj": (dim, dim),
        "mlp.lin1": (4 * dim, dim),
        "mlp.lin2": (dim, 4 * dim),
    }
    for index in range(depth):
        rows = 127 if index in global_blocks else 27
        block = {"attn.rel_pos_h": (rows, head_dim), "attn.rel_pos_w": (rows, head_dim)}
        for name, shape in linears.items():
            block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            block |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize("name", SAM_ARCHITECTURES)
def test_every_architecture_of_the_table_is_recognised(name):
    shapes = shapes_of(SAM_ARCHITECTURES[name])
    assert recognise(shapes) is SAM_ARCHITECTURES[name]
    if name in PUBLISHED:
        elements = sum(torch.Size(shape).numel() for key, shape in shapes.items() if not key.endswith(BUFFERS))
        assert (len(shapes), elements) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_b", (768, 12, 64, (2, 5, 8, 11))),
        ("vit_l", (1024, 24, 64, (5, 11, 17, 23))),
        ("vit_h", (1280, 32, 80, (7, 15, 23, 31))),
    ],
)
def test_the_published_encoder_tables_are_ours_key_for_key(name, sizes):
    ours = {key: shape for key, shape in shapes_of(SAM_ARCHITECTURES[name]).items() if key.startswith("image_encoder.")}
    assert ours == published_vit(*sizes)


def test_a_small_vit_is_recognised_except_for_its_decoder_heads():
    assert recognise(shapes_of(SMALL_VIT)) == replace(SMALL_VIT, decoder_heads=8)


@pytest.mark.parametrize("image_size", [256, 512])
def test_vit_b_at_another_image_size_is_custom(image_size):
    config = replace(SAM_ARCHITECTURES["vit_b"], architecture="custom", image_size=image_size)
    assert recognise(shapes_of(config)) == config


def test_global_blocks_are_the_tables_where_window_and_grid_are_equal():
    config = replace(SAM_ARCHITECTURES["vit_b"], architecture="custom", image_size=14 * 16)
    assert recognise(shapes_of(config)) == config


def test_equal_window_and_grid_of_another_model_count_as_global():
    encoder = replace(SMALL_VIT.encoder, window_size=8)
    found = recognise(shapes_of(replace(SMALL_VIT, encoder=encoder)))
    assert found.encoder.global_attention_blocks == (0, 1, 2)


def test_other_widths_and_patches_are_recognised():
    encoder = VitConfig(48, 4, 3, (0, 3), patch_size=8, window_size=5, mlp_ratio=2.5)
    config = replace(
        SMALL_VIT,
        encoder=encoder,
        image_size=96,
        embedding_channels=64,
        mask_input_channels=8,
        decoder_heads=8,
    )
    assert recognise(shapes_of(config)) == config


def test_a_ratio_that_rounds_gives_the_same_width_again():
    encoder = replace(SMALL_VIT.encoder, mlp_ratio=0.29)
    shapes = shapes_of(replace(SMALL_VIT, encoder=encoder))
    assert shapes_of(recognise(shapes)) == shapes


SMALL_TINY_VIT = TinyVitConfig(
    (16, 32, 64, 96), (1, 2, 1, 1), (2, 1, 2, 3), (7, 4, 5, 4), mlp_ratio=2.0, mbconv_expand_ratio=3.0, num_classes=5
)


def test_another_tiny_vit_is_recognised_and_told_its_image_size():
    config = replace(SAM_ARCHITECTURES["vit_t"], architecture="custom", encoder=SMALL_TINY_VIT, image_size=512)
    found = recognise(shapes_of(config))
    assert found.image_size == 1024
    state = as_arrays(seeded_weights(build_sam(config)))
    told, kept, changes = prepare(Path("model.pth"), found, state, ExportOptions(image_size=512))
    assert told == config
    # No table of TinyViT depends on the frame.
    assert changes == ("image size 512 instead of 1024",)
    assert all(tensor is state[name] for name, tensor in kept.items()) and list(kept) == list(state)


def test_another_size_of_tiny_is_recognised():
    tiny = SAM_ARCHITECTURES["tiny"]
    encoder = HybridConfig((16, 32, 64), (1, 0, 2), embed_dim=96, depth=2, num_heads=3, mlp_ratio=2.0)
    # Clean-up, edges and thresholds belong to the sizes of tiny itself, not to any encoder of its kind.
    plain = replace(tiny, mask_clean_up=None, mask_edges=None, amg_thresholds=None)
    config = replace(plain, architecture="custom", encoder=encoder, image_size=160)
    assert recognise(shapes_of(config)) == config
    resized = replace(tiny, architecture="custom", image_size=256)
    assert recognise(shapes_of(resized)) == resized


def changed(changes):
    shapes = shapes_of(SMALL_VIT)
    for name, shape in changes.items():
        if shape is None:
            del shapes[name]
        else:
            shapes[name] = shape
    return shapes


E = "image_encoder."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({E + "pos_embed": None}, "tensor image_encoder.pos_embed is missing"),
        ({E + "pos_embed": (1, 8, 4, 32)}, "8 rows and 4 columns"),
        ({E + "pos_embed": (8, 8, 32)}, "has the shape"),
        ({E + "pos_embed": (1, 0, 0, 32)}, "has the shape"),
        ({E + "blocks.1.attn.rel_pos_h": None}, "blocks.1.attn.rel_pos_h is missing"),
        ({E + "blocks.1.attn.rel_pos_h": (9, 16)}, r"attend over \[3, 5\]"),
        ({E + "blocks.1.attn.rel_pos_h": (14, 16)}, "one window size"),
        ({E + "blocks.0.attn.rel_pos_h": (5, 15)}, "no multiple of a head's width of 15"),
        ({E + "blocks.3.x": (1,)}, "blocks.3.attn.rel_pos_h is missing"),
        ({E + "blocks.5.x": (1,)}, "are not 0 to 3"),
        ({E + "neck.0.weight": (64, 32, 1, 1)}, "gives 64 channels and the prompt encoder takes 32"),
        ({"prompt_encoder.no_mask_embed.weight": None}, "no_mask_embed.weight is missing"),
        ({"mask_decoder.transformer.layers.0.mlp.lin1.weight": None}, "lin1.weight is missing"),
    ],
)
def test_odd_shapes_are_named(changes, words):
    refuse(changed(changes), words)


@pytest.mark.parametrize("depth", [1, 3])
def test_a_decoder_of_another_depth_is_refused(depth):
    words = f"the mask decoder has {depth} layers, and 2 are known; accepted are SAM"
    refuse(shapes_of(replace(SMALL_VIT, decoder_depth=depth)), words)


def test_odd_tiny_vit_shapes_are_named():
    shapes = shapes_of(SAM_ARCHITECTURES["vit_t"])
    refuse({**shapes, E + "layers.1.blocks.0.attn.attention_biases": (4, 48)}, "48 places, which is no square")
    refuse(
        {k: v for k, v in shapes.items() if not k.startswith((E + "layers.1", E + "layers.2", E + "layers.3"))},
        "1 stages",
    )


def test_a_missing_classifier_is_left_to_strict_loading():
    shapes = {k: v for k, v in shapes_of(SAM_ARCHITECTURES["vit_t"]).items() if not k.startswith(E + "head.")}
    assert recognise(shapes).architecture == "vit_t"


def test_no_shape_crashes_recognition():
    shapes = shapes_of(SMALL_VIT)
    for name in shapes:
        for shape in ((), (1,), (0,) * 4, (1,) * 8, (2**40, 3), (7, 7, 7, 7)):
            try:
                recognise({**shapes, name: shape})
            except CheckpointError:
                pass
