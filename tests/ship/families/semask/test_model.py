# SPDX-License-Identifier: Apache-2.0
"""SeMask-FPN against slow, obvious computations of what the published code does."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional as F

from segship.ship.families.semask.config import SEMASK_ARCHITECTURES, published_semantic_window
from segship.ship.families.semask.model import FpnHead, SemanticGraph, SemanticLayer, build_semask
from segship.ship.families.semask.swin import PatchMerging, SwinBlock, shift_mask, window_counts
from segship.ship.graph import trace
from segship.spec import GraphSpec, TensorSpec
from tests.oracle import seeded_weights
from tests.ship.graph.running import traced_graph

SMALL = replace(
    SEMASK_ARCHITECTURES["semask_t"], architecture="custom", embed_dim=12, depths=(2, 1, 1, 2), num_heads=(1, 2, 2, 4),
    window_size=5, classes=7, semantic_classes=6, head_channels=16,
)  # fmt: skip
WINDOW = 5

# Facts of the published files: parameters with 19 and with 150 classes, and tensors.
PUBLISHED = {
    "semask_t": (34_243_753, 34_655_748, 277),
    "semask_s": (55_561_657, 55_973_652, 445),
    "semask_b": (95_948_071, 96_485_826, 445),
    "semask_l": (210_002_659, 210_791_934, 445),
}


def small_model(**changes):
    model = build_semask(replace(SMALL, **changes))
    state = seeded_weights(model)
    # Real ones, not zeros, so that what they scale is tested.
    state |= {name: torch.full_like(value, 0.7) for name, value in state.items() if name.endswith("gamma")}
    model.load_state_dict(state)
    return model


def region(place, size, window):
    """Which slice of a rolled axis a place lies in: before the last window, in it, or in what came round."""
    if place < size - window:
        return 0
    return 1 if place < size - window // 2 else 2


def swin_block_slowly(block, grid):
    """One image (H, W, C): each place looks at the places of its window, one pair and one head at a time."""
    height, width, dim = grid.shape
    window, shift, attention = block.window_size, block.shift, block.attn
    rows, columns = -(-height // window) * window, -(-width // window) * window
    padded = torch.zeros(rows, columns, dim)
    padded[:height, :width] = block.norm1(grid)
    rolled = torch.stack(
        [torch.stack([padded[(r + shift) % rows, (c + shift) % columns] for c in range(columns)]) for r in range(rows)]
    )
    query, key, value = (
        part.view(rows, columns, attention.num_heads, -1) for part in attention.qkv(rolled).chunk(3, dim=-1)
    )
    mixed = torch.zeros_like(query)
    for r in range(rows):
        for c in range(columns):
            top, left = r // window * window, c // window * window
            others = [(y, x) for y in range(top, top + window) for x in range(left, left + window)]
            for head in range(attention.num_heads):
                scores = []
                for y, x in others:
                    place = (r - y + window - 1) * (2 * window - 1) + c - x + window - 1
                    score = query[r, c, head] @ key[y, x, head] * query.shape[-1] ** -0.5
                    score = score + attention.relative_position_bias_table[place, head]
                    together = region(r, rows, window) == region(y, rows, window)
                    together = together and region(c, columns, window) == region(x, columns, window)
                    scores.append(score if together or not shift else score - 100)
                weights = torch.stack(scores).softmax(0)
                mixed[r, c, head] = sum(w * value[y, x, head] for w, (y, x) in zip(weights, others, strict=True))
    answer = attention.proj(mixed.flatten(2))
    back = torch.stack(
        [torch.stack([answer[(r - shift) % rows, (c - shift) % columns] for c in range(columns)]) for r in range(rows)]
    )
    x = grid + back[:height, :width]
    return x + block.mlp(block.norm2(x))


@torch.inference_mode()
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size_hw", [(7, 11), (5, 5), (3, 10)])
def test_swin_block_equals_the_slow_sum_over_pairs(size_hw, shifted):
    block = SwinBlock(8, 2, WINDOW, shifted, mlp_ratio=2.0).eval()
    block.load_state_dict(seeded_weights(block))
    grids = torch.randn(2, *size_hw, 8)
    mask = shift_mask(window_counts(*size_hw, WINDOW), WINDOW, grids)
    expected = torch.stack([swin_block_slowly(block, grid) for grid in grids])
    assert torch.allclose(block(grids, mask), expected, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize("window", [WINDOW, 0])
def test_semantic_layer_equals_the_slow_sum_and_has_no_residual_around_its_norm(window):
    layer = SemanticLayer(8, 6, window).eval()
    layer.load_state_dict(seeded_weights(layer) | {"class_injection.0.gamma": torch.tensor([0.7])})
    injection = layer.class_injection[0]
    grid = torch.randn(1, 7, 9, 8)
    rows, columns = (10, 10) if window else (7, 9)
    padded = torch.zeros(rows, columns, 8)
    padded[:7, :9] = layer.norm1(grid[0])
    expected = torch.zeros(7, 9, 8)
    for r in range(7):
        for c in range(9):
            if window:
                top, left = r // window * window, c // window * window
                others = [(y, x) for y in range(top, top + window) for x in range(left, left + window)]
            else:
                others = [(y, x) for y in range(rows) for x in range(columns)]
            query = injection.mlp_cls_q(padded[r, c])
            scores = torch.stack([query @ injection.mlp_cls_k(padded[y, x]) for y, x in others])
            mixed = sum(w * injection.mlp_v(padded[y, x]) for w, (y, x) in zip(scores.softmax(0), others, strict=True))
            expected[r, c] = padded[r, c] + 0.7 * injection.mlp_res(mixed)
    assert torch.allclose(layer(grid)[0], expected, atol=2e-5)


@torch.inference_mode()
def test_patch_merging_takes_corners_column_by_column_and_pads_odd_sides():
    merging = PatchMerging(3).eval()
    merging.load_state_dict(seeded_weights(merging))
    grid = torch.randn(1, 5, 3, 3)
    padded = torch.zeros(6, 4, 3)
    padded[:5, :3] = grid[0]
    expected = torch.stack(
        [
            torch.stack(
                [torch.cat([padded[2 * r + dy, 2 * c + dx] for dx in (0, 1) for dy in (0, 1)]) for c in range(2)]
            )
            for r in range(3)
        ]
    )
    assert torch.allclose(merging(grid)[0], merging.reduction(merging.norm(expected)), atol=1e-6)


@torch.inference_mode()
def test_head_brings_every_level_to_the_first_ones_size():
    head = FpnHead((4, 8, 12, 16), 8, 5).eval()
    features = [torch.randn(1, 4, 9, 13), torch.randn(1, 8, 5, 7), torch.randn(1, 12, 3, 4), torch.randn(1, 16, 2, 2)]
    total = head.scale_heads[0](features[0])
    for level in (1, 2, 3):
        x = features[level]
        for convolution in list(head.scale_heads[level])[::2]:
            x = F.relu(convolution.bn(F.conv2d(x, convolution.conv.weight, padding=1)))
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + F.interpolate(x, size=(9, 13), mode="bilinear", align_corners=False)
    assert torch.allclose(head(features), head.conv_seg(total), atol=1e-6)
    assert [len(branch) for branch in head.scale_heads] == [1, 2, 4, 6]


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_published_files(name):
    cityscapes, ade, tensors = PUBLISHED[name]
    with torch.device("meta"):
        models = [
            build_semask(replace(SEMASK_ARCHITECTURES[name], classes=count, semantic_classes=count))
            for count in (19, 150)
        ]
    assert [sum(p.numel() for p in model.parameters()) for model in models] == [cityscapes, ade]
    assert [len(model.state_dict()) for model in models] == [tensors, tensors]


def test_semantic_window_of_the_published_models():
    rule = {
        (name, classes): published_semantic_window(config.embed_dim, classes)
        for name, config in SEMASK_ARCHITECTURES.items()
        for classes in (19, 150)
    }
    mixed = {key for key, value in rule.items() if value == "first-two"}
    assert mixed == {("semask_t", 150), ("semask_s", 150), ("semask_l", 150)}


@torch.inference_mode()
def test_a_wrong_semantic_window_loads_and_changes_the_answer():
    windowed, mixed = small_model(semantic_window="all"), small_model(semantic_window="first-two")
    mixed.load_state_dict(windowed.state_dict(), strict=True)
    image = torch.randn(1, 3, 128, 192)
    assert not torch.allclose(windowed(image), mixed(image), atol=1e-3)


@torch.inference_mode()
def test_images_of_a_batch_do_not_mix():
    model = small_model()
    images = torch.randn(3, 3, 61, 90)
    together = model(images)
    assert together.shape == (3, 7, 16, 23)
    for index in range(3):
        assert torch.allclose(model(images[index : index + 1])[0], together[index], atol=1e-5)


@torch.inference_mode()
def test_graph_answers_class_maps_of_the_images_size():
    model = small_model()
    image = torch.randn(2, 3, 61, 90)
    logits = SemanticGraph(model, "logits")(image)
    assert logits.shape == (2, 7, 61, 90)
    assert torch.equal(logits, F.interpolate(model(image), size=(61, 90), mode="bilinear", align_corners=False))
    class_map = SemanticGraph(model)(image)
    assert class_map.dtype == torch.uint8
    assert torch.equal(class_map.long(), logits.argmax(1))


@pytest.mark.slow
@pytest.mark.parametrize("semantic_window", ["all", "first-two"])
def test_one_traced_graph_takes_every_size_and_batch(semantic_window, monkeypatch):
    monkeypatch.setattr(trace, "EXAMPLE_SIZES", {"batch": 2, "height": 91, "width": 134})
    model = small_model(semantic_window=semantic_window)
    spec = GraphSpec(
        "semantic",
        (TensorSpec("image", "float32", ("batch", 3, "height", "width")),),
        (TensorSpec("logits", "float32", ("batch", 7, "height", "width")),),
    )
    graph = traced_graph(SemanticGraph(model, "logits"), spec)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in [(1, 3, 64, 96), (3, 3, 61, 90), (1, 3, 33, 150), (1, 3, 160, 160)]:
        image = torch.randn(*size)
        with torch.inference_mode():
            expected = SemanticGraph(model, "logits")(image).numpy()
        answer = session.run(None, {"image": image.numpy()})[0]
        assert np.abs(answer - expected).max() <= 1e-4 * np.abs(expected).max()
