# SPDX-License-Identifier: Apache-2.0
"""Which SeMask-FPN a state dict belongs to, from the names and shapes of its tensors.

Everything but one choice is in the shapes: heads and window in the tables of relative positions, depths in the number
of blocks (which alone tells T from S), classes in the head, semantic classes in the semantic layers. The choice is
which semantic layers work in windows; see `recognise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from segship.errors import CheckpointError
from segship.ship.families import unrecognised
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES, SemaskConfig, published_semantic_window
from segship.ship.families.shapes import Shapes, hidden_ratio

MARK = ".semantic_layer."
"""In the name of a tensor of every SeMask, and of no other model."""
STAGES = 4


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> SemaskConfig | None:
    """Return the configuration of the SeMask-FPN that a state dict belongs to; None if it is none.

    Which stages have their semantic layers in windows is what the published code does for these sizes
    (`segship.ship.families.semask.config.published_semantic_window`): no tensor shows it.

    Returns
    -------
    SemaskConfig
        With the name of the table where all sizes but those of classes agree, otherwise ``custom``.

    Raises
    ------
    CheckpointError
        ``unknown_architecture`` when tensors are missing or do not fit each other; ``class_count`` when the stages
        disagree about the number of semantic classes.
    """
    if not any(name.startswith("backbone.layers.") and MARK in name for name in shapes):
        return None
    tree = Shapes(shapes)
    backbone, head = tree.within("backbone"), tree.within("decode_head")
    if backbone.count("layers") != STAGES:
        raise unrecognised(f"the backbone has {backbone.count('layers')} stages, and {STAGES} are known")
    embed_dim, _, patch_size, _ = backbone.of("patch_embed.proj.weight", 4)
    stages = [backbone.within(f"layers.{index}") for index in range(STAGES)]
    tables = [_read_table(stage) for stage in stages]
    windows = sorted({window for window, _ in tables})
    if len(windows) > 1:
        raise unrecognised(f"its stages have windows of {windows}, and one size for all is known")
    semantic_classes = _semantic_classes(stages)
    hidden, width = stages[0].of("blocks.0.mlp.fc1.weight", 2)
    config = SemaskConfig(
        "custom",
        embed_dim=embed_dim,
        depths=tuple(stage.count("blocks") for stage in stages),
        num_heads=tuple(heads for _, heads in tables),
        window_size=windows[0],
        classes=head.of("conv_seg.weight", 4)[0],
        semantic_classes=semantic_classes,
        semantic_window=published_semantic_window(embed_dim, semantic_classes),
        patch_size=patch_size,
        mlp_ratio=hidden_ratio(hidden, width),
        head_channels=head.of("scale_heads.0.0.conv.weight", 4)[0],
    )
    _check_widths(backbone, config)
    return _name(config)


def describe(config: SemaskConfig) -> dict[str, Any]:
    """Return what `segship inspect` says of a configuration."""
    return {
        "task": "semantic",
        "architecture": config.architecture,
        "classes": config.classes,
        "semantic_classes": config.semantic_classes,
        "semantic_window": config.semantic_window,
    }


def _read_table(stage: Shapes) -> tuple[int, int]:
    """Return the window and the heads of a stage: its tables have (2w - 1)^2 rows and a column for each head."""
    rows, heads = stage.of("blocks.0.attn.relative_position_bias_table", 2)
    side = isqrt(rows)
    if side * side != rows or side % 2 == 0:
        raise unrecognised(f"{stage.prefix}blocks.0 has {rows} relative positions, which no window has")
    return (side + 1) // 2, heads


def _semantic_classes(stages: list[Shapes]) -> int:
    counts = [stage.of("semantic_layer.class_injection.0.mlp_cls_q.weight", 2)[0] for stage in stages]
    if len(set(counts)) > 1:
        message = (
            f"the semantic layers of the four stages have {counts} classes, and all must have the same; the checkpoint "
            "is put together from several, give one of a single model"
        )
        raise CheckpointError(message, code="class_count")
    return counts[0]


def _check_widths(backbone: Shapes, config: SemaskConfig) -> None:
    """Refuse widths that the modules cannot be built for; all else is left to strict loading, which lists what differs.

    What a head is wide is not in the table of relative positions, so heads have to divide the width.
    """
    for stage, (dim, heads) in enumerate(zip(config.stage_dims, config.num_heads, strict=True)):
        found = backbone.of(f"norm{stage}.weight", 1)[0]
        if found != dim:
            raise unrecognised(f"stage {stage} is {found} wide, and {dim} are expected, twice as much a stage")
        if dim % heads:
            raise unrecognised(f"stage {stage} has {heads} heads, which do not divide its width of {dim}")


def _name(config: SemaskConfig) -> SemaskConfig:
    """Give the configuration the name of the table's entry that differs in nothing but classes."""
    for entry in SEMASK_ARCHITECTURES.values():
        like = replace(
            entry,
            classes=config.classes,
            semantic_classes=config.semantic_classes,
            semantic_window=config.semantic_window,
        )
        if like == replace(config, architecture=entry.architecture):
            return like
    return config
