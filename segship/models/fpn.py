# SPDX-License-Identifier: Apache-2.0
"""The semantic FPN head: four feature maps to logits of classes at a quarter of the image's size.

Follows Panoptic Feature Pyramid Networks (arXiv:1901.02446) as SeMask's ``BranchFPNHead`` has it. The branch of class
maps that the head adds in training takes no part in the answer, so it is not here and has no parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormRelu(nn.Module):
    """A 3 x 3 convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x)).relu()
        return out


def resize_bilinear(x: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Resize the maps (B, C, h, w) to another size, half-pixel centres, without antialiasing."""
    return F.interpolate(x, size=tuple(size_hw), mode="bilinear", align_corners=False)


class FpnHead(nn.Module):
    """Bring every level to the first one's size, add them, and classify each place.

    Parameters
    ----------
    in_channels
        Channels of the feature maps, whose strides double from level to level.
    channels
        Width of the head.
    classes
        Channels of the logits.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, classes: int) -> None:
        super().__init__()
        self.scale_heads = nn.ModuleList(
            self._branch(level, width, channels) for level, width in enumerate(in_channels)
        )
        self.conv_seg = nn.Conv2d(channels, classes, kernel_size=1)

    @staticmethod
    def _branch(level: int, in_channels: int, channels: int) -> nn.Sequential:
        """Return one convolution for each doubling of the size, and one for the first level, which needs none."""
        modules: list[nn.Module] = []
        for index in range(max(1, level)):
            modules.append(ConvNormRelu(channels if index else in_channels, channels))
            if level:
                modules.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
        return nn.Sequential(*modules)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Classify feature maps (B, C_i, h_i, w_i), finest first: logits (B, classes, h_0, w_0)."""
        first, *others = [branch(level) for branch, level in zip(self.scale_heads, features, strict=True)]
        total = first
        for other in others:
            # Doubling a size that was rounded up gives a row or column too many.
            total = total + resize_bilinear(other, first.shape[2:])
        logits: Tensor = self.conv_seg(total)
        return logits
