# SPDX-License-Identifier: Apache-2.0
"""Which model a state dict belongs to, from the names and shapes of its tensors alone.

Numbers that no shape shows (the decoder's heads; TinyViT's model frame, first heads and first window) are those of the
table of architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from segship.ship.families import UNSUPPORTED, unrecognised
from segship.ship.families.sam.config import (
    SAM_ARCHITECTURES,
    EncoderConfig,
    HybridConfig,
    SamConfig,
    TinyVitConfig,
    VitConfig,
)
from segship.ship.families.shapes import Shapes, divide, hidden_ratio

DEFAULT_IMAGE_SIZE = 1024
"""Side of the model frame of MobileSAM's encoder, whose shapes do not show it."""


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> SamConfig | None:
    """Return the configuration of the model that a state dict belongs to; None if it is none of this family.

    Returns
    -------
    SamConfig
        The table's entry where all sizes agree, otherwise one with the architecture ``custom``.

    Raises
    ------
    CheckpointError
        ``unknown_architecture`` when tensors are missing or do not fit each other.
    """
    # SAM 2 and HQ-SAM have parts under the same names.
    if any(name.startswith(tuple(UNSUPPORTED)) for name in shapes):
        return None
    tree = Shapes(shapes)
    encoder = tree.within("image_encoder")
    found: EncoderConfig
    if encoder.has("stem.0.down.0.weight"):
        found, size = _read_hybrid(encoder)
    elif encoder.has("patch_embed.proj.weight"):
        found, size = _read_vit(encoder)
    elif encoder.has("patch_embed.seq.0.c.weight"):
        found, size = _read_tiny_vit(encoder), DEFAULT_IMAGE_SIZE
    else:
        return None
    return _name(_read_config(tree, found, size))


def describe(config: SamConfig) -> dict[str, Any]:
    """Return what `segship inspect` says of a configuration."""
    return {"task": "promptable", "architecture": config.architecture, "image_size": config.image_size}


def _name(config: SamConfig) -> SamConfig:
    """Return the table's entry if it differs in nothing that shapes show, the configuration itself otherwise."""
    for entry in SAM_ARCHITECTURES.values():
        like = replace(
            config,
            architecture=entry.architecture,
            decoder_heads=entry.decoder_heads,
            mask_clean_up=entry.mask_clean_up,
            mask_edges=entry.mask_edges,
            amg_thresholds=entry.amg_thresholds,
        )
        if like == entry:
            return entry
        if replace(like, image_size=entry.image_size) == entry:
            return replace(like, architecture="custom")
    return config


def _read_config(tree: Shapes, encoder: EncoderConfig, image_size: int) -> SamConfig:
    prompt, decoder = tree.within("prompt_encoder"), tree.within("mask_decoder")
    channels = tree.within("image_encoder").of("neck.0.weight", 4)[0]
    width = prompt.of("no_mask_embed.weight", 2)[1]
    like = SAM_ARCHITECTURES["tiny" if isinstance(encoder, HybridConfig) else "vit_b"]
    if width != channels:
        raise unrecognised(f"the encoder gives {channels} channels and the prompt encoder takes {width}")
    depth = decoder.count("transformer.layers")
    if depth != like.decoder_depth:
        raise unrecognised(f"the mask decoder has {depth} layers, and {like.decoder_depth} are known")
    return SamConfig(
        "custom",
        encoder,
        image_size=image_size,
        embedding_channels=channels,
        mask_input_channels=prompt.of("mask_downscaling.3.weight", 4)[0],
        decoder_depth=depth,
        decoder_heads=like.decoder_heads,
        decoder_mlp_dim=decoder.of("transformer.layers.0.mlp.lin1.weight", 2)[0],
        iou_head_hidden_dim=decoder.of("iou_prediction_head.layers.0.weight", 2)[0],
    )


