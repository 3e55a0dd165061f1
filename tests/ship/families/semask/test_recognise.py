# SPDX-License-Identifier: Apache-2.0
"""SeMask-FPN from names and shapes: the four published sizes, the three data sets, and what is refused."""

from dataclasses import replace

import pytest
import torch

from segship.errors import CheckpointError
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.families.semask.model import build_semask
from segship.ship.families.semask.recognise import recognise
from tests.small_semask import SMALL_SEMASK

CLASSES = {"cityscapes": (19, 19), "ade20k": (150, 150), "cocostuff": (171, 150)}


def shapes_of(config):
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build_semask(config).state_dict().items()}


def refuse(shapes, words, code="unknown_architecture"):
    with pytest.raises(CheckpointError, match=words) as refusal:
        recognise(shapes)
    assert refusal.value.code == code


@pytest.mark.parametrize("data_set", CLASSES)
@pytest.mark.parametrize("name", SEMASK_ARCHITECTURES)
def test_published_sizes_are_recognised_with_their_windows(name, data_set):
    classes, semantic_classes = CLASSES[data_set]
    config = replace(SEMASK_ARCHITECTURES[name], classes=classes, semantic_classes=semantic_classes)
    # A fact of the published code: T, S and L with more than 19 semantic classes leave the last two stages open.
    mixed = name != "semask_b" and data_set != "cityscapes"
    found = recognise(shapes_of(config))
    assert found == replace(config, semantic_window="first-two" if mixed else "all")


def test_t_and_s_share_all_widths_and_differ_in_depth():
    small, tiny = shapes_of(SEMASK_ARCHITECTURES["semask_s"]), shapes_of(SEMASK_ARCHITECTURES["semask_t"])
    assert all(small[name] == tiny[name] for name in tiny)
    assert recognise(small).depths == (2, 2, 18, 2) and recognise(tiny).depths == (2, 2, 6, 2)


def test_other_sizes_are_custom():
    assert recognise(shapes_of(SMALL_SEMASK)) == SMALL_SEMASK


def test_stages_of_different_semantic_classes_are_refused():
    key = "backbone.layers.2.semantic_layer.class_injection.0.mlp_cls_q.weight"
    shapes = {**shapes_of(SMALL_SEMASK), key: (150, 48)}
    refuse(shapes, r"\[19, 19, 150, 19\] classes, and all must have the same", code="class_count")


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        ("backbone.layers.1.blocks.0.attn.relative_position_bias_table", (80, 2), "80 relative positions"),
        ("backbone.layers.1.blocks.0.attn.relative_position_bias_table", (169, 2), r"windows of \[5, 7\]"),
        ("backbone.layers.1.blocks.0.attn.relative_position_bias_table", (81, 5), "5 heads, which do not divide"),
        ("backbone.norm2.weight", (50,), "stage 2 is 50 wide, and 48 are expected"),
        ("decode_head.conv_seg.weight", (19, 16), "conv_seg.weight has the shape"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_named(key, shape, words):
    refuse({**shapes_of(SMALL_SEMASK), key: shape}, words)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("backbone.layers.3.", "the backbone has 3 stages"),
        ("decode_head.conv_seg.weight", "conv_seg.weight is missing"),
        ("backbone.layers.0.semantic_layer.", "mlp_cls_q.weight is missing"),
    ],
)
def test_missing_parts_are_named(start, words):
    refuse({name: shape for name, shape in shapes_of(SMALL_SEMASK).items() if not name.startswith(start)}, words)
