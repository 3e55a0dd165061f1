# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint of any family to a torch model, and to what all manifests say of one. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

import segship
from segship.backends import torch as runtime
from segship.backends.session import RunOptions, Session
from segship.bundle.manifest import CheckpointFile, Manifest
from segship.errors import CheckpointError, shown
from segship.ship.checkpoints.reading import Checkpoint, load_state, read_checkpoint
from segship.ship.families import family_module, recognise
from segship.ship.options import ExportOptions

TOOLS = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A checkpoint as a torch module that is ready to be exported or run."""

    family: str
    """The name of the family's folder."""
    checkpoint: Checkpoint
    config: Any
    """Its sizes, in the family's class."""
    module: Any
    changes: tuple[str, ...]
    """What was changed on the way, in words."""

    @property
    def verbs(self) -> ModuleType:
        """The module `family` of its family."""
        return family_module(self.family)

    @property
    def task(self) -> str:
        """The task that the model answers."""
        return str(self.verbs.TASK)


def load_model(path: Path, options: ExportOptions | None = None) -> LoadedModel:
    """Read a checkpoint, recognise its family and sizes and build the module, strictly.

    Of the options those count that belong to the model: ``image_size``, ``semantic_window``.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely, is of no known family, or its tensors do not fit.
    ExportError
        ``other_family`` when options belong to models of the other task.
    """
    options = options or ExportOptions()
    checkpoint = read_checkpoint(path)
    try:
        return _build(path, checkpoint, options)
    except CheckpointError as error:
        if not checkpoint.unusable:
            raise
        kinds = ", ".join(f"{shown(name)} ({kind})" for name, kind in list(checkpoint.unusable.items())[:10])
        message = (
            f"{error}; {len(checkpoint.unusable)} tensors of the file cannot become weights: {kinds}; save them as "
            "plain floating-point tensors (dequantize(), to_dense()) first"
        )
        raise CheckpointError(message, code=error.code) from error


def _build(path: Path, checkpoint: Checkpoint, options: ExportOptions) -> LoadedModel:
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.state_dict.items()}
    name, config = recognise(shapes)
    family = family_module(name)
    options.check_task(family.TASK, path)
    config, state, changes = family.prepare(path, config, checkpoint.state_dict, options)
    with torch.device("meta"):
        module: nn.Module = family.build(config)
    load_state(module, state)
    return LoadedModel(name, checkpoint, config, module.eval(), (*checkpoint.notes, *changes))


class OpenedCheckpoint(NamedTuple):
    """A checkpoint as sessions."""

    manifest: Manifest
    """What a bundle's manifest would say, without graphs."""
    sessions: dict[str, Session]
    """Graph -> session, for every graph that a bundle may have."""
    encoder_sha256: str
    """The digest that ties embeddings to this encoder."""


def open_checkpoint(path: Path, run: RunOptions) -> OpenedCheckpoint:
    """Open a checkpoint of any family as sessions that a predictor runs.

    A semantic one gives logits and takes pictures of any size, as many at once as wanted. The networks compute by the
    variant of the device: tiles that stay in the cache on CPUs, torch's fused attention on CUDA.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely or does not fit.
    BackendUnavailable
        When the device or precision is not here.
    """
    device = runtime.device_of(run.device)
    runtime.check_precision(run.precision, device)
    model, on_gpu = load_model(path), device.type == "cuda"
    wanted = ExportOptions(target="torch-cuda" if on_gpu else "torch", output="logits")
    parts = model.verbs.graphs(model, wanted, known_sizes=on_gpu)
    sessions: dict[str, Session] = {
        name: runtime.Session(runtime.compile(module, spec, run), spec, run) for name, (module, spec) in parts.items()
    }
    return OpenedCheckpoint(model.verbs.manifest(model, wanted), sessions, model.checkpoint.sha256)


def manifest_fields(model: LoadedModel, options: ExportOptions) -> dict[str, Any]:
    """Return the fields that every manifest has of a model; graphs and artifacts come with the bundle."""
    checkpoint, known = model.checkpoint, model.checkpoint.known
    return {
        "family": model.family,
        "architecture": model.config.architecture,
        "checkpoint": CheckpointFile(
            name=checkpoint.path.name,
            bytes=checkpoint.bytes,
            sha256=checkpoint.sha256,
            licence=known.licence if known else options.licence or "unknown",
            known=known is not None,
        ),
        "changes": model.changes,
        "tools": tool_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def tool_versions() -> dict[str, str]:
    """Return the versions of everything that shapes a graph."""
    versions = {"segship": segship.__version__}
    for name in TOOLS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
