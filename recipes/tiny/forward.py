# SPDX-License-Identifier: Apache-2.0
"""The shipped model's forward pass, arranged for training: the same parameters and maths, many prompts an image.

What differs from `segship.ship.families` is only the order of the work. What all prompts of an image share is computed
once, transposed convolutions run as matrix products on channels-last tokens, and the image stream keeps its low
precision. A test compares it with the modules that ship.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segship.ship.families.layers import LayerNorm2d
from segship.ship.families.sam.hybrid_vit import HybridBlock, HybridEncoder
from segship.ship.families.sam.mask_decoder import Attention, MaskDecoder, PromptEncoder, TwoWayBlock
from segship.ship.families.sam.model import Sam
from segship.spec import LABEL_EMPTY, MASK_TOKENS

MASKED_SCORE = -30000.0


@functools.cache
def multiplies_bf16(kind: str) -> bool:
    """Return whether "cpu" or "cuda" multiplies bfloat16 itself; elsewhere bfloat16 takes 15 times float32's time."""
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(device: torch.device) -> torch.autocast:
    """Let matrix products run in bfloat16 where the device multiplies it; float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=multiplies_bf16(device.type))


def encode(sam: Sam, images: Tensor) -> Tensor:
    """Encode (B, 3, S, S) to tokens (B, cells, C)."""
    encoder = cast(HybridEncoder, sam.image_encoder)
    x = encoder.stem(images).permute(0, 2, 3, 1)
    x = x + encoder.pos_embed.to(x.dtype)
    for block in encoder.blocks:
        x = _encoder_block(cast(HybridBlock, block), x)
    x = encoder.norm(x)
    conv1, norm1, conv2, norm2 = (cast(Any, layer) for layer in encoder.neck)
    x = _layer_norm(norm1, F.linear(x, conv1.weight.flatten(1)))
    x = conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return _layer_norm(norm2, x).flatten(1, 2)


def _encoder_block(block: HybridBlock, x: Tensor) -> Tensor:
    x = x + block.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    x = x + block.attn(block.norm1(x).flatten(1, 2)).view(x.shape)
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


def _layer_norm(norm: LayerNorm2d, x: Tensor) -> Tensor:
    """Apply a channels-first norm to channels-last values."""
    return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)


def decode(
    sam: Sam, image: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Decode P prompts for each of B images.

    Parameters
    ----------
    image
        (B, cells, C) from `encode`.
    coords, labels
        (B, P, places, 2) and (B, P, places), as the mask decoder's graph takes them.
    mask_input
        (B, P, 4h, 4w) logits, or None when no prompt has one.

    Returns
    -------
    tuple of Tensor
        Logits (B, P, 4, 4h, 4w) and predicted IoUs (B, P, 4).
    """
    tokens, image = attend(sam, image, coords, labels, mask_input)
    return paint(sam, tokens, image), sam.mask_decoder.iou_prediction_head(tokens[:, :, 0])


