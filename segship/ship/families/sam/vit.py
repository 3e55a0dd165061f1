# SPDX-License-Identifier: Apache-2.0
"""The image encoder of SAM vit_b, vit_l and vit_h.

Structure and maths follow segment_anything/modeling/image_encoder.py; written anew so that grids and paddings come
from the configuration, and so that the order of the arithmetic can follow the engine (`segship.ship.variants`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.ship.families.layers import MlpBlock, build_neck
from segship.ship.families.sam.config import VitConfig
from segship.ship.variants import PLAIN, EncoderVariant

LAYER_NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each to a token, channels last."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)
        return tokens.permute(0, 2, 3, 1)


class RelPosAttention(nn.Module):
    """Self-attention with decomposed relative positions, over a square grid or in windows of one; NHWC in and out.

    scores[i, j] = (q_i * scale) . k_j + q_i . Rh[row_i - row_j] + q_i . Rw[column_i - column_j]; the relative terms use
    the unscaled query. Written as matrix products, one per axis, which every runtime has.

    Windows need no tensor of their own: with n windows of side s along each axis, the padded grid's rows are n x s and
    its columns are n x s, so one permutation of the axes (n, s, n, s, head, channel) cuts into windows and into heads
    at once, and its inverse joins both.

    Padding. The published code pads the normed tokens x with zero rows before `qkv`, so a padded token's projection is
    W 0 + b = b, and it takes part as any other key. Since W x has zero rows exactly where x has them, padding W x
    instead, and adding b afterwards to all rows, gives the same tensor and spares the product of W with the padding
    (70 x 70 tokens become 64 x 64 in vit_b). On the way out, `proj` acts on each token alone, so cutting the padding
    off before it drops the same rows as cutting them off behind it.
    """

    def __init__(self, dim: int, num_heads: int, grid: int) -> None:
        super().__init__()
        self.variant: EncoderVariant = PLAIN
        self.num_heads = num_heads
        self.grid = grid
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, self.head_dim))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, self.head_dim))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        padding = (0, 0, 0, -width % self.grid, 0, -height % self.grid)
        rows, columns = (height + padding[5]) // self.grid, (width + padding[3]) // self.grid
        query, key, value = self._project(x, padding, rows, columns)
        mixed = self._attend(query, key.transpose(-2, -1), value)
        mixed = mixed.view(-1, rows, columns, self.num_heads, self.grid, self.grid, self.head_dim)
        mixed = mixed.permute(0, 1, 4, 2, 5, 3, 6)
        mixed = mixed.reshape(-1, rows * self.grid, columns * self.grid, self.num_heads * self.head_dim)
        if self.variant.project_padding:
            out: Tensor = self.proj(mixed)
            return out[:, :height, :width]
        out = self.proj(mixed[:, :height, :width])
        return out

    def _project(self, x: Tensor, padding: tuple[int, ...], rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B * windows, heads, grid * grid, head_dim)."""
        if self.variant.project_padding and any(padding):
            x, padding = F.pad(x, padding), (0,) * len(padding)
        parts = 1 if self.variant.separate_projections else 3
        grid, heads, head_dim = self.grid, self.num_heads, self.head_dim
        projected: list[Tensor] = []
        size = parts * heads * head_dim
        for start in range(0, 3 * heads * head_dim, size):
            # Slices rather than `chunk`: the exporter folds those of constants away, and leaves a Split to run.
            weight, bias = self.qkv.weight[start : start + size], self.qkv.bias[start : start + size]
            product = F.pad(F.linear(x, weight), padding) + bias if any(padding) else F.linear(x, weight, bias)
            product = product.view(-1, rows, grid, columns, grid, parts, heads, head_dim)
            product = product.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(parts, -1, heads, grid * grid, head_dim)
            projected.extend(product.unbind(0))
        query, key, value = projected
        return query, key, value

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values by attention, tile by tile; ``key`` is transposed, the others and the result are as projected.

        Each query's weights depend on its own row of scores and on nothing of other queries or heads, so any set of
        (head, query) rows may be computed apart from the others and the results joined. A tile is some heads and some
        rows of the grid; its scores are the largest tensor that exists.
        """
        grid, heads = self.grid, self.num_heads
        rows_at_once = min(self.variant.query_rows_per_tile or grid, grid)
        heads_at_once = min(self.variant.heads_per_tile or heads, heads)
        placed = query.view(-1, heads, grid, grid, self.head_dim)
        rel_h = placed @ self._relative_table(self.rel_pos_h)
        rel_w = (placed.transpose(2, 3) @ self._relative_table(self.rel_pos_w)).transpose(2, 3)
        columns = []
        for head in range(0, heads, heads_at_once):
            some = slice(head, head + heads_at_once)
            tiles = []
            for row in range(0, grid, rows_at_once):
                these = (slice(None), some, slice(row, row + rows_at_once))
                tile = self._attend_from(placed[these], rel_h[these], rel_w[these], key[:, some], value[:, some])
                tiles.append(tile)
            columns.append(tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=2))
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)

    def _relative_table(self, rel_pos: Tensor) -> Tensor:
        """Return R with R[i, :, j] = rel_pos[i - j + grid - 1], shape (grid, head_dim, grid)."""
        places = torch.arange(self.grid, device=rel_pos.device)
        index = places[:, None] - places[None, :] + self.grid - 1
        return rel_pos[index].transpose(1, 2)

    def _attend_from(self, query: Tensor, rel_h: Tensor, rel_w: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from one tile of queries (B, heads, rows, grid, head_dim) to the whole grid.

        The relative terms are constant along a row or a column of keys: bias[q, (y, x)] = rel_h[q, y] + rel_w[q, x].
        Addition being associative up to rounding, the scores may take both in turn, or their sum at once, which
        touches the scores once instead of twice; softmax(s + bias) is also what fused kernels call a masked attention.
        """
        grid = self.grid
        flat = query.flatten(2, 3)
        along_rows = rel_h.flatten(2, 3).unsqueeze(-1)
        along_columns = rel_w.flatten(2, 3).unsqueeze(-2)
        if self.variant.fused_attention:
            bias = (along_rows + along_columns).flatten(-2)
            return F.scaled_dot_product_attention(flat, key.transpose(-2, -1), value, bias, scale=self.scale)
        scores = (flat * self.scale) @ key
        # In place, since nothing else reads the bare scores; they are the largest tensor of the encoder.
        if self.variant.one_bias:
            scores += (along_rows + along_columns).flatten(-2)
        else:
            placed = scores.unflatten(-1, (grid, grid))
            placed += along_rows
            placed += along_columns
        weights = scores.softmax(dim=-1)
        mixed: Tensor = weights.to(value.dtype) @ value
        return mixed


class Block(nn.Module):
    """A transformer block; ``window_size`` 0 attends over the whole grid. NHWC in and out.

    Norms, residuals and the MLP act on each token alone, so they may see the tokens as one row (``flat_tokens``): a
    change of shape, not of memory. OpenVINO gives four-dimensional tensors the layouts of images and then moves them
    between layouts; three-dimensional ones it leaves alone.
    """

    def __init__(self, config: VitConfig, grid: int, window_size: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.variant: EncoderVariant = PLAIN
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = RelPosAttention(dim, config.num_heads, window_size or grid)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = MlpBlock(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        tokens = x.flatten(1, 2) if self.variant.flat_tokens else x
        mixed = self.attn(self.norm1(tokens).view(-1, height, width, dim))
        tokens = tokens + mixed.reshape(tokens.shape)
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out.view(batch, height, width, dim)


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
