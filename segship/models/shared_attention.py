# SPDX-License-Identifier: Apache-2.0
"""Products and softmaxes between a few tokens and many cells, for the shared decoder.

Tokens are (N, n, heads * d) or, split by head, (N, heads, n, d); images are (1, heads * d, T) or (1, heads, d, T).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segship.models.mask_decoder import Attention


def over_cells(x: Tensor, image: Tensor, whole: bool) -> Tensor:
    """Return x (N, heads, n, d) @ image (1, heads, d, T).

    ``whole``: as one product a head for all objects, (heads, N * n, d) @ (heads, d, T), turned round afterwards. An
    engine that lays out the image anew for each product of a batch does so once a head then, not once a head and
    object, which with 7 tokens costs as much as the product.
    """
    if not whole:
        return x @ image
    objects, heads, tokens, width = x.shape
    products = x.transpose(0, 1).reshape(heads, objects * tokens, width) @ image[0]
    return torch.unflatten(products, 1, (objects, tokens)).transpose(0, 1)


def from_cells(weights: Tensor, image: Tensor, whole: bool) -> Tensor:
    """Return weights (N, heads, n, T) @ image (1, heads, d, T)', in the order of `over_cells`."""
    if not whole:
        return weights @ image.transpose(2, 3)
    objects, heads, tokens, cells = weights.shape
    products = weights.transpose(0, 1).reshape(heads, objects * tokens, cells) @ image[0].transpose(1, 2)
    return torch.unflatten(products, 1, (objects, tokens)).transpose(0, 1)


def softmax_over_tokens(scores: Tensor, whole: bool, scale: Tensor | None = None) -> Tensor:
    """Softmax of (N, heads, n, T) over the n tokens, times ``scale`` (N, 1, 1, T); ``whole`` as the engine has it."""
    if whole:
        weights = scores.softmax(dim=2)
        return weights if scale is None else weights * scale
    powers = (scores - scores.amax(dim=2, keepdim=True)).exp()
    total = powers.sum(dim=2, keepdim=True)
    return powers * (1 / total if scale is None else scale / total)


def spread(attention: Attention, values: Tensor, bias: Tensor) -> Tensor:
    """Apply the output projection to each token's values of each head: (N, heads, n, d) to (N, heads * n, C)."""
    heads = attention.num_heads
    weight = attention.out_proj.weight.T.reshape(1, heads, attention.head_dim, -1)
    return (values @ weight + bias / heads).flatten(1, 2)


def project(linear: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer to the columns of (C, T)."""
    return linear.weight @ x + linear.bias[:, None]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split (1, heads * d, T) to (1, heads, d, T)."""
    return torch.unflatten(x, 1, (heads, -1))


def queries_of(attention: Attention, x: Tensor) -> Tensor:
    """Return the scaled queries of tokens by head."""
    return split_tokens(attention, attention.q_proj(x) * attention.scale)


def keys_of(attention: Attention, x: Tensor) -> Tensor:
    """Return the keys of tokens by head, scaled in the place of the queries."""
    # The keys are the tokens here, fewer than the queries, so they carry the scale.
    return split_tokens(attention, attention.k_proj(x) * attention.scale)


def split_tokens(attention: Attention, x: Tensor) -> Tensor:
    """Split (N, n, heads * d) to (N, heads, n, d)."""
    return x.view(x.shape[0], -1, attention.num_heads, attention.head_dim).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Undo `split_tokens`."""
    return x.transpose(1, 2).flatten(2)
