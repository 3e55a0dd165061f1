# SPDX-License-Identifier: Apache-2.0
"""The decoder with shared image-side work against the plain one, on the same seeded weights."""

from dataclasses import replace

import pytest
import torch

from segship.ship.families.sam.config import SAM_ARCHITECTURES, VitConfig
from segship.ship.families.sam.model import MaskDecoderGraph, build_sam
from segship.ship.families.sam.shared_decoder import ImageSideGraph, SelectiveDecoderGraph, SharedDecoderGraph
from segship.ship.variants import PLAIN, VARIANTS, apply_variant
from segship.spec import image_side_spec, selective_decoder_spec, shared_decoder_spec
from tests.oracle import SMALL_VIT, seeded_weights, with_image_size

# Decoders of the published width, of tiny's, and with narrow heads; grids of 8, 16, 24 and 6 cells.
NO_ENCODER = VitConfig(embed_dim=16, depth=1, num_heads=1, global_attention_blocks=())
CONFIGS = {
    "small": SMALL_VIT,
    "vit_b": replace(SAM_ARCHITECTURES["vit_b"], encoder=NO_ENCODER, image_size=256),
    "tiny": SAM_ARCHITECTURES["tiny"],
    "odd grid": with_image_size(SMALL_VIT, 96),
}
# Coordinates are seeded; a row is one object: a click, two clicks, a box, a box and a click, and one place alone.
LABELS = {
    "one click": [[1, -1]],
    "many places": [[1, 0, 1, 1, 0, 0, 1, 1, -1]],
    "ragged": [[1, -1, -2, -2], [1, 0, -1, -2], [2, 3, -2, -2], [0, 2, 3, -2], [1, -2, -2, -2]],
    "empty place first": [[-2, 1, -1], [1, -2, -1]],
    "no prompt at all": [[-2, -2], [1, -1]],
}


def make_call(name, labels, dtype):
    """Return a model, an embedding, points and labels; biases are not zero, as they are in trained models."""
    config = CONFIGS[name]
    sam = build_sam(config)
    sam.load_state_dict(seeded_weights(sam))
    generator = torch.Generator().manual_seed(4)
    for parameter in sam.mask_decoder.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    sam.to(dtype)
    channels, grid = config.embedding_channels, config.embedding_size
    embedding = torch.randn(1, channels, grid, grid, generator=generator).to(dtype)
    codes = torch.tensor(labels, dtype=dtype)
    coords = (torch.rand(*codes.shape, 2, generator=generator) * config.image_size).to(dtype)
    return sam, embedding, coords, codes


def plain_decode(sam, embedding, coords, codes):
    side = 4 * embedding.shape[2]
    no_mask = torch.zeros(len(codes), 1, side, side, dtype=embedding.dtype)
    return MaskDecoderGraph(sam)(embedding, coords, codes, no_mask, torch.zeros(len(codes), dtype=embedding.dtype))


def shared_decode(sam, embedding, coords, codes):
    return SharedDecoderGraph(sam)(*ImageSideGraph(sam)(embedding), coords, codes)


def selective_decode(sam, embedding, coords, codes, thresholds, rows=None, columns=None):
    """Decode with a threshold for each score, and masks of the first rows and columns of the grid."""
    *side, upscaled = ImageSideGraph(sam)(embedding)
    cells = upscaled.unflatten(1, tuple(embedding.shape[2:]))[:, :rows, :columns]
    return SelectiveDecoderGraph(sam)(*side, cells, coords, codes, thresholds)


