# SPDX-License-Identifier: Apache-2.0
"""The verbs of the family semask: SeMask-FPN, from weights to what its graph is. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from segship.arrays import AnyArray
from segship.datasets.classes import MOST_CLASSES, OWN_CLASSES, ClassTable, read_class_file
from segship.datasets.known import TABLES, table_of
from segship.errors import CheckpointError, way
from segship.semantic.manifest import SemanticManifest, SemanticWindow
from segship.semantic.preprocessing import SCALE_LIMITS, ScaleLimits, SemanticPreprocessing
from segship.ship.families.semask.config import SEMASK_ARCHITECTURES, SemaskConfig, relative_position_index
from segship.ship.options import ExportOptions
from segship.ship.weights import Weights, manifest_fields
from segship.spec import GraphSpec, SemanticOutput, TensorSpec, semantic_spec

TASK = "semantic"
DEFAULT_OUTPUT: SemanticOutput = "class_map"

LARGE_SCALE = ScaleLimits(2560, 640)
"""At which SeMask-L was tested on ADE20K and COCO-Stuff."""
OWN_SCALE = SCALE_LIMITS["cityscapes"]
"""For classes of a user's own, unless told otherwise."""

_GIVE_CLASSES = f"give the export a JSON list of names with {way('ExportOptions(classes=FILE)', '--classes FILE')}"

IGNORED_PREFIXES = ("auxiliary_head.",)
"""Heads that mmsegmentation's configurations may add in training; they take no part in an answer."""
INDEX_SUFFIX, TABLE_SUFFIX = ".relative_position_index", ".relative_position_bias_table"

State = Mapping[str, AnyArray]


def prepare(
    path: Path, config: SemaskConfig, state: State, options: ExportOptions
) -> tuple[SemaskConfig, State, tuple[str, ...]]:
    """Return configuration and weights with what training alone needs left out, and what was changed.

    Raises
    ------
    CheckpointError
        ``class_count`` when there are more classes than a class map holds; ``unsupported_architecture`` for positions
        that are not numbered as Swin does.
    """
    if config.classes > MOST_CLASSES:
        message = f"{path} has {config.classes} classes, and class maps of 8 bits hold at most {MOST_CLASSES}"
        raise CheckpointError(message, code="class_count")
    asked = options.semantic_window
    config = replace(config, semantic_window=asked or config.semantic_window)
    reason = "as the published code has it for these sizes" if asked is None else "as asked for"
    changes = [f"semantic layers work in windows in {config.semantic_window} stages, {reason}"]
    kept = {name: array for name, array in state.items() if not name.startswith(IGNORED_PREFIXES)}
    if len(kept) < len(state):
        left_out = len(state) - len(kept)
        changes.append(f"left out {left_out} tensors of a head that is used in training alone (auxiliary_head)")
    _check_indices(path, kept, config.window_size)
    # They follow from the window's size, so a file that left them out lacks nothing.
    index = relative_position_index(config.window_size)
    tables = [name.removesuffix(TABLE_SUFFIX) for name in kept if name.endswith(TABLE_SUFFIX)]
    return config, {**{f"{name}{INDEX_SUFFIX}": index for name in tables}, **kept}, tuple(changes)


def _check_indices(path: Path, state: State, window_size: int) -> None:
    """Refuse tables of positions that are not those of the window: they would load and mean something else."""
    expected = relative_position_index(window_size)
    for name, array in state.items():
        if name.endswith(INDEX_SUFFIX) and array.shape == expected.shape and not np.array_equal(array, expected):
            message = (
                f"{path}: {name} does not number the places of a {window_size} x {window_size} window as Swin does; "
                "the checkpoint is of a variant that is not supported"
            )
            raise CheckpointError(message, code="unsupported_architecture")


def specs(weights: Weights, options: ExportOptions, *, known_sizes: bool = False) -> dict[str, GraphSpec]:
    """Return the contract of the only graph; its sizes are known in any case."""
    spec = semantic_spec(weights.config.classes, options.output or DEFAULT_OUTPUT, options.size)
    return {spec.name: with_batch(spec, options.batch)}


