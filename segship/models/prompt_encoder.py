# SPDX-License-Identifier: Apache-2.0
"""Points, box corners and mask inputs as embeddings; one implementation for every promptable model.

Follows segment_anything/modeling/prompt_encoder.py and, for labels that arrive as numbers in a tensor, the wrapper in
segment_anything/utils/onnx.py. Label -2 (an empty place) is ours: its embedding is zero and the decoder masks it out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from segship.models.layers import LayerNorm2d
from segship.spec import (
    LABEL_BACKGROUND,
    LABEL_BOX_BOTTOM_RIGHT,
    LABEL_BOX_TOP_LEFT,
    LABEL_FOREGROUND,
    LABEL_NOT_A_POINT,
)

POINT_LABELS = (LABEL_BACKGROUND, LABEL_FOREGROUND, LABEL_BOX_TOP_LEFT, LABEL_BOX_BOTTOM_RIGHT)


class RandomFourierFeatures(nn.Module):
    """Positional code of places in the unit square: [sin, cos](2 pi (2c - 1) G) with a fixed Gaussian matrix G."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, channels // 2))

    def forward(self, places: Tensor) -> Tensor:
        """Encode places (..., 2), x then y in [0, 1], to (..., channels)."""
        matrix = self.positional_encoding_gaussian_matrix
        centred = 2 * places - 1
        # Written out instead of as a matrix product: a product rounds differently for different numbers of points, and
        # the sine of a large phase amplifies that until a padded call differs from an unpadded one.
        phase = 2 * math.pi * (centred[..., :1] * matrix[0] + centred[..., 1:] * matrix[1])
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Embed prompts for the mask decoder.

    Parameters
    ----------
    channels
        Width of the decoder and of the image embedding.
    image_size
        Side of the model frame in pixels; coordinates are divided by it.
    embedding_size
        Side of the embedding's grid.
    mask_input_channels
        Width inside the mask branch.
    """

    def __init__(self, channels: int, image_size: int, embedding_size: int, mask_input_channels: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.embedding_size = embedding_size
        self.pe_layer = RandomFourierFeatures(channels)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in POINT_LABELS)
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.no_mask_embed = nn.Embedding(1, channels)
        first = mask_input_channels // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, first, kernel_size=2, stride=2),
            LayerNorm2d(first),
            nn.GELU(),
            nn.Conv2d(first, mask_input_channels, kernel_size=2, stride=2),
            LayerNorm2d(mask_input_channels),
            nn.GELU(),
            nn.Conv2d(mask_input_channels, channels, kernel_size=1),
        )

    def embed_points(self, point_coords: Tensor, point_labels: Tensor) -> Tensor:
        """Embed points.

        Parameters
        ----------
        point_coords
            (N, P, 2) float, x y in model-frame pixels, without the half-pixel shift.
        point_labels
            (N, P) float: 1, 0, 2 and 3 (box corners), -1 (not a point), -2 (empty).

        Returns
        -------
        Tensor
            (N, P, channels).
        """
        code: Tensor = self.pe_layer((point_coords + 0.5) / self.image_size)
        labels = point_labels.unsqueeze(-1)
        embedded = code * (labels >= 0).to(code.dtype)
        embedded = embedded + self.not_a_point_embed.weight * (labels == LABEL_NOT_A_POINT).to(code.dtype)
        for label, embedding in zip(POINT_LABELS, self.point_embeddings, strict=True):
            assert isinstance(embedding, nn.Embedding)
            embedded = embedded + embedding.weight * (labels == label).to(code.dtype)
        return embedded

    def embed_masks(self, mask_input: Tensor, has_mask_input: Tensor) -> Tensor:
        """Embed mask inputs (N, 1, 4h, 4w) to (N, C, h, w), the no-mask vector where ``has_mask_input`` (N,) is 0."""
        chosen = has_mask_input.view(-1, 1, 1, 1)
        no_mask = self.no_mask_embed.weight.view(1, -1, 1, 1)
        embedded: Tensor = self.mask_downscaling(mask_input)
        return chosen * embedded + (1 - chosen) * no_mask

    def dense_positions(self) -> Tensor:
        """Return the positional code of the embedding's cells, (1, C, h, w)."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        centres = (
            torch.arange(self.embedding_size, device=matrix.device, dtype=matrix.dtype) + 0.5
        ) / self.embedding_size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        code: Tensor = self.pe_layer(torch.stack([x, y], dim=-1))
        return code.permute(2, 0, 1).unsqueeze(0)
