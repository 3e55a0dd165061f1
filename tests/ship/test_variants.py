# SPDX-License-Identifier: Apache-2.0
"""Every variant of every encoder against the plain module: the same function of the same weights."""

from dataclasses import replace

import pytest
import torch

from segship.errors import ExportError
from segship.ship.families.layers import conv_with_norm
from segship.ship.families.sam.config import SAM_ARCHITECTURES, HybridConfig, SamConfig, TinyVitConfig
from segship.ship.families.sam.model import build_encoder
from segship.ship.variants import PLAIN, VARIANTS, EncoderVariant, apply_variant, find_variant
from tests.oracle import SMALL_VIT, seeded_weights

# Sides of 11 cells: no multiple of any window, and odd, so that every padding and every last tile is a ragged one.
IMAGE_SIZE = 176
SMALL_TINY_VIT = TinyVitConfig(
    embed_dims=(16, 16, 32, 32), depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_sizes=(3, 3, 5, 3)
)
SMALL_HYBRID = HybridConfig(stem_dims=(8, 12, 16), stem_blocks=(0, 1, 1), embed_dim=24, depth=2, num_heads=3)
SMALL = {
    "vit": replace(SMALL_VIT, image_size=IMAGE_SIZE),
    "vit with windows larger than the grid": replace(
        SMALL_VIT, encoder=replace(SMALL_VIT.encoder, window_size=14), image_size=IMAGE_SIZE
    ),
    "tiny_vit": SamConfig("custom", SMALL_TINY_VIT, image_size=IMAGE_SIZE, embedding_channels=16),
    "hybrid": SamConfig("custom", SMALL_HYBRID, image_size=IMAGE_SIZE, embedding_channels=16),
}
# Each switch of a variant by itself, so that a mistake in one is not hidden by another.
SWITCHES = {
    "one row a tile": EncoderVariant("x", query_rows_per_tile=1),
    "ragged last tile": EncoderVariant("x", query_rows_per_tile=4),
    "one head a tile": EncoderVariant("x", heads_per_tile=1),
    "rows and heads": EncoderVariant("x", query_rows_per_tile=5, heads_per_tile=1),
    "one bias": EncoderVariant("x", one_bias=True),
    "padding not projected": EncoderVariant("x", project_padding=False),
    "separate projections": EncoderVariant("x", separate_projections=True),
    "flat tokens": EncoderVariant("x", flat_tokens=True),
    "batch norms folded": EncoderVariant("x", fold_batch_norms=True),
    "fused attention": EncoderVariant("x", fused_attention=True),
    "fused attention in tiles": EncoderVariant("x", query_rows_per_tile=4, heads_per_tile=1, fused_attention=True),
}
CHOICES = {**SWITCHES, **{f"target {name}": variant for name, variant in VARIANTS.items()}}


def build(config, dtype):
    encoder = build_encoder(config).eval()
    encoder.load_state_dict(seeded_weights(encoder))
    return encoder.to(dtype)


def difference(expected, actual):
    return float((expected - actual).abs().max() / expected.abs().max())


def image(dtype, size=IMAGE_SIZE):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("architecture", SMALL)
@torch.inference_mode()
def test_every_variant_equals_the_plain_module(architecture, dtype, bar):
    encoder = build(SMALL[architecture], dtype)
    expected = encoder(image(dtype))
    assert float(expected.std()) > 0.01
    for name, variant in CHOICES.items():
        apply_variant(encoder, variant)
        assert difference(expected, encoder(image(dtype))) <= bar, name


@pytest.mark.parametrize("architecture", SMALL)
def test_variants_change_neither_parameters_nor_their_names(architecture):
    encoder = build(SMALL[architecture], torch.float32)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    for variant in CHOICES.values():
        apply_variant(encoder, variant)
        with torch.inference_mode():
            encoder(image(torch.float32))
        after = encoder.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_padded_keys_are_the_bias_of_qkv_whichever_side_the_padding_is_on():
    """With another bias, another result: a variant that masked the padding, or padded with zeros, would not move."""
    encoder = build(SMALL["vit"], torch.float64)
    apply_variant(encoder, find_variant("onnxruntime"))
    with torch.inference_mode():
        expected = encoder(image(torch.float64))
        apply_variant(encoder, PLAIN)
        for block in encoder.blocks:
            block.attn.qkv.bias += 1.0
        moved = encoder(image(torch.float64))
        apply_variant(encoder, find_variant("onnxruntime"))
        assert difference(moved, encoder(image(torch.float64))) <= 1e-9
    assert difference(expected, moved) > 1e-3


@torch.inference_mode()
def test_scores_are_never_larger_than_a_tile(monkeypatch):
    encoder = build(SMALL["vit"], torch.float32)
    apply_variant(encoder, EncoderVariant("x", query_rows_per_tile=2, heads_per_tile=1))
    sizes, softmax = [], torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda self, dim: sizes.append(self.shape) or softmax(self, dim))
    encoder(image(torch.float32))
    grid = 11
    assert (2, 1, 2 * grid, grid * grid) in sizes
    assert all(shape[1] == 1 and shape[2] <= 2 * grid for shape in sizes)


@torch.inference_mode()
def test_batch_norm_in_its_convolution():
    conv, norm = torch.nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False).double(), torch.nn.BatchNorm2d(6).double().eval()
    norm.load_state_dict(seeded_weights(norm))
    norm.running_mean.add_(0.3)
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    assert difference(norm(conv(x)), conv_with_norm(x, conv, norm)) <= 1e-12


def test_norms_are_not_folded_while_they_learn():
    encoder = build(SMALL["hybrid"], torch.float32).train()
    apply_variant(encoder, find_variant("torch"))
    before = encoder.stem[0].down[1].running_mean.clone()
    encoder(image(torch.float32))
    assert not torch.equal(before, encoder.stem[0].down[1].running_mean)


def test_gradients_flow_through_every_variant():
    encoder = build(SMALL["vit"], torch.float64)
    gradients = {}
    for name in ("plain", "onnxruntime", "torch"):
        apply_variant(encoder, find_variant(name))
        encoder.zero_grad()
        encoder(image(torch.float64)).square().mean().backward()
        gradients[name] = torch.cat([parameter.grad.flatten() for parameter in encoder.parameters()])
    assert difference(gradients["plain"], gradients["onnxruntime"]) <= 1e-9
    assert difference(gradients["plain"], gradients["torch"]) <= 1e-9


def test_every_target_is_named_as_its_variant():
    assert all(find_variant(name).name == name for name in VARIANTS)


def test_unknown_target_lists_the_known_ones():
    with pytest.raises(ExportError, match=r"no encoder variant for the target 'tpu'; accepted are plain, onnxruntime"):
        find_variant("tpu")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["vit_b", "vit_t", "tiny"])
@torch.inference_mode()
def test_every_variant_equals_the_plain_module_at_full_size(architecture):
    config = SAM_ARCHITECTURES[architecture]
    encoder = build(config, torch.float32)
    x = image(torch.float32, config.image_size)[:1]
    expected = encoder(x)
    for name, variant in VARIANTS.items():
        apply_variant(encoder, variant)
        assert difference(expected, encoder(x)) <= 1e-4, name
