# SPDX-License-Identifier: Apache-2.0
"""The shared decoder's way from cells to mask logits: two transposed convolutions as products.

Behind the transformer, the image of an object is ``(base + sum of rows' mixed) / scale`` for each cell (rules 4 and 5
of segship.models.shared_decoder). The first convolution, kernel 2 and stride 2, is a matrix U on each cell, with the
norm's weight g2 and bias b2 before it: U g2 base comes from the image side, U g2 rows' is small, and what remains is
one product of the 2M sums with 4 * C / 4 columns a cell. The norm behind it works on each of the four new pixels by
itself; U's columns are centred in each group of channels, so its mean is zero already and only rounding is left of it.
The second convolution is a matrix on each of those pixels, two of its four output rows at a time, so that pixels come
out in the order of the image and nothing has to be interleaved: line y of four holds row y of every cell's 4 x 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.models.layers import LayerNorm2d
from segship.models.mask_decoder import TwoWayBlock
from segship.models.sam import Sam


class Added(NamedTuple):
    """What tokens added to an object's image: ``rows' mixed``."""

    mixed: Tensor
    """(N, M, T), how much of each row every cell got."""
    rows: Tensor
    """(N, M, C)."""


def mask_lines(
    sam: Sam, added: Sequence[Added], scale: Tensor, upscaled: Tensor, kernels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the logits of all masks, a tensor for each of the four rows of pixels that a row of cells makes.

    Parameters
    ----------
    added
        What was added to the objects' images, rows times the last norm's weight; ``mixed`` are (K, M, cells).
    scale
        (K, 1, cells), the last norm's divisor.
    upscaled
        (1, cells, C) from the image side.
    kernels
        (K, masks, C / 8).

    Returns
    -------
    tuple of Tensor
        Four (K, masks, 4 * cells).
    """
    norm, (first, second) = sam.mask_decoder.output_upscaling[1], convolutions(sam)
    assert isinstance(norm, LayerNorm2d) and first.bias is not None and second.bias is not None
    last_block = sam.mask_decoder.transformer.layers[1]
    assert isinstance(last_block, TwoWayBlock)
    channels, width = norm.weight.shape[0], second.weight.shape[1]
    objects, cells = scale.shape[0], scale.shape[2]
    kernel = first_kernel(sam)
    offset = centre_groups(last_block.norm4.bias @ kernel + first.bias.repeat(4))
    rows = centre_groups(torch.cat([part.rows for part in added], dim=1) @ kernel)
    inverse = (1 / scale).transpose(1, 2)
    mixed = torch.cat([part.mixed for part in added], dim=1).transpose(1, 2)
    # (row, column, out, in) of the second kernel; a row of it makes two pixels beside each other.
    pixel_kernel = second.weight.permute(2, 3, 1, 0).reshape(2, 2 * width, channels)
    lines = []
    for upper in range(2):
        half = slice(upper * 2 * channels, (upper + 1) * 2 * channels)
        # The divisor last, which with both sums is one pass behind the product in engines that fuse such things.
        x = (mixed @ rows[:, :, half] + upscaled[:, :, half]) * inverse + offset[half]
        # One axis for all pixels: OpenVINO has a single kernel for the norm of a matrix.
        x = x.reshape(objects * cells * 2, channels)
        x = F.gelu(F.layer_norm(x, (channels,), norm.weight, norm.bias, norm.eps))
        for lower in range(2):
            y = F.gelu(F.linear(x, pixel_kernel[lower], second.bias.repeat(2))).reshape(objects, 4 * cells, width)
            lines.append(kernels @ y.transpose(1, 2))
    return lines[0], lines[1], lines[2], lines[3]


def convolutions(sam: Sam) -> tuple[nn.ConvTranspose2d, nn.ConvTranspose2d]:
    """Return the two transposed convolutions."""
    first, _, _, second, _ = sam.mask_decoder.output_upscaling
    assert isinstance(first, nn.ConvTranspose2d) and isinstance(second, nn.ConvTranspose2d)
    return first, second


def first_kernel(sam: Sam) -> Tensor:
    """Return the first transposed convolution as a matrix (C, 4 * out), its columns (row, column, out)."""
    weight = convolutions(sam)[0].weight
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def centre_groups(x: Tensor) -> Tensor:
    """Subtract from each of the four groups of the last axis its mean, as the norm behind the convolution will."""
    return centre(torch.unflatten(x, -1, (4, -1))).flatten(-2)


def centre(x: Tensor, dim: int = -1) -> Tensor:
    """Subtract the mean along an axis."""
    return x - x.mean(dim=dim, keepdim=True)
