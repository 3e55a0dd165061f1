# SPDX-License-Identifier: Apache-2.0
"""SeMask-FPN: a Swin transformer with a semantic layer after every stage, and the FPN head.

Structure and maths follow SeMask (arXiv:2112.12782). One pass through the backbone, any input size and batch; eager
runs and exported graphs are the same operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segship.models.config import SemaskConfig
from segship.models.fpn import FpnHead, resize_bilinear
from segship.models.swin import (
    PatchEmbed,
    PatchMerging,
    SwinBlock,
    cut_windows,
    join_windows,
    pad_grid,
    shift_mask,
    window_counts,
)


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

    Logits are resized to the input's size once. Softmax keeps the order of its inputs, so there is none before argmax.
    """

    def __init__(self, model: Semask, output: str = "class_map") -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, image: Tensor) -> Tensor:
        logits = resize_bilinear(self.model(image), image.shape[2:])
        return logits if self.output == "logits" else logits.argmax(dim=1).to(torch.uint8)


def build_semask(config: SemaskConfig) -> Semask:
    """Build a semantic model with freshly initialised weights, in evaluation mode."""
    return Semask(config).eval()
