# SPDX-License-Identifier: Apache-2.0
"""The image encoder of ``tiny``, our own: a convolution stem, then a small global-attention transformer.

Convolutions take the image to stride 8 cheaply, so that attention runs on a short row of tokens at stride 16. Each
block begins with a depthwise convolution, which tells a token its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.ship.families.layers import FoldableNorm, MlpBlock, build_neck
from segship.ship.families.sam.config import HybridConfig
from segship.ship.variants import PLAIN, EncoderVariant


class ConvNorm(FoldableNorm):
    """A 3x3 convolution without bias and its batch norm."""

    def __init__(self, in_dim: int, out_dim: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(in_dim, out_dim, 3, stride, 1, bias=False), nn.BatchNorm2d(out_dim))


class StemBlock(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, dim)
        self.conv2 = ConvNorm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class StemStage(nn.Module):
    """Halve the sides, widen the channels, refine; NCHW in and out."""

    def __init__(self, in_dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        self.down = ConvNorm(in_dim, out_dim, stride=2)
        self.blocks = nn.ModuleList(StemBlock(out_dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x))
        for block in self.blocks:
            x = block(x)
        return x


class Attention(nn.Module):
    """Self-attention over all tokens; (B, N, C) in and out.

    The rows of `qkv` are those of queries, keys and values one after the other, so one product cut in three and three
    products with the thirds of the matrix (``separate_projections``) are the same numbers.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.variant: EncoderVariant = PLAIN
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens, dim = x.shape[1], x.shape[2]
        query, key, value = (part.transpose(1, 2) for part in self._project(x))
        weights = ((query * self.scale) @ key.transpose(-2, -1)).softmax(dim=-1).to(value.dtype)
        out: Tensor = self.proj((weights @ value).transpose(1, 2).reshape(-1, tokens, dim))
        return out

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each (B, N, heads, head_dim)."""
        tokens, heads, dim = x.shape[1], self.num_heads, x.shape[2]
        if not self.variant.separate_projections:
            together: Tensor = self.qkv(x)
            return together.view(-1, tokens, 3, heads, dim // heads).unbind(2)
        # Slices rather than `chunk`: the exporter folds those of constants away, and leaves a Split to run every time.
        thirds = (slice(start, start + dim) for start in range(0, 3 * dim, dim))
        products = (F.linear(x, self.qkv.weight[third], self.qkv.bias[third]) for third in thirds)
        return tuple(product.view(-1, tokens, heads, dim // heads) for product in products)


class HybridBlock(nn.Module):
    """Depthwise convolution, attention and MLP, each with a residual; NHWC in and out.

    With ``flat_tokens``, norms, residuals and the MLP see the tokens as one row, see
    `segship.ship.families.sam.vit.Block`.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.variant: EncoderVariant = PLAIN
        dim = config.embed_dim
        self.local_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MlpBlock(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        height, width, dim = x.shape[1:]
        local = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x.flatten(1, 2) + local.flatten(1, 2) if self.variant.flat_tokens else x + local
        mixed = self.attn(self.norm1(x) if self.variant.flat_tokens else self.norm1(x).flatten(1, 2))
        x = x + mixed.view(x.shape)
        x = x + self.mlp(self.norm2(x))
        return x.view(-1, height, width, dim)


class HybridEncoder(nn.Module):
    """Image (B, 3, S, S) float32, normalised and padded, to embedding (B, C, S/16, S/16)."""

    def __init__(self, config: HybridConfig, image_size: int, out_channels: int) -> None:
        super().__init__()
        grid = image_size // config.stride
        dims = (3, *config.stem_dims)
        self.stem = nn.Sequential(
            *(StemStage(dims[i], dims[i + 1], depth) for i, depth in enumerate(config.stem_blocks)),
            ConvNorm(dims[-1], config.embed_dim, stride=2),
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, config.embed_dim))
        self.blocks = nn.ModuleList(HybridBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.neck = build_neck(config.embed_dim, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(self.norm(x).permute(0, 3, 1, 2))
        return out
