# SPDX-License-Identifier: Apache-2.0
"""SeMask-FPN as a torch module: semantic layers behind Swin's stages, the FPN head, and the graph ``semantic``.

Structure and maths follow SeMask (arXiv:2112.12782), the head Panoptic Feature Pyramid Networks (arXiv:1901.02446) as
SeMask's ``BranchFPNHead`` has it. The branch of class maps that the head adds in training takes no part in the answer,
so it is not here and has no parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.ship.families.layers import conv_with_norm
from segship.ship.families.semask.config import SemaskConfig
from segship.ship.families.semask.swin import (
    PatchEmbed,
    PatchMerging,
    SwinBlock,
    cut_windows,
    join_windows,
    pad_grid,
    shift_mask,
    window_counts,
)
from segship.ship.variants import PLAIN, EncoderVariant


class ConvNormRelu(nn.Module):
    """A 3 x 3 convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.variant: EncoderVariant = PLAIN
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        folded = self.variant.fold_batch_norms and not self.training
        out: Tensor = conv_with_norm(x, self.conv, self.bn) if folded else self.bn(self.conv(x))
        return out.relu()


def resize_bilinear(x: Tensor, size_hw: Sequence[int]) -> Tensor:
    """Resize the maps (B, C, h, w) to another size, half-pixel centres, without antialiasing."""
    return F.interpolate(x, size=tuple(size_hw), mode="bilinear", align_corners=False)


class FpnHead(nn.Module):
    """Bring feature maps, whose strides double, to the first one's size, add them, and classify each place."""

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


class ClassInjection(nn.Module):
    """Attention by class: places look at places whose class scores agree with theirs, without scaling."""

    def __init__(self, dim: int, semantic_classes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.mlp_cls_q = nn.Linear(dim, semantic_classes)
        self.mlp_cls_k = nn.Linear(dim, semantic_classes)
        self.mlp_v = nn.Linear(dim, dim)
        self.mlp_res = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (groups, places, C)."""
        weights = (self.mlp_cls_q(x) @ self.mlp_cls_k(x).transpose(-2, -1)).softmax(dim=-1)
        out: Tensor = x + self.gamma * self.mlp_res(weights @ self.mlp_v(x))
        return out


class SemanticLayer(nn.Module):
    """A norm and a `ClassInjection` on an NHWC grid, in windows or over the whole of it (``window_size`` 0).

    The norm's output replaces what came in: there is no residual around it.
    """

    def __init__(self, dim: int, semantic_classes: int, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.norm1 = nn.LayerNorm(dim)
        self.class_injection = nn.ModuleList([ClassInjection(dim, semantic_classes)])

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        x = self.norm1(x)
        if not self.window_size:
            return self._inject(x.reshape(batch, height * width, dim)).reshape(batch, height, width, dim)
        counts = window_counts(height, width, self.window_size)
        # Padding comes after the norm, and padded places take part.
        windows = cut_windows(pad_grid(x, counts, self.window_size), counts, self.window_size)
        return join_windows(self._inject(windows), counts, self.window_size, batch)[:, :height, :width]

    def _inject(self, x: Tensor) -> Tensor:
        for injection in self.class_injection:
            x = injection(x)
        return x


class SemaskStage(nn.Module):
    """Swin blocks, every other one shifted, and the semantic layer; then, but for the last stage, patches merge."""

    def __init__(self, config: SemaskConfig, stage: int) -> None:
        super().__init__()
        dim, heads = config.stage_dims[stage], config.num_heads[stage]
        self.window_size = config.window_size
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, config.window_size, shifted=index % 2 == 1, mlp_ratio=config.mlp_ratio)
            for index in range(config.depths[stage])
        )
        window = config.window_size if stage in config.windowed_stages else 0
        self.semantic_layer = SemanticLayer(dim, config.semantic_classes, window)
        self.downsample = PatchMerging(dim) if stage < len(config.depths) - 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """Mix an NHWC grid; the merging is called by the backbone, since the head takes what comes before it."""
        mask = shift_mask(window_counts(x.shape[1], x.shape[2], self.window_size), self.window_size, x)
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.semantic_layer(x)
        return out


class SemaskBackbone(nn.Module):
    """Image (B, 3, H, W) to four feature maps of strides 4, 8, 16 and 32, channels first."""

    def __init__(self, config: SemaskConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        self.layers = nn.ModuleList(SemaskStage(config, stage) for stage in range(len(config.depths)))
        for stage, dim in enumerate(config.stage_dims):
            self.add_module(f"norm{stage}", nn.LayerNorm(dim))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch_embed(image)
        features = []
        for index, stage in enumerate(self.layers):
            assert isinstance(stage, SemaskStage)
            x = stage(x)
            # The norm of an output is the head's alone; the next stage takes what came before it.
            features.append(self.get_submodule(f"norm{index}")(x).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return features


class Semask(nn.Module):
    """Backbone and head under the published names: logits (B, classes, H / 4, W / 4), sizes rounded up."""

    def __init__(self, config: SemaskConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = SemaskBackbone(config)
        self.decode_head = FpnHead(config.stage_dims, config.head_channels, config.classes)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.decode_head(self.backbone(image))
        return out


class SemanticGraph(nn.Module):
    """The graph ``semantic`` of segship.spec: class maps (B, H, W) uint8, or logits (B, classes, H, W) float32.

    With the output ``indices``, class maps are int64, as the Ascend guide has them. Logits are resized to the input's
    size once. Softmax keeps the order of its inputs, so there is none before argmax.
    """

    def __init__(self, model: Semask, output: str = "class_map") -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, image: Tensor) -> Tensor:
        logits = resize_bilinear(self.model(image), image.shape[2:])
        if self.output == "logits":
            return logits
        classes = logits.argmax(dim=1)
        return classes if self.output == "indices" else classes.to(torch.uint8)


def build_semask(config: SemaskConfig) -> Semask:
    """Build a semantic model with freshly initialised weights, in evaluation mode."""
    return Semask(config).eval()
