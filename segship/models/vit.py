# SPDX-License-Identifier: Apache-2.0
"""The image encoder of SAM vit_b, vit_l and vit_h.

Structure and maths follow segment_anything/modeling/image_encoder.py; written anew so that grids and paddings come
from the configuration, and so that global attention never holds the scores of all queries at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segship.models.config import VitConfig
from segship.models.layers import MlpBlock, build_neck, merge_windows, pad_to_windows, partition_windows

LAYER_NORM_EPS = 1e-6
# Score tiles of this many query rows keep the exported vit_b under 2.5 GB in ONNX Runtime; the whole 4096 x 4096
# tensor of 12 heads peaks at 6.9 GB. Rows are independent, so cutting them changes no result.
QUERY_ROWS_PER_TILE = 8


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each to a token, channels last."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)
        return tokens.permute(0, 2, 3, 1)


class RelPosAttention(nn.Module):
    """Self-attention over a square grid with decomposed relative positions.

    scores[i, j] = (q_i * scale) . k_j + q_i . Rh[row_i - row_j] + q_i . Rw[column_i - column_j]; the relative terms use
    the unscaled query. Written as matrix products, one per axis, which every runtime has.
    """

    def __init__(self, dim: int, num_heads: int, grid: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.grid = grid
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, self.head_dim))

    def forward(self, x: Tensor) -> Tensor:
        grid, heads, head_dim = self.grid, self.num_heads, self.head_dim
        qkv = self.qkv(x).view(-1, grid * grid, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query = query.reshape(-1, heads, grid, grid, head_dim)
        table_h, table_w = self._relative_table(self.rel_pos_h), self._relative_table(self.rel_pos_w)
        key = key.transpose(-2, -1)
        tiles = [
            self._attend(query[:, :, row : row + QUERY_ROWS_PER_TILE], key, value, table_h, table_w, row)
            for row in range(0, grid, QUERY_ROWS_PER_TILE)
        ]
        mixed = tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=2)
        mixed = mixed.transpose(1, 2).reshape(-1, grid, grid, heads * head_dim)
        out: Tensor = self.proj(mixed)
        return out

    def _relative_table(self, rel_pos: Tensor) -> Tensor:
        """Return R with R[i, :, j] = rel_pos[i - j + grid - 1], shape (grid, head_dim, grid)."""
        places = torch.arange(self.grid, device=rel_pos.device)
        index = places[:, None] - places[None, :] + self.grid - 1
        return rel_pos[index].transpose(1, 2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, table_h: Tensor, table_w: Tensor, row: int) -> Tensor:
        """Attend from some rows of queries (B, heads, rows, grid, head_dim) to the whole grid."""
        grid, heads = self.grid, self.num_heads
        rows = query.shape[2]
        flat = query.reshape(-1, heads, rows * grid, self.head_dim)
        scores = (flat * self.scale) @ key
        rel_h = query @ table_h[row : row + rows]
        rel_w = (query.transpose(2, 3) @ table_w).transpose(2, 3)
        scores = scores.view(-1, heads, rows, grid, grid, grid)
        scores = scores + rel_h.unsqueeze(-1) + rel_w.unsqueeze(-2)
        weights = scores.view(-1, heads, rows * grid, grid * grid).softmax(dim=-1)
        mixed: Tensor = weights @ value
        return mixed


class Block(nn.Module):
    """A transformer block; ``window_size`` 0 attends over the whole grid."""

    def __init__(self, config: VitConfig, grid: int, window_size: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = RelPosAttention(dim, config.num_heads, window_size or grid)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = MlpBlock(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.norm1(x)
        mixed = self._attend_in_windows(mixed) if self.window_size else self.attn(mixed)
        x = x + mixed
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        # Zero padding comes after the norm, so padded keys are the bias of `qkv` and take part unmasked, as in SAM.
        size_hw = (x.shape[1], x.shape[2])
        padded = pad_to_windows(x, self.window_size)
        windows = self.attn(partition_windows(padded, self.window_size))
        return merge_windows(windows, self.window_size, (padded.shape[1], padded.shape[2]), size_hw)


class VitEncoder(nn.Module):
    """Image (B, 3, S, S) float32, normalised and padded, to embedding (B, C, S/patch, S/patch)."""

    def __init__(self, config: VitConfig, image_size: int, out_channels: int) -> None:
        super().__init__()
        grid = image_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, config.embed_dim))
        self.blocks = nn.ModuleList(
            Block(config, grid, 0 if index in config.global_attention_blocks else config.window_size)
            for index in range(config.depth)
        )
        self.neck = build_neck(config.embed_dim, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return out