def attend(
    sam: Sam, image: Tensor, coords: Tensor, labels: Tensor, mask_input: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run the decoder's transformer on what `decode` takes; tokens (B, P, 1 + 4 + ..., C), image (B, P, cells, C).

    Token 0 is what the IoU head sees.
    """
    decoder: MaskDecoder = sam.mask_decoder
    prompts: PromptEncoder = sam.prompt_encoder
    dtype = image.dtype
    with torch.autocast(image.device.type, enabled=False):
        points = prompts.embed_points(coords.float(), labels.float())
        code = prompts.dense_positions().flatten(2).transpose(1, 2).to(dtype)
    start = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    start = start.expand(*points.shape[:2], -1, -1)
    token_code = torch.cat([start, points], 2).to(dtype)
    bias = F.pad((labels == LABEL_EMPTY).to(dtype) * MASKED_SCORE, (1 + MASK_TOKENS, 0))[:, :, None, None]
    if mask_input is None:
        image = (image + prompts.no_mask_embed.weight.to(dtype)).unsqueeze(1)
    else:
        dense = prompts.mask_downscaling(mask_input.flatten(0, 1).unsqueeze(1))
        dense = dense.flatten(2).transpose(1, 2).unflatten(0, mask_input.shape[:2])
        image = image.unsqueeze(1) + dense.to(dtype)
    tokens = token_code
    for layer in decoder.transformer.layers:
        tokens, image = _two_way(cast(TwoWayBlock, layer), tokens, image, token_code, code, bias)
    last = decoder.transformer.final_attn_token_to_image
    tokens = tokens + _attend(last, tokens + token_code, image + code, image)
    return decoder.transformer.norm_final_attn(tokens), image


def _two_way(
    layer: TwoWayBlock, tokens: Tensor, image: Tensor, token_code: Tensor, code: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    if layer.first:
        tokens = _attend(layer.self_attn, tokens, tokens, tokens, bias)
    else:
        placed = tokens + token_code
        tokens = tokens + _attend(layer.self_attn, placed, placed, tokens, bias)
    tokens = layer.norm1(tokens)
    placed_image = image + code
    tokens = tokens + _attend(layer.cross_attn_token_to_image, tokens + token_code, placed_image, image)
    tokens = layer.norm2(tokens)
    tokens = layer.norm3(tokens + layer.mlp(tokens))
    image = image + _attend(layer.cross_attn_image_to_token, placed_image, tokens + token_code, tokens, bias)
    return tokens, layer.norm4(image)


def _attend(attention: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attend over (B, P or 1, length, C); an axis of 1 is shared by all prompts and projected once."""
    heads = (attention.num_heads, attention.head_dim)
    query = attention.q_proj(q).unflatten(-1, heads).transpose(2, 3) * attention.scale
    key = attention.k_proj(k).unflatten(-1, heads).transpose(2, 3)
    value = attention.v_proj(v).unflatten(-1, heads).transpose(2, 3)
    if key.shape[1] == 1 and query.shape[1] > 1:
        # All prompts' queries stand in one row against the shared keys, so nothing is repeated.
        batch, prompts, count, length, width = query.shape
        row = query.transpose(1, 2).reshape(batch, count, prompts * length, width)
        mixed = (row @ key[:, 0].transpose(-2, -1)).softmax(-1).to(value.dtype) @ value[:, 0]
        mixed = mixed.unflatten(2, (prompts, length)).permute(0, 2, 3, 1, 4)
    else:
        scores = query @ key.transpose(-2, -1)
        scores = scores if bias is None else scores + bias.to(scores.dtype)
        mixed = (scores.softmax(-1).to(value.dtype) @ value).transpose(2, 3)
    out: Tensor = attention.out_proj(mixed.flatten(3))
    return out


def _up(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Apply a 2x2 transposed convolution of stride 2 to (..., in); the four new places get an axis: (..., 4, out)."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    assert layer.bias is not None
    return F.linear(x, weight, layer.bias.repeat(4)).view(*x.shape[:-1], 4, layer.out_channels)


def paint(sam: Sam, tokens: Tensor, image: Tensor) -> Tensor:
    """Return the logits (B, P, 4, 4h, 4w) of what `attend` gave."""
    decoder, side = sam.mask_decoder, sam.prompt_encoder.embedding_size
    up1, norm, _, up2, _ = (cast(Any, layer) for layer in decoder.output_upscaling)
    x = F.gelu(_layer_norm(norm, _up(up1, image)))
    x = F.gelu(_up(up2, x)).flatten(2, 4)
    kernels = torch.stack([mlp(tokens[:, :, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 2)
    masks = kernels @ x.transpose(-2, -1)
    # From (y, x, sub y, sub x, sub sub y, sub sub x) to rows and columns.
    shape = masks.shape[:3]
    masks = masks.reshape(*shape, side, side, 2, 2, 2, 2).permute(0, 1, 2, 3, 5, 7, 4, 6, 8)
    return masks.reshape(*shape, 4 * side, 4 * side)
