# SPDX-License-Identifier: Apache-2.0
"""Layers that several architectures share: norms, the two-layer MLP, windows.

Names of parameters are those of the published state dicts, so that checkpoints load key for key.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.ship.variants import PLAIN, EncoderVariant


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of an NCHW tensor, with biased variance.

    Follows segment_anything/modeling/common.py LayerNorm2d.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        centred = x - mean
        variance = (centred * centred).mean(1, keepdim=True)
        normalised = centred / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * normalised + self.bias[:, None, None]


class MlpBlock(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, hidden_dim: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(self.act(self.lin1(x)))
        return out


def conv_with_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Apply a convolution and the batch norm behind it, in evaluation mode, as one convolution.

    With its statistics fixed, a batch norm is y -> f (y - m) + b for each channel, where f = weight / sqrt(variance +
    eps). For y = W * x this is (f W) * x + (b - f m): a convolution with scaled weights and a bias. The products f W
    are made anew in every call, so that the parameters stay those of the checkpoint; they cost as much as the weights
    are many, the norm they replace as much as the pixels.
    """
    assert norm.running_mean is not None and norm.running_var is not None, "a batch norm that keeps no statistics"
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight, bias = conv.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


class FoldableNorm(nn.Sequential):
    """A convolution without bias and the batch norm behind it; a variant may make one convolution of both."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.variant: EncoderVariant = PLAIN

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        if self.variant.fold_batch_norms and not self.training:
            return conv_with_norm(x, conv, norm)
        out: Tensor = norm(conv(x))
        return out


def build_neck(dim: int, out_channels: int) -> nn.Sequential:
    """Return the neck that every encoder ends with: NCHW ``dim`` channels to the embedding's channels."""
    return nn.Sequential(
        nn.Conv2d(dim, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels),
    )


def pad_to_windows(x: Tensor, window_size: int) -> Tensor:
    """Zero-pad an NHWC tensor at the bottom and right so that both sides are multiples of the window."""
    height, width = x.shape[1], x.shape[2]
    pad_height = -height % window_size
    pad_width = -width % window_size
    if pad_height or pad_width:
        x = F.pad(x, (0, 0, 0, pad_width, 0, pad_height))
    return x


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut an NHWC tensor whose sides are multiples of the window into (batch * windows, window, window, C)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window_size, window_size, width // window_size, window_size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window_size, window_size, channels)


def merge_windows(windows: Tensor, window_size: int, padded_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    """Undo `partition_windows` and cut the padding off again."""
    height, width = padded_hw
    channels = windows.shape[-1]
    rows, columns = height // window_size, width // window_size
    x = windows.view(-1, rows, columns, window_size, window_size, channels)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)
    return x[:, : size_hw[0], : size_hw[1], :]
