# SPDX-License-Identifier: Apache-2.0
"""Sizes of every architecture; the only place where they stand.

Everything here is plain data: importing it loads no torch. Numbers of the published models follow
segment_anything/build_sam.py, mobile_sam/build_sam.py and the configuration files of SeMask-FPN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segship.masks.cleanup import MaskCleanUp
from segship.promptable.everything.options import Thresholds
from segship.spec import SamGeometry

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, slots=True)
class VitConfig:
    """SAM's plain vision transformer with window and global attention blocks."""

    embed_dim: int
    depth: int
    num_heads: int
    global_attention_blocks: tuple[int, ...]
    patch_size: int = 16
    window_size: int = 14
    mlp_ratio: float = 4.0

    @property
    def stride(self) -> int:
        """Image pixels a cell of the embedding, along one side."""
        return self.patch_size


@dataclass(frozen=True, slots=True)
class TinyVitConfig:
    """MobileSAM's TinyViT: convolution stage, three window-attention stages, the last two at one resolution."""

    embed_dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (2, 4, 5, 10)
    window_sizes: tuple[int, ...] = (7, 7, 14, 7)
    mlp_ratio: float = 4.0
    mbconv_expand_ratio: float = 4.0
    num_classes: int = 1000

    @property
    def stride(self) -> int:
        """Image pixels a cell of the embedding, along one side."""
        return 16


@dataclass(frozen=True, slots=True)
class HybridConfig:
    """The encoder of ``tiny``: a convolution stem to stride 8, then global attention at stride 16."""

    stem_dims: tuple[int, ...] = (24, 48, 96)
    stem_blocks: tuple[int, ...] = (0, 1, 2)
    embed_dim: int = 192
    depth: int = 6
    num_heads: int = 6
    mlp_ratio: float = 3.0

    @property
    def stride(self) -> int:
        """Image pixels a cell of the embedding, along one side."""
        return 16


EncoderConfig = VitConfig | TinyVitConfig | HybridConfig


@dataclass(frozen=True, slots=True)
class SamConfig:
    """One promptable model: an encoder and the prompt encoder and mask decoder that all of them share.

    Attributes
    ----------
    architecture
        The name in the table of architectures, or ``custom``.
    image_size
        Side of the square model frame, in pixels.
    embedding_channels
        Channels of the image embedding, and width of the decoder.
    mask_clean_up
        How prompted masks are cleaned unless an export says otherwise; None leaves them as they are.
    amg_thresholds
        Thresholds of everything mode that suit this model's scores; None are SAM's.
    """

    architecture: str
    encoder: EncoderConfig
    image_size: int = 1024
    embedding_channels: int = 256
    mask_input_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_head_hidden_dim: int = 256
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    mask_clean_up: MaskCleanUp | None = None
    amg_thresholds: Thresholds | None = None

    @property
    def embedding_size(self) -> int:
        """Side of the embedding's square grid, in cells."""
        return self.image_size // self.encoder.stride

    @property
    def geometry(self) -> SamGeometry:
        """The sizes that the graph contracts depend on."""
        return SamGeometry(self.image_size, self.embedding_channels, self.embedding_size)


SAM_ARCHITECTURES: dict[str, SamConfig] = {
    "vit_b": SamConfig("vit_b", VitConfig(768, 12, 12, (2, 5, 8, 11))),
    "vit_l": SamConfig("vit_l", VitConfig(1024, 24, 16, (5, 11, 17, 23))),
    "vit_h": SamConfig("vit_h", VitConfig(1280, 32, 16, (7, 15, 23, 31))),
    "vit_t": SamConfig("vit_t", TinyVitConfig()),
    "tiny": SamConfig(
        "tiny",
        HybridConfig(),
        image_size=384,
        embedding_channels=128,
        decoder_heads=4,
        decoder_mlp_dim=512,
        iou_head_hidden_dim=128,
        mask_clean_up=MaskCleanUp(),
        amg_thresholds=Thresholds(pred_iou_thresh=0.45, stability_score_thresh=0.35),
    ),
}

SemanticWindow = Literal["all", "first-two"]
"""Stages whose semantic layer works in windows; those of the other stages look at the whole grid."""

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