def _read_vit(encoder: Shapes) -> tuple[VitConfig, int]:
    dim, _, patch_size, _ = encoder.of("patch_embed.proj.weight", 4)
    _, grid, columns, _ = encoder.of("pos_embed", 4)
    if grid != columns:
        raise unrecognised(f"the position table has {grid} rows and {columns} columns, and only squares are known")
    depth = encoder.count("blocks")
    tables = [encoder.of(f"blocks.{index}.attn.rel_pos_h", 2) for index in range(depth)]
    # A table of 2S - 1 rows serves an attention over S x S tokens.
    sides = [(rows + 1) // 2 for rows, _ in tables]
    # Where the position table alone was resized, the global blocks have the longer tables; they are resized in loading.
    kept = grid not in sides and tables == [encoder.of(f"blocks.{i}.attn.rel_pos_w", 2) for i in range(depth)]
    whole = max(sides) if kept and len(set(sides)) == 2 else grid
    windows = sorted({side for side in sides if side != whole})
    if not tables or len(windows) > 1 or any(rows % 2 == 0 for rows, _ in tables):
        raise unrecognised(f"the blocks attend over {windows} besides the grid of {grid}; one window size is known")
    config = VitConfig(
        embed_dim=dim,
        depth=depth,
        num_heads=divide(dim, tables[0][1]),
        global_attention_blocks=tuple(index for index, side in enumerate(sides) if side == whole),
        patch_size=patch_size,
        mlp_ratio=hidden_ratio(encoder.of("blocks.0.mlp.lin1.weight", 2)[0], dim),
    )
    if windows:
        config = replace(config, window_size=windows[0])
    return _global_blocks_of_table(config, grid), grid * patch_size


def _global_blocks_of_table(config: VitConfig, grid: int) -> VitConfig:
    """Take the published global blocks where window and grid are of one size, so that shapes cannot tell them apart."""
    for entry in SAM_ARCHITECTURES.values():
        table = entry.encoder
        if isinstance(table, VitConfig) and grid == table.window_size:
            like = replace(config, global_attention_blocks=table.global_attention_blocks)
            if like == table:
                return table
    return config


def _read_tiny_vit(encoder: Shapes) -> TinyVitConfig:
    table = TinyVitConfig()
    stages = [encoder.within(f"layers.{index}") for index in range(encoder.count("layers"))]
    if len(stages) < 2:
        raise unrecognised(f"TinyViT has {len(stages)} stages, and at least 2 are needed")
    dims = [encoder.of("patch_embed.seq.2.c.weight", 4)[0]]
    dims += [stage.of("downsample.conv1.c.weight", 4)[0] for stage in stages[:-1]]
    heads, windows = [table.num_heads[0]], [table.window_sizes[0]]
    for stage in stages[1:]:
        count, places = stage.of("blocks.0.attn.attention_biases", 2)
        if isqrt(places) ** 2 != places:
            raise unrecognised(f"an attention bias has {places} places, which is no square window")
        heads.append(count)
        windows.append(isqrt(places))
    expanded, first = stages[0].of("blocks.0.conv1.c.weight", 4)[:2]
    hidden, width = stages[1].of("blocks.0.mlp.fc1.weight", 2)
    return TinyVitConfig(
        embed_dims=tuple(dims),
        depths=tuple(stage.count("blocks") for stage in stages),
        num_heads=tuple(heads),
        window_sizes=tuple(windows),
        mlp_ratio=hidden_ratio(hidden, width),
        mbconv_expand_ratio=hidden_ratio(expanded, first),
        num_classes=encoder.of("head.weight", 2)[0] if encoder.has("head.weight") else table.num_classes,
    )


def _read_hybrid(encoder: Shapes) -> tuple[HybridConfig, int]:
    """Read our own encoder, whose shapes show no heads: they are as wide as those of ``tiny``."""
    table = HybridConfig()
    # The stem's last entry is no stage but the convolution to stride 16.
    stages = [encoder.within(f"stem.{index}") for index in range(encoder.count("stem") - 1)]
    _, grid, _, dim = encoder.of("pos_embed", 4)
    config = HybridConfig(
        stem_dims=tuple(stage.of("down.0.weight", 4)[0] for stage in stages),
        stem_blocks=tuple(stage.count("blocks") for stage in stages),
        embed_dim=dim,
        depth=encoder.count("blocks"),
        num_heads=divide(dim, table.embed_dim // table.num_heads),
        mlp_ratio=hidden_ratio(encoder.of("blocks.0.mlp.lin1.weight", 2)[0], dim),
    )
    return config, grid * config.stride
