# SPDX-License-Identifier: Apache-2.0
"""The reference implementation as the tests' oracle.

The package ``segment_anything`` imports torchvision for four small functions, and there is no CPU build of torchvision
to install. This module puts a stand-in of exactly those four in its place before the import.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from segship.ship.families.sam.config import SamConfig, VitConfig
from segship.ship.templates.making import seeded_weights as seeded_weights

# Tensors of two or more axes that are looked up or added, not multiplied.
# A vit of every mechanism (window padding, global blocks, both attention kinds) that runs in milliseconds.
SMALL_VIT = SamConfig(
    "custom",
    VitConfig(embed_dim=32, depth=3, num_heads=2, global_attention_blocks=(1,), patch_size=16, window_size=3),
    image_size=128,
    embedding_channels=32,
    decoder_heads=8,
    decoder_mlp_dim=48,
    iou_head_hidden_dim=24,
)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _install_torchvision_stand_in() -> list[str]:
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    names += ("torchvision.ops", "torchvision.ops.boxes")
    modules = {name: types.ModuleType(name) for name in names}
    functional, boxes = modules["torchvision.transforms.functional"], modules["torchvision.ops.boxes"]
    vars(functional).update(resize=_resize, to_pil_image=lambda array: Image.fromarray(np.asarray(array)))
    vars(boxes).update(batched_nms=_batched_nms, box_area=_box_area)
    sys.modules.update(modules)
    return list(modules)


def _batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Follow torchvision/csrc/ops/cpu/nms_kernel.cpp, one box after the other; the reference has one category only."""
    assert not idxs.any()
    x0, y0, x1, y1 = boxes.float().numpy().T
    areas = (x1 - x0) * (y1 - y0)
    order = torch.sort(scores, stable=True, descending=True)[1].tolist()
    is_suppressed, kept = np.zeros(len(boxes), bool), []
    for place, index in enumerate(order):
        if is_suppressed[index]:
            continue
        kept.append(index)
        for other in order[place + 1 :]:
            wide = max(np.float32(0), min(x1[index], x1[other]) - max(x0[index], x0[other]))
            high = max(np.float32(0), min(y1[index], y1[other]) - max(y0[index], y0[other]))
            shared = np.float32(wide * high)
            both = areas[index] + areas[other] - shared
            if both and float(np.float32(shared / both)) > iou_threshold:
                is_suppressed[other] = True
    return torch.tensor(kept, dtype=torch.int64)


def _box_area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def reference() -> Any:
    """Return the package ``segment_anything``."""
    if "segment_anything" not in sys.modules:
        stand_ins = [] if importlib.util.find_spec("torchvision") else _install_torchvision_stand_in()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module("segment_anything")
        # The oracle holds what it needs of them; torch would take them for the real package.
        for name in stand_ins:
            del sys.modules[name]
    return sys.modules["segment_anything"]


def build_reference(config: SamConfig) -> Any:
    """Build the reference model of the given sizes (plain ViT encoders only)."""
    from functools import partial

    reference()
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = config.encoder
    assert isinstance(encoder, VitConfig)
    grid = config.embedding_size
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=encoder.depth,
            embed_dim=encoder.embed_dim,
            img_size=config.image_size,
            mlp_ratio=encoder.mlp_ratio,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=encoder.num_heads,
            patch_size=encoder.patch_size,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=encoder.global_attention_blocks,
            window_size=encoder.window_size,
            out_chans=config.embedding_channels,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=config.embedding_channels,
            image_embedding_size=(grid, grid),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_input_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.embedding_channels,
                mlp_dim=config.decoder_mlp_dim,
                num_heads=config.decoder_heads,
            ),
            transformer_dim=config.embedding_channels,
            iou_head_depth=3,
            iou_head_hidden_dim=config.iou_head_hidden_dim,
        ),
        pixel_mean=list(config.pixel_mean),
        pixel_std=list(config.pixel_std),
    ).eval()


def as_arrays(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the memory of tensors as arrays, which our own reader and loader speak of."""
    return {name: tensor.detach().numpy() for name, tensor in state.items()}


def with_image_size(config: SamConfig, image_size: int) -> SamConfig:
    """Return the configuration for another model frame."""
    return replace(config, image_size=image_size)