def difference(expected, actual):
    """Largest difference as a share of the expected tensor's largest magnitude."""
    assert expected.shape == actual.shape
    return float((expected - actual).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_equals_the_plain_decoder(name, labels, dtype, bar):
    call = make_call(name, LABELS[labels], dtype)
    plain = plain_decode(*call)
    # A variant for each, since they differ in nothing else.
    for variant in (PLAIN, VARIANTS["openvino"]) if name in ("small", "odd grid") else (VARIANTS["openvino"],):
        apply_variant(call[0], variant)
        for expected, actual in zip(plain, shared_decode(*call), strict=True):
            assert difference(expected, actual) <= bar


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("kept", ["all", "some", "one", "none", "equal to a score"])
@pytest.mark.parametrize("name", ["small", "odd grid"])
@torch.inference_mode()
def test_selected_masks_are_those_of_the_plain_decoder(name, kept, dtype, bar):
    call = make_call(name, LABELS["ragged"], dtype)
    scores, masks = plain_decode(*call)
    own = shared_decode(*call)[0]
    infinity = torch.tensor(torch.inf, dtype=dtype)
    thresholds = {
        "all": torch.full_like(own, -torch.inf),
        # Between two scores, so that rounding decides nothing.
        "some": own.flatten().sort().values[9:11].mean().expand_as(own),
        "one": torch.where(own == own[3].max(), -infinity, infinity),
        "none": torch.full_like(own, torch.inf),
        # What equals its threshold does not pass.
        "equal to a score": own,
    }[kept]
    ious, pairs, found = selective_decode(*call, thresholds)
    assert difference(scores, ious) <= bar
    assert pairs.tolist() == (own > thresholds).nonzero().tolist()
    assert len(pairs) == {"all": 20, "some": 10, "one": 1, "none": 0, "equal to a score": 0}[kept]
    assert found.shape == (len(pairs), *masks.shape[2:])
    if len(pairs):
        assert (masks[pairs[:, 0], pairs[:, 1]] - found).abs().max() <= bar * masks.abs().max()


@pytest.mark.parametrize(("rows", "columns"), [(5, None), (None, 3), (4, 6), (1, 1)])
@torch.inference_mode()
def test_cells_that_were_left_out_change_no_other(rows, columns):
    call = make_call("small", LABELS["ragged"], torch.float64)
    whole = shared_decode(*call)[1]
    _, pairs, found = selective_decode(*call, torch.full((5, 4), -torch.inf), rows, columns)
    height, width = 4 * (rows or 8), 4 * (columns or 8)
    assert found.shape[1:] == (height, width)
    expected = whole[pairs[:, 0], pairs[:, 1], :height, :width]
    assert (expected - found).abs().max() <= 1e-12 * whole.abs().max()


@torch.inference_mode()
def test_the_comparison_would_see_a_wrong_term():
    sam, embedding, coords, codes = make_call("small", LABELS["ragged"], torch.float64)
    expected = plain_decode(sam, embedding, coords, codes)[1]
    spec = image_side_spec(SMALL_VIT.geometry).outputs
    for index, tensor in enumerate(spec):
        side = list(ImageSideGraph(sam)(embedding))
        side[index] = side[index] * 1.01
        assert difference(expected, SharedDecoderGraph(sam)(*side, coords, codes)[1]) > 1e-9, tensor.name


@torch.inference_mode()
def test_empty_places_change_nothing():
    sam, embedding, coords, codes = make_call("tiny", LABELS["one click"], torch.float64)
    padded = torch.cat([codes, torch.full((1, 3), -2.0, dtype=torch.float64)], dim=1)
    far = torch.cat([coords, torch.full((1, 3, 2), 1e4, dtype=torch.float64)], dim=1)
    alone, among = shared_decode(sam, embedding, coords, codes), shared_decode(sam, embedding, far, padded)
    for expected, actual in zip(alone, among, strict=True):
        assert difference(expected, actual) <= 1e-12


@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_tensors_have_the_shapes_of_the_contract(name):
    sam, embedding, coords, codes = make_call(name, LABELS["ragged"], torch.float32)
    geometry = CONFIGS[name].geometry
    side = ImageSideGraph(sam)(embedding)
    assert [tuple(tensor.shape) for tensor in side] == [tensor.shape for tensor in image_side_spec(geometry).outputs]
    assert len(shared_decoder_spec(geometry).inputs) == len(side) + 2
    assert len(selective_decoder_spec(geometry).inputs) == len(side) + 3


@torch.inference_mode()
def test_a_token_that_others_outshine_by_far_keeps_its_weight_finite():
    sam, embedding, coords, codes = make_call("small", LABELS["ragged"], torch.float32)
    for layer in sam.mask_decoder.transformer.layers:
        layer.cross_attn_image_to_token.k_proj.weight.mul_(300.0)
    expected, actual = plain_decode(sam, embedding, coords, codes)[1], shared_decode(sam, embedding, coords, codes)[1]
    assert torch.isfinite(actual).all()
    assert difference(expected, actual) <= 1e-3
