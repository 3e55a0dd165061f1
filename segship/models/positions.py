# SPDX-License-Identifier: Apache-2.0
"""Fit a checkpoint's position tables to a model frame of another size.

The absolute table is resized bicubically, as vision transformers usually are; the relative tables of global blocks
linearly along their length, as segment_anything/modeling/image_encoder.py get_rel_pos does at run time. Window blocks
keep theirs, since their windows stay the same size. A model with resized tables is an approximation of the published
one: what it loses has to be measured, and the bundle's manifest records the change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor
from torch.nn import functional as F

from segship.errors import CheckpointError
from segship.models.config import SamConfig, VitConfig

POSITION_TABLE = "image_encoder.pos_embed"


def change_image_size(
    config: SamConfig, state_dict: Mapping[str, Tensor], image_size: int
) -> tuple[SamConfig, dict[str, Tensor], tuple[str, ...]]:
    """Return configuration, weights and a sentence for every change, for a model frame of ``image_size`` pixels.

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
    if image_size == config.image_size:
        return resized, dict(state_dict), ()
    changes = [f"image size {image_size} instead of {config.image_size}"]
    state = dict(state_dict)
    grid = resized.embedding_size
    for name, table in state_dict.items():
        fitted = _fit(name, table, config, grid)
        if fitted is not None:
            state[name] = fitted
            changes.append(f"{name} resized from {tuple(table.shape)} to {tuple(fitted.shape)}")
    return resized, state, tuple(changes)


def _fit(name: str, table: Tensor, config: SamConfig, grid: int) -> Tensor | None:
    """Return the resized table, or None when the tensor does not depend on the model frame."""
    if name == POSITION_TABLE:
        nchw = F.interpolate(table.permute(0, 3, 1, 2), size=(grid, grid), mode="bicubic", antialias=False)
        return nchw.permute(0, 2, 3, 1).contiguous()
    if isinstance(config.encoder, VitConfig) and name.endswith(("attn.rel_pos_h", "attn.rel_pos_w")):
        block = int(name.split(".")[2])
        if block in config.encoder.global_attention_blocks:
            along = F.interpolate(table.T.unsqueeze(0), size=2 * grid - 1, mode="linear")
            return along.squeeze(0).T.contiguous()
    return None
