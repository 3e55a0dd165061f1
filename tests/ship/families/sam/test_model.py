# SPDX-License-Identifier: Apache-2.0
"""Our promptable model against the reference implementation on the same seeded weights."""

import pytest
import torch

from segship.ship.families.sam.model import ImageEncoderGraph, MaskDecoderGraph, build_sam
from tests.oracle import SMALL_VIT, build_reference, seeded_weights, with_image_size

EMPTY = -2.0


@pytest.fixture(scope="module")
def pair():
    ours, reference = build_sam(SMALL_VIT), build_reference(SMALL_VIT)
    state = seeded_weights(ours)
    ours.load_state_dict(state, strict=True)
    reference.load_state_dict(state, strict=True)
    return ours, reference


def difference(expected, actual):
    """Largest difference as a share of the expected tensor's largest magnitude."""
    return float((expected - actual).abs().max() / expected.abs().max())


@torch.inference_mode()
def test_embedding_equals_the_reference(pair):
    ours, reference = pair
    image = torch.randn(2, 3, SMALL_VIT.image_size, SMALL_VIT.image_size, generator=torch.Generator().manual_seed(1))
    assert difference(reference.image_encoder(image), ImageEncoderGraph(ours)(image)) <= 1e-5


@pytest.mark.parametrize("image_size", [64, 96, 208])
@torch.inference_mode()
def test_other_image_sizes_equal_the_reference_of_that_size(image_size):
    config = with_image_size(SMALL_VIT, image_size)
    ours, reference = build_sam(config), build_reference(config)
    state = seeded_weights(ours)
    ours.load_state_dict(state)
    reference.load_state_dict(state)
    image = torch.randn(1, 3, image_size, image_size)
    assert difference(reference.image_encoder(image), ours.image_encoder(image)) <= 1e-5


@torch.inference_mode()
def test_labels_choose_the_same_bits_as_comparisons_would(pair):
    """Labels are arithmetic in the graphs; the reference compares them."""
    encoder = pair[0].prompt_encoder
    labels = torch.cartesian_prod(*[torch.arange(-2.0, 4.0)] * 3)
    places = torch.rand(*labels.shape, 2, generator=torch.Generator().manual_seed(3)) * SMALL_VIT.image_size
    expected = encoder.pe_layer((places + 0.5) / SMALL_VIT.image_size)
    expected[labels < 0] = 0
    expected[labels == -1] += encoder.not_a_point_embed.weight
    for label, embedding in enumerate(encoder.point_embeddings):
        expected[labels == label] += embedding.weight
    assert torch.equal(encoder.embed_points(places, labels), expected)


PROMPT_FORMS = ["points", "box", "points and box", "mask", "points and mask", "everything"]


def make_prompts(form, objects=3):
    generator = torch.Generator().manual_seed(2)
    side, low_res = SMALL_VIT.image_size, SMALL_VIT.geometry.low_res_size
    points = torch.rand(objects, 2, 2, generator=generator) * side
    labels = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])[:objects]
    boxes = torch.rand(objects, 4, generator=generator) * side
    masks = torch.randn(objects, 1, low_res, low_res, generator=generator)
    has = {"points": "points" in form, "box": "box" in form, "mask": "mask" in form}
    if form == "everything":
        has = dict.fromkeys(has, True)
    return points if has["points"] else None, labels, boxes if has["box"] else None, masks if has["mask"] else None


def as_contract(points, labels, boxes, masks, objects=3, empty_places=0):
    """Write prompts as the decoder's four tensors by the rule of SAM 1, with empty places behind."""
    coords, codes = [torch.zeros(objects, empty_places + 1, 2)], [torch.full((objects, empty_places + 1), EMPTY)]
    if boxes is not None:
        coords.insert(0, boxes.view(objects, 2, 2))
        codes.insert(0, torch.tensor([[2.0, 3.0]]).expand(objects, 2))
    if points is not None:
        padding = boxes is None
        coords.insert(0, torch.cat([points, torch.zeros(objects, int(padding), 2)], dim=1))
        codes.insert(0, torch.cat([labels, torch.full((objects, int(padding)), -1.0)], dim=1))
    low_res = SMALL_VIT.geometry.low_res_size
    given = masks if masks is not None else torch.zeros(objects, 1, low_res, low_res)
    flags = torch.full((objects,), float(masks is not None))
    return torch.cat(coords, dim=1), torch.cat(codes, dim=1), given, flags


def reference_decode(reference, embedding, points, labels, boxes, masks):
    encoder = reference.prompt_encoder
    sparse, dense = encoder(points=None if points is None else (points, labels), boxes=boxes, masks=masks)
    return reference.mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )


def embedding_for(seed=3):
    grid, channels = SMALL_VIT.embedding_size, SMALL_VIT.embedding_channels
    return torch.randn(1, channels, grid, grid, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", PROMPT_FORMS)
@torch.inference_mode()
def test_masks_of_every_prompt_form_equal_the_reference(pair, form):
    ours, reference = pair
    prompts, embedding = make_prompts(form), embedding_for()
    masks, scores = reference_decode(reference, embedding, *prompts)
    our_scores, our_masks = MaskDecoderGraph(ours)(embedding, *as_contract(*prompts))
    assert difference(masks, our_masks) <= 1e-4
    assert difference(scores, our_scores) <= 1e-4


@pytest.mark.parametrize("form", PROMPT_FORMS)
@torch.inference_mode()
def test_empty_places_take_part_in_nothing(pair, form):
    decode, embedding = MaskDecoderGraph(pair[0]), embedding_for()
    plain = decode(embedding, *as_contract(*make_prompts(form)))
    padded = decode(embedding, *as_contract(*make_prompts(form), empty_places=6))
    for expected, actual in zip(plain, padded, strict=True):
        assert difference(expected, actual) <= 1e-5


@torch.inference_mode()
def test_many_objects_in_one_call_equal_one_call_each(pair):
    decode, embedding = MaskDecoderGraph(pair[0]), embedding_for()
    tensors = as_contract(*make_prompts("everything"))
    together = decode(embedding, *tensors)
    for index in range(3):
        alone = decode(embedding, *(tensor[index : index + 1] for tensor in tensors))
        for expected, actual in zip(alone, together, strict=True):
            assert difference(expected[0], actual[index]) <= 1e-5


@torch.inference_mode()
def test_each_object_has_its_own_mask_flag(pair):
    decode, embedding = MaskDecoderGraph(pair[0]), embedding_for()
    coords, labels, masks, flags = as_contract(*make_prompts("points and mask"))
    flags[1] = 0.0
    mixed = decode(embedding, coords, labels, masks, flags)[1]
    without = decode(embedding, coords, labels, torch.zeros_like(masks), torch.zeros_like(flags))[1]
    assert difference(without[1], mixed[1]) <= 1e-5
    assert difference(without[0], mixed[0]) > 1e-2
