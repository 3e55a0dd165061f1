# SPDX-License-Identifier: Apache-2.0
"""The verbs of the family sam: SAM, MobileSAM and tiny, from weights to what their graphs are. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from segship.arrays import AnyArray
from segship.errors import BackendUnavailable, CheckpointError
from segship.masks.cleanup import MaskCleanUp
from segship.masks.edges import MaskEdges
from segship.promptable.manifest import PromptableManifest
from segship.promptable.prompts import PromptRules
from segship.promptable.transforms import Preprocessing
from segship.ship.families.sam.config import SAM_ARCHITECTURES, SamConfig, VitConfig
from segship.ship.options import ExportOptions
from segship.ship.variants import EncoderVariant, find_variant
from segship.ship.weights import Weights, manifest_fields
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
POSITION_TABLE = "image_encoder.pos_embed"

State = Mapping[str, AnyArray]


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
        if len(values) != 3 or not np.allclose(values.astype(np.float32), np.array(known[name], np.float32), rtol=1e-4):
            message = (
                f"{path}: {name} is {[round(value, 4) for value in values.tolist()[:3]]}, and models of this layout "
                f"have {list(known[name])}; give a checkpoint that normalises pixels so"
            )
            raise CheckpointError(message, code="unsupported_architecture")
    kept = {name: array for name, array in state.items() if name not in found}
    return kept, ((f"left out {' and '.join(found)}, which are the model's own",) if found else ())


def change_image_size(
    config: SamConfig, state_dict: State, image_size: int
) -> tuple[SamConfig, dict[str, AnyArray], tuple[str, ...]]:
    """Return configuration, weights and a sentence for every change, for a model frame of ``image_size`` pixels.

    Tables that have another size than the file's own model frame needs are resized too, as the reference does whenever
    it runs.

    Raises
    ------
    CheckpointError
        When the size is not a positive multiple of the encoder's stride.
    BackendUnavailable
        When a table has to be resized and torch is not here.
    """
    stride = config.encoder.stride
    if image_size < stride or image_size % stride:
        raise CheckpointError(
            f"image size {image_size} does not fit: this encoder takes multiples of {stride}, such as "
            f"{max(stride, round(image_size / stride) * stride)}",
            code="bad_image_size",
        )
    resized = replace(config, image_size=image_size)
    same = image_size == config.image_size
    changes = [] if same else [f"image size {image_size} instead of {config.image_size}"]
    state = dict(state_dict)
    for name, table in state_dict.items():
        fitted = _fit(name, table, config, resized.embedding_size)
        if fitted is not None:
            state[name] = fitted
            changes.append(f"{name} resized from {table.shape} to {fitted.shape}")
    return resized, state, tuple(changes)


def _fit(name: str, table: AnyArray, config: SamConfig, grid: int) -> AnyArray | None:
    """Return the resized table, or None when it has that size, or the tensor does not depend on the model frame."""
    if name == POSITION_TABLE and table.shape[1] != grid:
        nchw = _interpolate(name, table.transpose(0, 3, 1, 2), (grid, grid), "bicubic")
        return np.ascontiguousarray(nchw.transpose(0, 2, 3, 1))
    if isinstance(config.encoder, VitConfig) and name.endswith(("attn.rel_pos_h", "attn.rel_pos_w")):
        block = int(name.split(".")[2])
        if block in config.encoder.global_attention_blocks and len(table) != 2 * grid - 1:
            return np.ascontiguousarray(_interpolate(name, table.T[None], (2 * grid - 1,), "linear")[0].T)
    return None


def _interpolate(name: str, table: AnyArray, size: tuple[int, ...], mode: str) -> AnyArray:
    """Resize the last axes as the reference does, which is by torch and nothing else."""
    try:
        import torch
    except ModuleNotFoundError as error:
        message = f'{name} has to be resized to the model frame, which needs torch; pip install "segship[export]"'
        raise BackendUnavailable(message, code="torch_missing") from error
    resized: AnyArray = torch.nn.functional.interpolate(torch.from_numpy(table), size=size, mode=mode).numpy()
    return resized


def find_target(options: ExportOptions) -> EncoderVariant:
    """Return the way of computing of the engine that is asked for."""
    return find_variant(options.target or DEFAULT_TARGET)


def specs(weights: Weights, options: ExportOptions, *, known_sizes: bool = False) -> dict[str, GraphSpec]:
    """Return the contract of every graph.

    With ``known_sizes`` no output's size depends on values, and the decoder makes all masks: on CUDA, which of them
    pass would have to be known on the CPU before the rest could be launched, and a recorded CUDA graph cannot wait.
    """
    decoder = shared_decoder_spec if known_sizes else selective_decoder_spec
    makers = (image_encoder_spec, mask_decoder_spec, image_side_spec, decoder)
    return {spec.name: spec for spec in (make(weights.config.geometry) for make in makers)}


def largest_sizes(weights: Weights) -> dict[str, int]:
    """Return upper bounds of dynamic axes, for tracing."""
    side = weights.config.embedding_size
    return {"rows": side, "columns": side, **MOST_PROMPTS}


FREE_SIZES: Mapping[int, str] = {}
"""No size of these models is a checkpoint's own."""


def template_configs() -> dict[str, SamConfig]:
    """Return the models whose graphs are in the package as templates, by the names of these."""
    return SAM_ARCHITECTURES


def template_name(config: SamConfig) -> str | None:
    """Return the name of the template of a model; None where it has sizes of its own."""
    return config.architecture if config == SAM_ARCHITECTURES.get(config.architecture) else None


def variants(options: ExportOptions) -> dict[str, str]:
    """Return which of the equal ways of computing was chosen, for the graphs that have several."""
    return dict.fromkeys(VARIED_GRAPHS, find_target(options).name)


def manifest(weights: Weights, options: ExportOptions) -> PromptableManifest:
    """Return everything that a manifest says of a model but its graphs."""
    config = weights.config
    clean_up, edges = config.mask_clean_up, config.mask_edges
    if options.clean_masks is not None:
        clean_up = (clean_up or MaskCleanUp()) if options.clean_masks else None
    if options.edges is not None:
        edges = (edges or MaskEdges()) if options.edges else None
    return PromptableManifest(
        **manifest_fields(weights, options),
        geometry=config.geometry,
        preprocessing=Preprocessing(config.image_size, config.pixel_mean, config.pixel_std),
        prompt_rules=PROMPT_RULES,
        mask_clean_up=clean_up,
        mask_edges=edges,
        amg_defaults=config.amg_thresholds,
    )
