# SPDX-License-Identifier: Apache-2.0
"""Sizes of every architecture of the family; plain data, and the only place where they stand.

Numbers of the published models follow segment_anything/build_sam.py and mobile_sam/build_sam.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from segship.masks.cleanup import MaskCleanUp
from segship.masks.edges import MaskEdges
from segship.promptable.everything.options import Thresholds
from segship.ship.families import IMAGENET_MEAN, IMAGENET_STD
from segship.spec import SamGeometry


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
    stride: ClassVar[int] = 16


@dataclass(frozen=True, slots=True)
class HybridConfig:
    """The encoder of ``tiny``: a convolution stem to stride 8, then global attention at stride 16."""

    stem_dims: tuple[int, ...] = (24, 48, 96)
    stem_blocks: tuple[int, ...] = (0, 1, 2)
    embed_dim: int = 192
    depth: int = 6
    num_heads: int = 6
    mlp_ratio: float = 3.0
    stride: ClassVar[int] = 16


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
    mask_edges
        How prompted masks follow the picture unless an export says otherwise; None leaves them as they are.
    amg_thresholds
        What everything mode keeps of this model's masks; None is what it keeps of SAM's.
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
    mask_edges: MaskEdges | None = None
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
        mask_edges=MaskEdges(),
        # Chosen by recipes/tiny/everything.py, on scenes and on outlined photographs.
        amg_thresholds=Thresholds(0.4, 0.1, nms="mask", edges=True, refine=True, refine_iou_thresh=0.3),
    ),
}
