# SPDX-License-Identifier: Apache-2.0
"""The verbs of the family sam: SAM, MobileSAM and tiny, from weights to graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from segship.errors import CheckpointError
from segship.masks.cleanup import MaskCleanUp
from segship.promptable.manifest import PromptableManifest
from segship.promptable.prompts import PromptRules
from segship.promptable.transforms import Preprocessing
from segship.ship.families.sam.config import SamConfig
from segship.ship.families.sam.model import ImageEncoderGraph, MaskDecoderGraph, build_sam, change_image_size
from segship.ship.families.sam.shared_decoder import ImageSideGraph, SelectiveDecoderGraph, SharedDecoderGraph
from segship.ship.loading import LoadedModel, manifest_fields
from segship.ship.options import ExportOptions
from segship.ship.variants import PLAIN, apply_variant, find_variant
from segship.spec import (
    GraphSpec,
    image_encoder_spec,
    image_side_spec,
    mask_decoder_spec,
    selective_decoder_spec,
    shared_decoder_spec,
)

TASK = "promptable"
PROMPT_RULES = PromptRules(padding_point="without_box")
DEFAULT_TARGET = "onnxruntime"
# Graphs that differ between targets.
VARIED_GRAPHS = ("image_encoder", "selective_decoder")
# The exporter must know some bound of each axis; nobody comes near these.
MOST_PROMPTS = {"objects": 1 << 16, "points": 1 << 16}

State = Mapping[str, torch.Tensor]
Graphs = dict[str, tuple[nn.Module, GraphSpec]]
build = build_sam


def prepare(
    path: Path, config: SamConfig, state: State, options: ExportOptions
) -> tuple[SamConfig, State, tuple[str, ...]]:
    """Return configuration and weights for the model frame that is asked for, and what was changed.

    Raises
    ------
    CheckpointError
        ``unsupported_architecture`` when the file says that pixels are normalised otherwise; what `change_image_size`
        raises.
    """
    state, changes = _without_normalisation(path, config, state)
    image_size = config.image_size if options.image_size is None else options.image_size
    config, state, resized = change_image_size(config, state, image_size)
    return config, state, (*changes, *resized)


def _without_normalisation(path: Path, config: SamConfig, state: State) -> tuple[State, tuple[str, ...]]:
    """Take out mean and deviation of pixels, which some tools save as tensors, if they are those of the model."""
    known = {"pixel_mean": config.pixel_mean, "pixel_std": config.pixel_std}
    found = {name: state[name].flatten() for name in known if name in state}
    for name, values in found.items():
        if len(values) != 3 or not torch.allclose(values.float(), torch.tensor(known[name]), rtol=1e-4):
            message = (
                f"{path}: {name} is {[round(value, 4) for value in values.tolist()[:3]]}, and models of this layout "
                f"have {list(known[name])}; give a checkpoint that normalises pixels so"
            )
            raise CheckpointError(message, code="unsupported_architecture")
    kept = {name: tensor for name, tensor in state.items() if name not in found}
    return kept, ((f"left out {' and '.join(found)}, which are the model's own",) if found else ())


def reference(model: LoadedModel) -> Graphs:
    """Return the graphs whose answers all others are held against, computing as the published code does."""
    apply_variant(model.module, PLAIN)
    geometry = model.config.geometry
    return {
        "image_encoder": (ImageEncoderGraph(model.module), image_encoder_spec(geometry)),
        "mask_decoder": (MaskDecoderGraph(model.module), mask_decoder_spec(geometry)),
        "image_side": (ImageSideGraph(model.module), image_side_spec(geometry)),
    }


def graphs(model: LoadedModel, options: ExportOptions, *, known_sizes: bool = False) -> Graphs:
    """Return every graph with its contract, computing by the variant of the target.

    With ``known_sizes`` no output's size depends on values, and the decoder makes all masks: on CUDA, which of them
    pass would have to be known on the CPU before the rest could be launched, and a recorded CUDA graph cannot wait.
    """
    parts, geometry = reference(model), model.config.geometry
    apply_variant(model.module, find_variant(options.target or DEFAULT_TARGET))
    if known_sizes:
        parts["shared_decoder"] = (SharedDecoderGraph(model.module), shared_decoder_spec(geometry))
    else:
        parts["selective_decoder"] = (SelectiveDecoderGraph(model.module), selective_decoder_spec(geometry))
    return parts


def largest_sizes(model: LoadedModel) -> dict[str, int]:
    """Return upper bounds of dynamic axes, for tracing."""
    side = model.config.embedding_size
    return {"rows": side, "columns": side, **MOST_PROMPTS}


def variants(options: ExportOptions) -> dict[str, str]:
    """Return which of the equal ways of computing was chosen, for the graphs that have several."""
    return dict.fromkeys(VARIED_GRAPHS, find_variant(options.target or DEFAULT_TARGET).name)


def manifest(model: LoadedModel, options: ExportOptions) -> PromptableManifest:
    """Return everything that a manifest says of a model but its graphs."""
    config = model.config
    clean_up = config.mask_clean_up
    if options.clean_masks is not None:
        clean_up = (clean_up or MaskCleanUp()) if options.clean_masks else None
    return PromptableManifest(
        **manifest_fields(model, options),
        geometry=config.geometry,
        preprocessing=Preprocessing(config.image_size, config.pixel_mean, config.pixel_std),
        prompt_rules=PROMPT_RULES,
        mask_clean_up=clean_up,
        amg_defaults=config.amg_thresholds,
    )
