# SPDX-License-Identifier: Apache-2.0
"""The prompt encoder, the two-way transformer and the mask decoder of every promptable model.

Follows segment_anything/modeling prompt_encoder.py, transformer.py and mask_decoder.py and, for labels that arrive as
numbers in a tensor, the wrapper in segment_anything/utils/onnx.py. Two things are ours: the image embedding may have
batch 1 for any number of objects, and label -2 is an empty place, whose embedding is zero and which every attention
masks out, so that objects with different numbers of points share a call without changing each other's masks.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from segship.ship.families.layers import LayerNorm2d, MlpBlock
from segship.ship.variants import PLAIN, EncoderVariant
from segship.spec import (
    LABEL_BACKGROUND,
    LABEL_BOX_BOTTOM_RIGHT,
    LABEL_BOX_TOP_LEFT,
    LABEL_FOREGROUND,
    LABEL_NOT_A_POINT,
    MASK_TOKENS,
)

POINT_LABELS = (LABEL_BACKGROUND, LABEL_FOREGROUND, LABEL_BOX_TOP_LEFT, LABEL_BOX_BOTTOM_RIGHT)


def label_is(labels: Tensor, label: int) -> Tensor:
    """Return 1 where a float label is ``label`` and 0 where it is another whole number.

    Arithmetic, since engines of phones and of NPUs refuse comparisons and their bools; exact for whole numbers.
    """
    return torch.relu(1 - (labels - label).abs())


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
    """Embed prompts for the mask decoder: points and box corners as tokens, mask inputs on the embedding's grid."""

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
        """Embed points (N, P, 2), x y in model-frame pixels, with float labels (N, P) to (N, P, channels).

        Labels are 1, 0, 2 and 3 (box corners), -1 (not a point) and -2 (empty).
        """
        code: Tensor = self.pe_layer((point_coords + 0.5) / self.image_size)
        labels = point_labels.unsqueeze(-1)
        embedded = code * (labels + 1).clamp(0, 1)
        embedded = embedded + self.not_a_point_embed.weight * label_is(labels, LABEL_NOT_A_POINT)
        for label, embedding in zip(POINT_LABELS, self.point_embeddings, strict=True):
            assert isinstance(embedding, nn.Embedding)
            embedded = embedded + embedding.weight * label_is(labels, label)
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


# Added to the scores of masked keys. exp() of it is exactly zero in float32 and it is still a finite float16, so a
# lower-precision build of the same graph stays correct.
MASKED_SCORE = -30000.0


class Attention(nn.Module):
    """Multi-head attention with an inner width of ``dim // downsample_rate``."""

    def __init__(self, dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        inner = dim // downsample_rate
        self.num_heads = num_heads
        self.head_dim = inner // num_heads
        self.scale = self.head_dim**-0.5
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """Attend; ``key_bias`` (N, 1, 1, keys) is added to the scores."""
        query, key, value = self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))
        scores = (query * self.scale) @ key.transpose(-2, -1)
        if key_bias is not None:
            scores = scores + key_bias
        mixed = (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(mixed)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.num_heads, self.head_dim).transpose(1, 2)


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MlpBlock(dim, mlp_dim, nn.ReLU)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, num_heads, downsample_rate=2)
        self.first = first

    def forward(
        self, tokens: Tensor, image: Tensor, token_code: Tensor, image_code: Tensor, key_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.first:
            # The first block's self-attention has neither positions nor a residual.
            tokens = self.self_attn(tokens, tokens, tokens, key_bias)
        else:
            placed = tokens + token_code
            tokens = tokens + self.self_attn(placed, placed, tokens, key_bias)
        tokens = self.norm1(tokens)
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_code, image + image_code, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(image + image_code, tokens + token_code, tokens, key_bias)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """The blocks, and a last attention from the tokens to the image."""

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, num_heads, mlp_dim, first=index == 0) for index in range(depth))
        self.final_attn_token_to_image = Attention(dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(
        self, image: Tensor, image_code: Tensor, token_code: Tensor, key_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mix (N, tokens, C) with (N or 1, cells, C); returns both."""
        tokens = token_code
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_code, image_code, key_bias)
        tokens = tokens + self.final_attn_token_to_image(tokens + token_code, image + image_code, image)
        return self.norm_final_attn(tokens), image


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (depth - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        out: Tensor = last(x)
        return out


class MaskDecoder(nn.Module):
    """Predict four masks and their quality for every object; ``dim`` is the width C of the image embedding."""

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_dim: int, iou_head_hidden_dim: int) -> None:
        super().__init__()
        # For segship.ship.families.sam.shared_decoder; what is here is computed in one way.
        self.variant: EncoderVariant = PLAIN
        self.transformer = TwoWayTransformer(dim, depth, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, kernel_size=2, stride=2),
            LayerNorm2d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(dim, dim, dim // 8, 3) for _ in range(MASK_TOKENS))
        self.iou_prediction_head = Mlp(dim, iou_head_hidden_dim, MASK_TOKENS, 3)

    def forward(
        self,
        image_embeddings: Tensor,
        image_code: Tensor,
        point_embeddings: Tensor,
        mask_embeddings: Tensor,
        point_is_empty: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode N objects to low-resolution mask logits (N, 4, 4h, 4w) and predicted IoUs (N, 4).

        The image is (1, C, h, w), shared by all objects, or (N, C, h, w); its code (1, C, h, w); points are (N, P, C)
        and masks (N, C, h, w) from the prompt encoder. ``point_is_empty`` (N, P) is 1 where a place is masked out
        of every attention, else 0; None when no place is empty.
        """
        objects = point_embeddings.shape[0]
        height, width = image_embeddings.shape[2], image_embeddings.shape[3]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight], dim=0)
        tokens = torch.cat([output_tokens.unsqueeze(0).expand(objects, -1, -1), point_embeddings], dim=1)
        image = (image_embeddings + mask_embeddings).flatten(2).transpose(1, 2)
        code = image_code.flatten(2).transpose(1, 2)
        key_bias = None if point_is_empty is None else self._key_bias(point_is_empty)
        tokens, image = self.transformer(image, code, tokens, key_bias)
        image = image.transpose(1, 2).reshape(objects, -1, height, width)
        return self._masks(tokens, image), self.iou_prediction_head(tokens[:, 0])

    def _key_bias(self, point_is_empty: Tensor) -> Tensor:
        # The IoU token and the mask tokens are never empty.
        bias = torch.nn.functional.pad(point_is_empty * MASKED_SCORE, (1 + MASK_TOKENS, 0))
        return bias[:, None, None, :]

    def _masks(self, tokens: Tensor, image: Tensor) -> Tensor:
        upscaled: Tensor = self.output_upscaling(image)
        kernels = torch.stack(
            [mlp(tokens[:, 1 + index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        height, width = upscaled.shape[2], upscaled.shape[3]
        return (kernels @ upscaled.flatten(2)).view(-1, MASK_TOKENS, height, width)
