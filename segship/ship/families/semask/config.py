# SPDX-License-Identifier: Apache-2.0
"""Sizes of every architecture of the family, and what follows from them; the only place where they stand.

Numbers of the published models follow the configuration files of SeMask-FPN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segship.arrays import IntArray
from segship.semantic.manifest import SemanticWindow
from segship.ship.families import IMAGENET_MEAN, IMAGENET_STD

CITYSCAPES_CLASSES = 19


@dataclass(frozen=True, slots=True)
class SemaskConfig:
    """One SeMask-FPN model.

    Attributes
    ----------
    architecture
        ``semask_t``, ``semask_s``, ``semask_b``, ``semask_l``, or ``custom``.
    embed_dim
        Width of the first stage; it doubles from stage to stage.
    window_size
        Side of the windows of attention and of the windowed semantic layers, in places.
    classes
        Channels of the logits.
    semantic_classes
        Classes of the semantic layers, which some published files have fewer or more of than the head.
    semantic_window
        See `SemanticWindow`. No tensor shows it: a wrong choice loads without complaint and gives wrong masks.
    """

    architecture: str
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    classes: int = CITYSCAPES_CLASSES
    semantic_classes: int = CITYSCAPES_CLASSES
    semantic_window: SemanticWindow = "all"
    patch_size: int = 4
    mlp_ratio: float = 4.0
    head_channels: int = 256
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Width of every stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.depths)))

    @property
    def windowed_stages(self) -> tuple[int, ...]:
        """Stages whose semantic layer works in windows."""
        count = len(self.depths) if self.semantic_window == "all" else 2
        return tuple(range(count))


def published_semantic_window(embed_dim: int, semantic_classes: int) -> SemanticWindow:
    """Return what the published training code does for these sizes.

    Its backbone decides by two numbers (SeMask-FPN/mmseg/models/backbones/semask_swin_transformer.py): widths 96 and
    192 with more than 19 semantic classes leave the last two stages without windows. So do T, S and L for ADE20K and
    COCO-Stuff; every B and every model for Cityscapes has windows in all four.
    """
    mixed = embed_dim in (96, 192) and semantic_classes > CITYSCAPES_CLASSES
    return "first-two" if mixed else "all"


SEMASK_ARCHITECTURES: dict[str, SemaskConfig] = {
    "semask_t": SemaskConfig("semask_t", 96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "semask_s": SemaskConfig("semask_s", 96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "semask_b": SemaskConfig("semask_b", 128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "semask_l": SemaskConfig("semask_l", 192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


def relative_position_index(window_size: int) -> IntArray:
    """Return (w * w, w * w) int64: the row of the bias table for each pair of places of a window."""
    places = np.arange(window_size)
    offsets = places[:, None] - places[None, :] + window_size - 1
    rows = offsets[:, None, :, None] * (2 * window_size - 1)
    return (rows + offsets[None, :, None, :]).reshape(window_size**2, window_size**2)
