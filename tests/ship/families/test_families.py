# SPDX-License-Identifier: Apache-2.0
"""Which family a state dict is of, and what models of no family are told."""

import pytest

from segship.errors import CheckpointError
from segship.ship.families import families, family_module, graphs_module, recognise, recogniser
from tests.small_models import small_sam
from tests.small_semask import SMALL_SEMASK, small_semask


def shapes_of(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def refuse(shapes, words, code="unknown_architecture"):
    with pytest.raises(CheckpointError, match=words) as refusal:
        recognise(shapes)
    assert refusal.value.code == code
    assert "accepted are SAM" in str(refusal.value)


def test_families_are_told_apart():
    sam, semask = shapes_of(small_sam()), shapes_of(small_semask())
    assert families() == ("sam", "semask")
    assert recognise(semask) == ("semask", SMALL_SEMASK)
    assert recognise(sam) == ("sam", recogniser("sam").recognise(sam))
    assert recogniser("sam").recognise(semask) is None and recogniser("semask").recognise(sam) is None


@pytest.mark.parametrize("name", families())
def test_every_family_has_the_verbs(name):
    verbs = ("TASK", "prepare", "specs", "largest_sizes", "variants", "manifest")
    assert all(hasattr(family_module(name), verb) for verb in verbs)
    assert all(hasattr(graphs_module(name), verb) for verb in ("build", "reference", "graphs"))
    assert all(hasattr(recogniser(name), verb) for verb in ("recognise", "describe"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["backbone.layers.0.blocks.0.norm1.weight", "decode_head.conv_seg.weight"], "a Swin backbone without sem"),
        (["backbone.layers.0.blocks.0.norm1.weight"], "Swin backbone"),
        (["image_encoder.trunk.blocks.0.norm1.weight", "memory_attention.layers.0.x"], "SAM 2"),
        (["vision_encoder.layers.0.x"], "Transformers"),
        (["mask_decoder.hf_token.weight", "image_encoder.pos_embed"], "HQ-SAM"),
    ],
)
def test_other_models_are_refused_by_their_name(keys, words):
    refuse({key: (1,) for key in keys}, f"{words}.* not supported yet", code="unsupported_architecture")


def test_unknown_tensors_are_listed():
    refuse({"encoder.conv.weight": (1,), "head.bias": (1,)}, "2 tensors, under encoder.conv, head.bias")
    refuse({}, "0 tensors")
