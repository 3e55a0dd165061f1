# SPDX-License-Identifier: Apache-2.0
"""A small seeded SeMask-FPN and its checkpoint in the layout that mmcv writes, for tests of both roads."""

from dataclasses import replace
from functools import cache

import torch

from segship.datasets.known import CITYSCAPES
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES
from segship.ship.families.semask.model import build_semask
from tests.oracle import seeded_weights

SMALL_SEMASK = replace(
    SEMASK_ARCHITECTURES["semask_t"], architecture="custom", embed_dim=12, depths=(2, 1, 1, 1), num_heads=(1, 2, 2, 4),
    window_size=5, head_channels=16,
)  # fmt: skip
SIZE_HW = (96, 160)
"""Of the small bundle that gives class maps."""
ODD_SIZE_HW = (75, 107)
"""Of the small bundle that gives logits: nothing divides it."""


def seeded_semask(config):
    """A model with random weights, whose semantic layers count: the published code begins with their factor at 0."""
    model = build_semask(config)
    state = seeded_weights(model)
    state |= {name: torch.full_like(value, 0.7) for name, value in state.items() if name.endswith("gamma")}
    # Classes that win by a clear margin, so that rounding decides no pixel.
    state |= {name: 4 * value for name, value in state.items() if name == "decode_head.conv_seg.weight"}
    model.load_state_dict(state)
    return model


@cache
def small_semask():
    return seeded_semask(SMALL_SEMASK)


def mmcv_checkpoint(model, *, prefix="", classes=CITYSCAPES.classes, palette=CITYSCAPES.palette):
    """What mmcv's runner saves: ``meta``, ``state_dict`` and the state of the optimizer."""
    state = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    moments = {
        index: {"step": 80000, "exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.zeros_like(value)}
        for index, value in enumerate(model.parameters())
    }
    group = {"lr": 6e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False}
    meta = {
        "mmseg_version": "0.11.0+f12cf00",
        "config": "norm_cfg = dict(type='SyncBN', requires_grad=True)\n",
        "CLASSES": tuple(classes),
        "PALETTE": [list(colour) for colour in palette],
        "env_info": "Python: 3.7.10",
        "time": "Tue Nov 21 10:00:00 2026",
        "epoch": 430,
        "iter": 80000,
        "mmcv_version": "1.3.0",
    }
    return {
        "meta": meta,
        "state_dict": state,
        "optimizer": {"state": moments, "param_groups": [{**group, "params": list(moments)}]},
    }


def save_checkpoint(path, model=None, **options):
    """Write the small model, or another one, as mmcv writes it."""
    torch.save(mmcv_checkpoint(model or small_semask(), **options), path)
    return path
