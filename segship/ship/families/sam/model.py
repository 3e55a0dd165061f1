# SPDX-License-Identifier: Apache-2.0
"""A whole promptable model from its configuration, and the two modules that become graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn
from torch.nn import functional as F

from segship.errors import CheckpointError
from segship.ship.families.sam.config import HybridConfig, SamConfig, TinyVitConfig, VitConfig
from segship.ship.families.sam.hybrid_vit import HybridEncoder
from segship.ship.families.sam.mask_decoder import MaskDecoder, PromptEncoder
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
        return decode_prompts(self.sam, image_embeddings, *prompts, point_is_empty=point_labels == LABEL_EMPTY)


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


POSITION_TABLE = "image_encoder.pos_embed"


def change_image_size(
    config: SamConfig, state_dict: Mapping[str, Tensor], image_size: int
) -> tuple[SamConfig, dict[str, Tensor], tuple[str, ...]]:
    """Return configuration, weights and a sentence for every change, for a model frame of ``image_size`` pixels.

    Tables that have another size than the file's own model frame needs are resized too, as the reference does whenever
    it runs.

    Raises
    ------
    CheckpointError
        When the size is not a positive multiple of the encoder's stride.
    """
    stride = config.encoder.stride
    if image_size < stride or image_size % stride:
        raise CheckpointError(
            f"image size {image_size} does not fit: this encoder takes multiples of {stride}, such as "
            f"{max(stride, round(image_size / stride) * stride)}",
            code="bad_image_size",
        )
    resized = replace(config, image_size=image_size)
    same = image_size == config.image_size
    changes = [] if same else [f"image size {image_size} instead of {config.image_size}"]
    state = dict(state_dict)
    for name, table in state_dict.items():
        fitted = _fit(name, table, config, resized.embedding_size)
        if fitted is not None:
            state[name] = fitted
            changes.append(f"{name} resized from {tuple(table.shape)} to {tuple(fitted.shape)}")
    return resized, state, tuple(changes)


def _fit(name: str, table: Tensor, config: SamConfig, grid: int) -> Tensor | None:
    """Return the resized table, or None when it has that size, or the tensor does not depend on the model frame."""
    if name == POSITION_TABLE and table.shape[1] != grid:
        nchw = F.interpolate(table.permute(0, 3, 1, 2), size=(grid, grid), mode="bicubic", antialias=False)
        return nchw.permute(0, 2, 3, 1).contiguous()
    if isinstance(config.encoder, VitConfig) and name.endswith(("attn.rel_pos_h", "attn.rel_pos_w")):
        block = int(name.split(".")[2])
        if block in config.encoder.global_attention_blocks and len(table) != 2 * grid - 1:
            along = F.interpolate(table.T.unsqueeze(0), size=2 * grid - 1, mode="linear")
            return along.squeeze(0).T.contiguous()
    return None
