# SPDX-License-Identifier: Apache-2.0
"""From a SeMask-FPN checkpoint to a torch model that is ready to be exported or run, and to its manifest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from segship.bundle.entries import CheckpointEntry, Precision
from segship.bundle.measured import SemanticComparison
from segship.datasets.classes import MOST_CLASSES, OWN_CLASSES, ClassTable, make_palette
from segship.datasets.known import ADE20K, CITYSCAPES, COCO_STUFF
from segship.errors import CheckpointError
from segship.semantic.manifest import DataSet, SemanticManifest, SemanticPreprocessingEntry
from segship.semantic.preprocessing import SCALE_LIMITS, ScaleLimits
from segship.ship.checkpoints.reading import Checkpoint, load_state, read_checkpoint
from segship.ship.checkpoints.survey import Labels
from segship.ship.families.config import SemanticWindow, SemaskConfig
from segship.ship.families.semask.model import Semask, build_semask
from segship.ship.families.semask.recognise import is_semask, recognise_semask
from segship.ship.families.semask.swin import relative_position_index
from segship.ship.tools import tool_versions
from segship.spec import SemanticOutput

TABLES: dict[DataSet, ClassTable] = {"cityscapes": CITYSCAPES, "ade20k": ADE20K, "cocostuff": COCO_STUFF}
"""Data sets of the published models; the number of classes tells which one a checkpoint was trained on."""

LARGE_SCALE = ScaleLimits(2560, 640)
"""At which SeMask-L was tested on ADE20K and COCO-Stuff."""
OWN_SCALE = SCALE_LIMITS["cityscapes"]
"""For classes of a user's own, unless told otherwise."""

IGNORED_PREFIXES = ("auxiliary_head.",)
"""Heads that mmsegmentation's configurations may add in training; they take no part in an answer."""
INDEX_SUFFIX = ".relative_position_index"


@dataclass(frozen=True, slots=True, eq=False)
class LoadedSemask:
    """A checkpoint as a torch module, and what was changed on the way."""

    checkpoint: Checkpoint
    config: SemaskConfig
    semask: Semask
    changes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SemanticSettings:
    """What a bundle needs to know that no weight says.

    Attributes
    ----------
    data_set
        The data set whose classes these are, or None.
    table
        Names and colours of the classes.
    scale
        How large pictures are made.
    """

    data_set: DataSet | None
    table: ClassTable
    scale: ScaleLimits


def load_semask(path: Path, *, semantic_window: SemanticWindow | None = None) -> LoadedSemask:
    """Read a SeMask-FPN checkpoint, recognise its sizes and build the module, strictly.

    Parameters
    ----------
    path
        A ``.pth``, ``.pt`` or ``.safetensors`` file.
    semantic_window
        See `segship.ship.families.semask.recognise`.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely, is of another model, or its tensors do not fit.
    """
    checkpoint = read_checkpoint(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.state_dict.items()}
    if not is_semask(shapes):
        message = f"{path} is no SeMask-FPN: it has no semantic layers; `segship inspect {path}` says what it is"
        raise CheckpointError(message, code="other_family")
    config = recognise_semask(shapes, semantic_window=semantic_window)
    if config.classes > MOST_CLASSES:
        message = f"{path} has {config.classes} classes, and class maps of 8 bits hold at most {MOST_CLASSES}"
        raise CheckpointError(message, code="class_count")
    changes = [*checkpoint.notes, _window_note(config, semantic_window)]
    state = {name: tensor for name, tensor in checkpoint.state_dict.items() if not name.startswith(IGNORED_PREFIXES)}
    if len(state) < len(shapes):
        left_out = len(shapes) - len(state)
        changes.append(f"left out {left_out} tensors of a head that is used in training alone (auxiliary_head)")
    _check_indices(path, state, config.window_size)
    with torch.device("meta"):
        semask = build_semask(config)
    load_state(semask, state)
    return LoadedSemask(checkpoint, config, semask.eval(), tuple(changes))


def _window_note(config: SemaskConfig, asked: SemanticWindow | None) -> str:
    reason = "as the published code has it for these sizes" if asked is None else "as asked for"
    return f"semantic layers work in windows in {config.semantic_window} stages, {reason}"


