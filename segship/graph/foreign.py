# SPDX-License-Identifier: Apache-2.0
"""Graphs in the contracts of other people's programs: official, ascend, samexporter.

`official` is the decoder of segment_anything/utils/onnx.py SamOnnxModel as scripts/export_onnx_model.py writes it.
`ascend` is the encoder and decoder of the Ascend ModelZoo guide: input ``x``, no ``orig_im_size``, outputs IoU first;
and for SeMask-FPN the guide's one graph, ``image`` to the int64 numbers of classes, ``output``.
`samexporter` is the pair that the package samexporter documents: an encoder that takes raw RGB pixels of any size up to
the model frame (its ``--use-preprocess``) and the official decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.models.fpn import resize_bilinear
from segship.models.sam import Sam, decode_prompts
from segship.models.semask import Semask
from segship.spec import MASK_TOKENS, GraphSpec, SamGeometry, TensorSpec

# The reference's weight of the prompt count when it chooses between the single mask and the ambiguous three.
SINGLE_MASK_REWARD = 1000.0
SINGLE_MASK_POINTS = 2.5


class OneObjectDecoder(nn.Module):
    """One object a call; returns IoUs first, then low-resolution masks: the Ascend guide's cut decoder."""

    def __init__(self, sam: Sam, single_mask: bool) -> None:
        super().__init__()
        self.sam = sam
        self.single_mask = single_mask

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        prompts = (point_coords, point_labels, mask_input, has_mask_input)
        scores, masks = decode_prompts(self.sam, image_embeddings, *prompts, point_is_empty=None)
        if self.single_mask:
            masks, scores = select_single_mask(masks, scores, point_coords.shape[1])
        return scores, masks


class SemanticIndices(nn.Module):
    """Image (B, 3, H, W) to the numbers of classes (B, H, W) int64: the Ascend guide's SeMask graph.

    Its second resize and its softmax are left out: they change no answer.
    """

    def __init__(self, semask: Semask) -> None:
        super().__init__()
        self.semask = semask

    def forward(self, image: Tensor) -> Tensor:
        return resize_bilinear(self.semask(image), image.shape[2:]).argmax(dim=1)


class PixelEncoder(nn.Module):
    """Raw RGB pixels (H, W, 3) float32 in 0..255, already resized, to the embedding: samexporter's encoder."""

    mean: Tensor
    std: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam
        self.register_buffer("mean", torch.tensor(sam.config.pixel_mean), persistent=False)
        self.register_buffer("std", torch.tensor(sam.config.pixel_std), persistent=False)

    def forward(self, input_image: Tensor) -> Tensor:
        side = self.sam.config.image_size
        normalised = ((input_image - self.mean) / self.std).permute(2, 0, 1)
        height, width = input_image.shape[0], input_image.shape[1]
        padded = F.pad(normalised, (0, side - width, 0, side - height))
        out: Tensor = self.sam.image_encoder(padded.unsqueeze(0))
        return out


def select_single_mask(masks: Tensor, scores: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Keep one mask an object by the reference's rule, which reads the length of the prompt tensor.

    Follows segment_anything/utils/onnx.py select_masks: with up to two points (one click and its padding) the best of
    masks 1 to 3 wins, with more mask 0 does.
    """
    reward = torch.zeros(1, MASK_TOKENS, device=scores.device)
    reward[:, 0] = SINGLE_MASK_REWARD
    best = (scores + (points - SINGLE_MASK_POINTS) * reward).argmax(dim=1, keepdim=True)
    chosen = (torch.arange(MASK_TOKENS, device=scores.device) == best).to(scores.dtype)
    # A weighted sum with weights 0 and 1 instead of indexing: static shapes, which NPU compilers ask for.
    mask = (masks * chosen[:, :, None, None]).sum(dim=1, keepdim=True)
    return mask, (scores * chosen).sum(dim=1, keepdim=True)


def one_object_decoder_spec(geometry: SamGeometry, single_mask: bool) -> GraphSpec:
    """Return the contract of the Ascend decoder."""
    channels, grid, low_res = geometry.embedding_channels, geometry.embedding_size, geometry.low_res_size
    masks = 1 if single_mask else MASK_TOKENS
    return GraphSpec(
        name="decoder",
        inputs=(
            TensorSpec("image_embeddings", "float32", (1, channels, grid, grid)),
            TensorSpec("point_coords", "float32", (1, "num_points", 2)),
            TensorSpec("point_labels", "float32", (1, "num_points")),
            TensorSpec("mask_input", "float32", (1, 1, low_res, low_res)),
            TensorSpec("has_mask_input", "float32", (1,)),
        ),
        outputs=(
            TensorSpec("iou_predictions", "float32", (1, masks)),
            TensorSpec("low_res_masks", "float32", (1, masks, low_res, low_res)),
        ),
    )


def official_decoder_spec(geometry: SamGeometry, single_mask: bool) -> GraphSpec:
    """Return the contract of the reference's ONNX decoder; its masks have the size of the original image."""
    cut = one_object_decoder_spec(geometry, single_mask)
    scores, low_res = cut.outputs
    masks = TensorSpec("masks", "float32", (1, scores.shape[1], "height", "width"))
    return GraphSpec(
        name="decoder",
        inputs=(*cut.inputs, TensorSpec("orig_im_size", "float32", (2,))),
        outputs=(masks, scores, low_res),
    )


def ascend_encoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of the Ascend encoder: input ``x``, batch dynamic."""
    side, channels, grid = geometry.image_size, geometry.embedding_channels, geometry.embedding_size
    return GraphSpec(
        name="encoder",
        inputs=(TensorSpec("x", "float32", ("batch", 3, side, side)),),
        outputs=(TensorSpec("image_embeddings", "float32", ("batch", channels, grid, grid)),),
    )


def ascend_semantic_spec(batch: int, size_hw: tuple[int, int]) -> GraphSpec:
    """Return the contract of the Ascend guide's SeMask graph: everything fixed, NCHW, RGB, normalised."""
    return GraphSpec(
        name="semantic",
        inputs=(TensorSpec("image", "float32", (batch, 3, *size_hw)),),
        outputs=(TensorSpec("output", "int64", (batch, *size_hw)),),
    )


def pixel_encoder_spec(geometry: SamGeometry) -> GraphSpec:
    """Return the contract of samexporter's encoder with its preprocessing inside."""
    channels, grid = geometry.embedding_channels, geometry.embedding_size
    return GraphSpec(
        name="encoder",
        inputs=(TensorSpec("input_image", "float32", ("image_height", "image_width", 3)),),
        outputs=(TensorSpec("image_embeddings", "float32", (1, channels, grid, grid)),),
    )
