# SPDX-License-Identifier: Apache-2.0
"""The image encoder of MobileSAM (vit_t): TinyViT with its last two stages at one resolution.

Structure and maths follow mobile_sam/modeling/tiny_vit_sam.py. Differs in one point on purpose: the attention bias is
gathered from its table at run time. The published code gathers it once in ``eval()``, which keeps zeros when weights
are loaded afterwards.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.ship.families.layers import FoldableNorm, build_neck, merge_windows, pad_to_windows, partition_windows
from segship.ship.families.sam.config import TinyVitConfig
from segship.ship.variants import PLAIN, EncoderVariant


class ConvNorm(FoldableNorm):
    """A convolution without bias and its batch norm, named ``c`` and ``bn`` as in the checkpoint."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        conv = nn.Conv2d(in_dim, out_dim, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=conv, bn=nn.BatchNorm2d(out_dim)))


class PatchEmbed(nn.Module):
    """Two strided convolutions: NCHW image to a quarter of its sides."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, embed_dim // 2, 3, 2), nn.GELU(), ConvNorm(embed_dim // 2, embed_dim, 3, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.seq(x)
        return out


class MBConv(nn.Module):
    """Inverted bottleneck: expand, depthwise, project, add, activate."""

    def __init__(self, dim: int, expand_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * expand_ratio)
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return F.gelu(x + mixed)


class PatchMerging(nn.Module):
    """Widen the channels and, with stride 2, halve the sides."""

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out_dim)
        self.conv2 = ConvNorm(out_dim, out_dim, 3, stride, groups=out_dim)
        self.conv3 = ConvNorm(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return out


class BiasAttention(nn.Module):
    """Self-attention in one window, with a learned bias for every |dy|, |dx| and its norm inside.

    `qkv` maps a token to heads x (q, k, v) x head_dim numbers. Rows of a matrix may be sorted before the product as
    well as behind it: P (W x + b) = (P W) x + P b for any permutation P. With the rows sorted (q, k, v) x heads, the
    matrix falls into three, whose products are queries, keys and values of all heads, (windows, tokens, heads,
    head_dim), without a cut or a copy; engines merge the transposition that is left into the attention's products.
    The sorted weights are constants of an exported graph.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.variant: EncoderVariant = PLAIN
        self.num_heads = num_heads
        self.window_size = window_size
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window_size * window_size))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(self.mix(x))
        return out

    def mix(self, x: Tensor) -> Tensor:
        """Return the attended values of windows (B, tokens, C), before the output projection."""
        tokens, heads = self.window_size**2, self.num_heads
        query, key, value = (part.transpose(1, 2) for part in self._project(self.norm(x)))
        scores = (query * self.scale) @ key.transpose(-2, -1) + self._bias()
        mixed: Tensor = scores.softmax(dim=-1) @ value
        return mixed.transpose(1, 2).reshape(-1, tokens, heads * self.head_dim)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values, each (B, tokens, heads, head_dim)."""
        tokens, heads, head_dim = self.window_size**2, self.num_heads, self.head_dim
        # The channels are ordered head by head, q, k and v inside each; SAM's own ViT has q, k and v outermost.
        if not self.variant.separate_projections:
            together: Tensor = self.qkv(x)
            return together.view(-1, tokens, heads, 3, head_dim).unbind(dim=3)
        weights = self.qkv.weight.view(heads, 3, head_dim, -1)
        biases = self.qkv.bias.view(heads, 3, head_dim)
        products = (F.linear(x, weights[:, part].flatten(0, 1), biases[:, part].flatten()) for part in range(3))
        return tuple(product.view(-1, tokens, heads, head_dim) for product in products)

    def _bias(self) -> Tensor:
        """Return the bias of every pair of places, (heads, tokens, tokens), read afresh from the table."""
        places = torch.arange(self.window_size, device=self.attention_biases.device)
        distance = (places[:, None] - places[None, :]).abs()
        index = distance[:, None, :, None] * self.window_size + distance[None, :, None, :]
        tokens = self.window_size**2
        return self.attention_biases[:, index.reshape(-1)].view(self.num_heads, tokens, tokens)


class Mlp(nn.Module):
    """Norm and two linear layers, named as in the checkpoint."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class TinyVitBlock(nn.Module):
    """Window attention, a depthwise convolution without residual, and an MLP; NHWC in and out.

    Residuals, norms and the MLP act on each token alone, so they may see the tokens as one row (``flat_tokens``): a
    change of shape, not of memory. OpenVINO gives four-dimensional tensors the layouts of images and then moves them
    between layouts before and behind every convolution; with three dimensions only the convolution has one, and its
    transpositions become changes of name. The output projection acts on each token alone too, so the padding may be cut
    off before it. On the way in the padding stays: it comes before the norm.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, mlp_ratio: float) -> None:
        super().__init__()
        self.variant: EncoderVariant = PLAIN
        self.window_size = window_size
        self.attn = BiasAttention(dim, num_heads, window_size)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width, dim = x.shape[1:]
        flat = self.variant.flat_tokens
        mixed = self._attend_in_windows(x)
        x = (x.flatten(1, 2) + mixed.flatten(1, 2)).view(-1, height, width, dim) if flat else x + mixed
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        tokens = x.flatten(1, 2) if flat else x
        out: Tensor = tokens + self.mlp(tokens)
        return out.view(-1, height, width, dim)

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        # Padding comes before the norm, which lives in the attention: padded tokens become the norm's bias and take
        # part unmasked. SAM's ViT does the opposite.
        size, size_hw = self.window_size, (x.shape[1], x.shape[2])
        padded = pad_to_windows(x, size)
        padded_hw = (padded.shape[1], padded.shape[2])
        windows = partition_windows(padded, size)
        if self.variant.project_padding:
            return merge_windows(self.attn(windows.flatten(1, 2)).view(windows.shape), size, padded_hw, size_hw)
        mixed = merge_windows(self.attn.mix(windows.flatten(1, 2)).view(windows.shape), size, padded_hw, size_hw)
        out: Tensor = self.attn.proj(mixed.flatten(1, 2) if self.variant.flat_tokens else mixed)
        return out.view(mixed.shape)


class ConvStage(nn.Module):
    """The first stage: MBConv blocks and a downsampling; NCHW in and out."""

    def __init__(self, dim: int, out_dim: int, depth: int, expand_ratio: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MBConv(dim, expand_ratio) for _ in range(depth))
        self.downsample = PatchMerging(dim, out_dim, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.downsample(x)
        return out


class AttentionStage(nn.Module):
    """Window-attention blocks and, except in the last stage, a merging; NCHW in and out."""

    def __init__(self, config: TinyVitConfig, stage: int) -> None:
        super().__init__()
        dim, last = config.embed_dims[stage], len(config.embed_dims) - 1
        self.blocks = nn.ModuleList(
            TinyVitBlock(dim, config.num_heads[stage], config.window_sizes[stage], config.mlp_ratio)
            for _ in range(config.depths[stage])
        )
        self.downsample: nn.Module | None = None
        if stage < last:
            # MobileSAM keeps stride 16 for the last two stages, so the last merging does not halve the sides.
            stride = 1 if stage == last - 1 else 2
            self.downsample = PatchMerging(dim, config.embed_dims[stage + 1], stride)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)
        return x if self.downsample is None else self.downsample(x)


class TinyVitEncoder(nn.Module):
    """Image (B, 3, S, S) float32, normalised and padded, to embedding (B, C, S/16, S/16)."""

    def __init__(self, config: TinyVitConfig, out_channels: int) -> None:
        super().__init__()
        dims = config.embed_dims
        self.patch_embed = PatchEmbed(dims[0])
        first = ConvStage(dims[0], dims[1], config.depths[0], config.mbconv_expand_ratio)
        self.layers = nn.ModuleList([first, *(AttentionStage(config, stage) for stage in range(1, len(dims)))])
        # The classifier of the pre-training; its weights are in the checkpoint and nothing uses them.
        self.norm_head = nn.LayerNorm(dims[-1])
        self.head = nn.Linear(dims[-1], config.num_classes)
        self.neck = build_neck(dims[-1], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.neck(x)
        return out
