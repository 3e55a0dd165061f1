# SPDX-License-Identifier: Apache-2.0
"""A whole promptable model from its configuration, and the two modules that become graphs."""

from __future__ import annotations

from torch import Tensor, nn

from segship.ship.families.sam.config import HybridConfig, SamConfig, TinyVitConfig, VitConfig
from segship.ship.families.sam.hybrid_vit import HybridEncoder
from segship.ship.families.sam.mask_decoder import MaskDecoder, PromptEncoder, label_is
from segship.ship.families.sam.tiny_vit import TinyVitEncoder
from segship.ship.families.sam.vit import VitEncoder
from segship.spec import LABEL_EMPTY


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder under the published names."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = build_encoder(config)
        self.prompt_encoder = PromptEncoder(
            config.embedding_channels, config.image_size, config.embedding_size, config.mask_input_channels
        )
        self.mask_decoder = MaskDecoder(
            config.embedding_channels,
            config.decoder_depth,
            config.decoder_heads,
            config.decoder_mlp_dim,
            config.iou_head_hidden_dim,
        )


class ImageEncoderGraph(nn.Module):
    """The graph ``image_encoder`` of segship.spec."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.sam.image_encoder(image)
        return out


class MaskDecoderGraph(nn.Module):
    """The graph ``mask_decoder`` of segship.spec: any number of objects of one image."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        prompts = (point_coords, point_labels, mask_input, has_mask_input)
        return decode_prompts(self.sam, image_embeddings, *prompts, point_is_empty=label_is(point_labels, LABEL_EMPTY))


def decode_prompts(
    sam: Sam,
    image_embeddings: Tensor,
    point_coords: Tensor,
    point_labels: Tensor,
    mask_input: Tensor,
    has_mask_input: Tensor,
    *,
    point_is_empty: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Embed prompts and decode them: predicted IoUs (N, 4) and low-resolution mask logits (N, 4, 4h, 4w)."""
    encoder = sam.prompt_encoder
    low_res_masks, iou_predictions = sam.mask_decoder(
        image_embeddings,
        encoder.dense_positions(),
        encoder.embed_points(point_coords, point_labels),
        encoder.embed_masks(mask_input, has_mask_input),
        point_is_empty,
    )
    return iou_predictions, low_res_masks


def build_encoder(config: SamConfig) -> nn.Module:
    """Build the image encoder that the configuration names."""
    match config.encoder:
        case VitConfig():
            return VitEncoder(config.encoder, config.image_size, config.embedding_channels)
        case TinyVitConfig():
            return TinyVitEncoder(config.encoder, config.embedding_channels)
        case HybridConfig():
            return HybridEncoder(config.encoder, config.image_size, config.embedding_channels)


def build_sam(config: SamConfig) -> Sam:
    """Build a promptable model with freshly initialised weights, in evaluation mode."""
    return Sam(config).eval()
