# SPDX-License-Identifier: Apache-2.0
"""TinyViT against slow, obvious computations of what the published code does."""

import torch

from segship.ship.families.sam.config import SamConfig, TinyVitConfig
from segship.ship.families.sam.model import build_sam
from segship.ship.families.sam.tiny_vit import BiasAttention, TinyVitBlock
from tests.oracle import seeded_weights

SMALL = SamConfig(
    "custom",
    TinyVitConfig(embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), window_sizes=(3, 3, 5, 3)),
    image_size=128,
    embedding_channels=16,
    decoder_heads=2,
    decoder_mlp_dim=16,
    iou_head_hidden_dim=8,
)


def attend_slowly(attention, tokens):
    """One window, (tokens, C): every pair of places by its |dy|, |dx|, head by head."""
    size, heads, dim = attention.window_size, attention.num_heads, attention.head_dim
    normed = attention.norm(tokens)
    projected = attention.qkv(normed).view(size * size, heads, 3 * dim)
    mixed = torch.zeros(size * size, heads, dim)
    for head in range(heads):
        query, key, value = projected[:, head].split(dim, dim=1)
        for i in range(size * size):
            scores = []
            for j in range(size * size):
                dy, dx = abs(i // size - j // size), abs(i % size - j % size)
                bias = attention.attention_biases[head, dy * size + dx]
                scores.append(query[i] @ key[j] * dim**-0.5 + bias)
            mixed[i, head] = torch.stack(scores).softmax(0) @ value
    return attention.proj(mixed.reshape(size * size, heads * dim))


@torch.inference_mode()
def test_attention_equals_the_slow_sum_over_pairs():
    attention = BiasAttention(dim=16, num_heads=2, window_size=3).eval()
    attention.load_state_dict(seeded_weights(attention))
    tokens = torch.randn(2, 9, 16)
    expected = torch.stack([attend_slowly(attention, window) for window in tokens])
    assert torch.allclose(attention(tokens), expected, atol=1e-5)


@torch.inference_mode()
def test_padding_comes_before_the_norm_and_takes_part_unmasked():
    block = TinyVitBlock(dim=16, num_heads=2, window_size=3, mlp_ratio=2.0).eval()
    block.load_state_dict(seeded_weights(block))
    image = torch.randn(1, 4, 5, 16)
    padded = torch.zeros(1, 6, 6, 16)
    padded[:, :4, :5] = image
    expected = torch.zeros(1, 6, 6, 16)
    for y in (0, 3):
        for x in (0, 3):
            window = padded[0, y : y + 3, x : x + 3].reshape(9, 16)
            expected[0, y : y + 3, x : x + 3] = attend_slowly(block.attn, window).view(3, 3, 16)
    assert torch.allclose(block._attend_in_windows(image), expected[:, :4, :5], atol=1e-5)


@torch.inference_mode()
def test_bias_is_that_of_weights_loaded_after_eval():
    """The published code keeps the initial zeros here until eval() is called once more."""
    sam = build_sam(SMALL)
    image = torch.randn(1, 3, 128, 128)
    state = seeded_weights(sam)
    sam.load_state_dict(state)
    with_bias = sam.image_encoder(image)
    zeroed = {name: torch.zeros_like(t) if name.endswith("attention_biases") else t for name, t in state.items()}
    sam.load_state_dict(zeroed)
    assert not torch.allclose(with_bias, sam.image_encoder(image), atol=1e-3)


@torch.inference_mode()
def test_last_merging_keeps_the_resolution():
    sam = build_sam(SMALL)
    assert sam.image_encoder(torch.randn(2, 3, 128, 128)).shape == (2, 16, 8, 8)


def test_unused_classifier_loads_strictly():
    sam = build_sam(SMALL)
    assert "image_encoder.head.weight" in sam.state_dict()
    sam.load_state_dict(seeded_weights(sam), strict=True)