def _check_indices(path: Path, state: dict[str, torch.Tensor], window_size: int) -> None:
    """Refuse tables of positions that are not those of the window: they would load and mean something else."""
    expected = relative_position_index(window_size)
    for name, tensor in state.items():
        if name.endswith(INDEX_SUFFIX) and tensor.shape == expected.shape and not torch.equal(tensor, expected):
            message = (
                f"{path}: {name} does not number the places of a {window_size} x {window_size} window as Swin does; "
                "the checkpoint is of a variant that is not supported"
            )
            raise CheckpointError(message, code="unsupported_architecture")


def choose_settings(
    model: LoadedSemask, classes: ClassTable | None = None, scale: ScaleLimits | None = None
) -> SemanticSettings:
    """Choose the classes' names and the scale: the caller's, else the checkpoint's, else those of the data set.

    The number of classes tells the data set: 19 Cityscapes, 150 ADE20K, 171 COCO-Stuff; unless the checkpoint itself
    names other classes, in which case it is a user's own model with as many.

    Raises
    ------
    CheckpointError
        ``class_count`` when the number of names is not that of the head, or there are none.
    """
    count = model.config.classes
    labels = model.checkpoint.labels
    data_set = next((name for name, table in TABLES.items() if len(table.classes) == count), None)
    if classes is not None:
        table = classes
        data_set = next((name for name, known in TABLES.items() if known.classes == table.classes), None)
    elif data_set is not None and not _names_others(labels, TABLES[data_set]):
        table = TABLES[data_set]
    elif labels is not None and len(labels.classes) == count:
        data_set = None
        table = ClassTable(OWN_CLASSES, labels.classes, labels.palette or make_palette(count))
    else:
        message = (
            f"{model.checkpoint.path} has {count} classes, whose names are not known: 19 would be Cityscapes, 150 "
            "ADE20K, 171 COCO-Stuff; give `segship export` a JSON list of names with --classes FILE"
        )
        raise CheckpointError(message, code="class_count")
    if len(table.classes) != count:
        message = (
            f"{len(table.classes)} names of classes were given and {model.checkpoint.path} has {count} classes; "
            "give one name for each, in the order of its logits"
        )
        raise CheckpointError(message, code="class_count")
    return SemanticSettings(data_set, table, scale or published_scale(model.config.architecture, data_set))


def published_scale(architecture: str, data_set: str | None) -> ScaleLimits:
    """Return the test scale that a model was published with; `OWN_SCALE` for classes of a user's own."""
    if data_set is None:
        return OWN_SCALE
    large = architecture == "semask_l" and data_set != "cityscapes"
    return LARGE_SCALE if large else SCALE_LIMITS[data_set]


def _names_others(labels: Labels | None, table: ClassTable) -> bool:
    """Tell whether a checkpoint names classes that are for the most part not the table's; spellings may differ."""
    if labels is None or len(labels.classes) != len(table.classes):
        return False
    shared = {name.lower() for name in labels.classes} & {name.lower() for name in table.classes}
    return 2 * len(shared) < len(table.classes)


def describe_semask(
    model: LoadedSemask,
    settings: SemanticSettings,
    *,
    output: SemanticOutput,
    size: tuple[int, int] | None,
    opset: int,
    comparison: SemanticComparison | None,
    precision: Precision = "fp32",
    licence: str | None = None,
) -> SemanticManifest:
    """Write down everything about a model except its graph, which `segship.bundle.write_bundle` adds."""
    config, checkpoint = model.config, model.checkpoint
    return SemanticManifest(
        architecture=config.architecture,
        data_set=settings.data_set,
        classes=list(settings.table.classes),
        palette=list(settings.table.palette),
        semantic_classes=config.semantic_classes,
        semantic_window=config.semantic_window,
        window_size=config.window_size,
        scale=(settings.scale.long_side, settings.scale.short_side),
        size=size,
        output=output,
        preprocessing=SemanticPreprocessingEntry(
            padding="none" if size is None else "right_bottom_zero_after_normalize",
            pixel_mean=config.pixel_mean,
            pixel_std=config.pixel_std,
        ),
        graphs={},
        precision=precision,
        opset=opset,
        checkpoint=CheckpointEntry(
            name=checkpoint.path.name,
            sha256=checkpoint.sha256,
            bytes=checkpoint.bytes,
            licence=licence or "unknown",
            # No digest of these files is published, so none can be recognised.
            known=False,
        ),
        changes=list(model.changes),
        tools=tool_versions(),
        comparison=comparison,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