def with_batch(spec: GraphSpec, batch: int | None) -> GraphSpec:
    """Return a contract with its first axis fixed; as it is for None."""
    if batch is None:
        return spec

    def fixed(tensor: TensorSpec) -> TensorSpec:
        return TensorSpec(tensor.name, tensor.dtype, (batch, *tensor.shape[1:]))

    return GraphSpec(spec.name, tuple(map(fixed, spec.inputs)), tuple(map(fixed, spec.outputs)))


def largest_sizes(weights: Weights) -> None:
    """Return no bounds: tracing finds those of pictures by itself."""


FREE_SIZES: Mapping[int, str] = {37: "classes", 41: "semantic_classes"}
"""Sizes that a checkpoint chooses: what stands for them in a model that is traced, and which field of its
configuration has them. They are sizes of nothing else."""


def template_configs() -> dict[str, SemaskConfig]:
    """Return the models whose graphs are in the package as templates, by the names of these."""
    sizes: dict[str, Any] = {name: size for size, name in FREE_SIZES.items()}
    return {
        _template_name(name, window): replace(config, semantic_window=window, **sizes)
        for name, config in SEMASK_ARCHITECTURES.items()
        for window in get_args(SemanticWindow)
    }


def template_name(config: SemaskConfig) -> str | None:
    """Return the name of the template of a model; None where it has sizes of its own besides the number of classes."""
    return _template_name(config.architecture, config.semantic_window) if config.architecture != "custom" else None


def _template_name(architecture: str, window: str) -> str:
    return f"{architecture}.{window}"


def variants(options: ExportOptions) -> dict[str, str]:
    """Return nothing: the graph is computed in one way."""
    return {}


def manifest(weights: Weights, options: ExportOptions) -> SemanticManifest:
    """Return everything that a manifest says of a model but its graph.

    Raises
    ------
    CheckpointError, InputError
        When the classes' names are not known, not as many as the head has, or no file of names.
    """
    config = weights.config
    table = choose_table(weights, None if options.classes is None else read_class_file(options.classes))
    return SemanticManifest(
        **manifest_fields(weights, options),
        table=table,
        preprocessing=SemanticPreprocessing(
            options.scale or published_scale(config.architecture, table.name),
            config.pixel_mean,
            config.pixel_std,
            frame=options.size,
        ),
        output=options.output or DEFAULT_OUTPUT,
        semantic_classes=config.semantic_classes,
        semantic_window=config.semantic_window,
        window_size=config.window_size,
        names_assumed=options.classes is None and weights.checkpoint.labels is None,
    )


def choose_table(weights: Weights, classes: ClassTable | None = None) -> ClassTable:
    """Choose the classes' names: the caller's, else the checkpoint's, else those of the data set with as many.

    See `segship.datasets.known.table_of`; a data set is assumed only where the checkpoint names no classes.

    Raises
    ------
    CheckpointError
        ``class_count`` when the number of names is not that of the head, or there are none.
    """
    count, labels, path = weights.config.classes, weights.checkpoint.labels, weights.checkpoint.path
    if classes is not None:
        if len(classes.classes) != count:
            message = (
                f"{len(classes.classes)} names of classes were given and {path} has {count} classes; give one name for "
                "each, in the order of its logits"
            )
            raise CheckpointError(message, code="class_count")
        table = next((known for known in TABLES.values() if known.classes == classes.classes), None)
        return classes if table is None else replace(classes, name=table.name)
    if labels is not None and len(labels.classes) != count:
        reason = labels.notes[0] if not labels.classes else f"it names {len(labels.classes)}"
        message = f"{path} has {count} classes, and {reason}; {_GIVE_CLASSES}"
        raise CheckpointError(message, code="class_count")
    found = table_of(count) if labels is None else table_of(count, labels.classes, labels.palette)
    if found is None:
        message = (
            f"{path} has {count} classes, whose names are not known: 19 would be Cityscapes, 150 ADE20K, 171 "
            f"COCO-Stuff; {_GIVE_CLASSES}"
        )
        raise CheckpointError(message, code="class_count")
    return found


def published_scale(architecture: str, data_set: str) -> ScaleLimits:
    """Return the test scale that a model was published with; `OWN_SCALE` for classes of a user's own."""
    if data_set == OWN_CLASSES:
        return OWN_SCALE
    large = architecture == "semask_l" and data_set != "cityscapes"
    return LARGE_SCALE if large else SCALE_LIMITS[data_set]
