# SPDX-License-Identifier: Apache-2.0
"""The Swin transformer of the semantic models: shifted windows on a grid of any size, and the merging of patches.

Structure and maths follow Swin Transformer (arXiv:2103.14030) as the published SeMask checkpoints have it; parameters
have their names. Sizes are never constants: paddings and masks are computed from the grid in the same operations for
eager runs and exported graphs, so a graph may leave height, width and batch open.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.ship.families.semask.config import relative_position_index

OTHER_REGION = -100.0
"""Added to the score of two places that are neighbours only because the grid was rolled; part of the trained maths."""


class Mlp(nn.Module):
    """Two linear layers with GELU between them, under Swin's names."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


def window_counts(height: int, width: int, window_size: int) -> tuple[int, int]:
    """Return how many rows and columns of windows cover a grid.

    Padded sizes are always written as counts times the window. In a traced graph with open sizes these are symbols,
    and only so can torch see at once that a padded side divides into windows; with remainders tracing takes minutes.
    """
    return (height + window_size - 1) // window_size, (width + window_size - 1) // window_size


def pad_grid(x: Tensor, counts: tuple[int, int], window_size: int) -> Tensor:
    """Zero-pad an NHWC tensor at the bottom and right to whole windows.

    Unconditional: a branch on the size would fix it in a traced graph.
    """
    height, width = x.shape[1], x.shape[2]
    return F.pad(x, (0, 0, 0, counts[1] * window_size - width, 0, counts[0] * window_size - height))


def cut_windows(x: Tensor, counts: tuple[int, int], window_size: int) -> Tensor:
    """Cut a padded NHWC tensor into (B * rows * columns, w * w, C)."""
    (rows, columns), batch, dim = counts, x.shape[0], x.shape[3]
    x = x.reshape(batch, rows, window_size, columns, window_size, dim).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch * rows * columns, window_size * window_size, dim)


def join_windows(windows: Tensor, counts: tuple[int, int], window_size: int, batch: int) -> Tensor:
    """Undo `cut_windows`."""
    (rows, columns), dim = counts, windows.shape[2]
    x = windows.reshape(batch, rows, columns, window_size, window_size, dim).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * window_size, columns * window_size, dim)


def shift_regions(count: int, window_size: int, device: torch.device) -> Tensor:
    """Return (count, window) int64: which of the three regions of a rolled axis every place comes from."""
    size = count * window_size
    places = torch.arange(size, device=device)
    regions = (places >= size - window_size).long() + (places >= size - window_size // 2).long()
    return regions.view(count, window_size)


def shift_mask(counts: tuple[int, int], window_size: int, like: Tensor) -> Tensor:
    """Return (windows, 1, w * w, w * w): `OTHER_REGION` where two places of a window lay apart before the roll.

    Two places lie apart if they do so along either axis, so the mask is put together from one small mask for each axis.
    """
    rows, columns = (shift_regions(count, window_size, like.device) for count in counts)
    apart_h = rows[:, :, None] != rows[:, None, :]
    apart_w = columns[:, :, None] != columns[:, None, :]
    apart = apart_h[:, None, :, None, :, None] | apart_w[None, :, None, :, None, :]
    tokens = window_size * window_size
    return (apart.to(like.dtype) * OTHER_REGION).reshape(counts[0] * counts[1], 1, tokens, tokens)


class WindowAttention(nn.Module):
    """Self-attention inside windows (windows, w * w, C) with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        # A buffer of the published files, so it is kept and loaded although it follows from the window's size.
        self.register_buffer("relative_position_index", torch.from_numpy(relative_position_index(window_size)))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, tokens, dim = x.shape
        qkv = self.qkv(x).view(windows, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        scores = (query * self.scale) @ key.transpose(-2, -1) + self._bias()
        if mask is not None:
            # The windows of an image follow one another, and all images share the mask.
            scores = scores.view(-1, mask.shape[0], self.num_heads, tokens, tokens) + mask
            scores = scores.view(-1, self.num_heads, tokens, tokens)
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(windows, tokens, dim)
        out: Tensor = self.proj(mixed)
        return out

    def _bias(self) -> Tensor:
        """Return (heads, w * w, w * w)."""
        tokens = self.relative_position_index.shape[0]
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.view(tokens, tokens, self.num_heads).permute(2, 0, 1)


class SwinBlock(nn.Module):
    """A transformer block on an NHWC grid; a shifted one rolls the grid by half a window first."""

    def __init__(self, dim: int, num_heads: int, window_size: int, shifted: bool, mlp_ratio: float) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = window_size // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix (B, H, W, C); ``mask`` from `shift_mask` is used by shifted blocks alone."""
        x = x + self._attend(self.norm1(x), mask)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        counts = window_counts(height, width, self.window_size)
        x = pad_grid(x, counts, self.window_size)
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(cut_windows(x, counts, self.window_size), mask if self.shift else None)
        x = join_windows(windows, counts, self.window_size, batch)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Halve an NHWC grid: each 2 x 2 neighbourhood becomes one place of twice the width; odd sides are padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        rows, columns = window_counts(height, width, 2)
        x = pad_grid(x, (rows, columns), 2).reshape(batch, rows, 2, columns, 2, dim)
        # Column after column, as the published weights of the reduction have it.
        merged = x.permute(0, 1, 3, 4, 2, 5).reshape(batch, rows, columns, 4 * dim)
        out: Tensor = self.reduction(self.norm(merged))
        return out


class PatchEmbed(nn.Module):
    """Image (B, 3, H, W) to an NHWC grid of patches, the image padded with zeros to whole patches."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2], image.shape[3]
        rows, columns = window_counts(height, width, self.patch_size)
        padded = F.pad(image, (0, columns * self.patch_size - width, 0, rows * self.patch_size - height))
        out: Tensor = self.norm(self.proj(padded).permute(0, 2, 3, 1))
        return out
