# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint of any family to the weights of a known model, and to what all manifests say of one. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import segship
from segship.arrays import AnyArray
from segship.backends.session import Session
from segship.bundle.manifest import CheckpointFile, Manifest
from segship.errors import CheckpointError, shown
from segship.ship.checkpoints.reading import Checkpoint, listed, read_checkpoint
from segship.ship.families import family_module, recognise
from segship.ship.options import ExportOptions

TOOLS = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The weights of a model whose family and sizes are known."""

    family: str
    """The name of the family's folder."""
    checkpoint: Checkpoint
    config: Any
    """Its sizes, in the family's class."""
    state: Mapping[str, AnyArray]
    """Its tensors as the model has them; whether they are exactly those that it needs shows when they are used."""
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


class OpenedCheckpoint(NamedTuple):
    """A checkpoint as sessions."""

    manifest: Manifest
    """What a bundle's manifest would say, without graphs."""
    sessions: dict[str, Session]
    """Graph -> session, for the graphs that a bundle may have."""
    encoder_sha256: str
    """The digest that ties embeddings to this encoder."""


def read_weights(path: Path, options: ExportOptions | None = None) -> Weights:
    """Read a checkpoint, recognise its family and sizes, and make its tensors those of the model.

    Of the options those count that belong to the model: ``image_size``, ``semantic_window``.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely, or is of no known family.
    ExportError
        ``other_family`` when options belong to models of the other task.
    """
    options = options or ExportOptions()
    checkpoint = read_checkpoint(path)
    with naming_unusable(checkpoint):
        name, config = recognise({name: array.shape for name, array in checkpoint.state_dict.items()})
        family = family_module(name)
        options.check_task(family.TASK, path)
        config, state, changes = family.prepare(path, config, checkpoint.state_dict, options)
    return Weights(name, checkpoint, config, state, (*checkpoint.notes, *changes))


Expected = Mapping[str, tuple[bool, tuple[int, ...]]]
"""Name of a tensor that a model has -> whether it holds floating-point numbers, and its shape."""
COUNTER = ".num_batches_tracked"


def check_state(expected: Expected, state: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """Return the tensors of a model if they are exactly those that it has; counters of batches that are missing are 0.

    Raises
    ------
    CheckpointError
        ``state_mismatch`` when a key is missing, unexpected, or of another shape or kind of number; the message lists
        the first ten of each.
    """
    # Counters of training steps, which many tools leave out: no answer depends on them.
    counters = [name for name in expected if name.endswith(COUNTER) and name not in state]
    state = {**state, **{name: np.zeros((), np.int64) for name in counters}}
    misfits = [
        f"{name} {state[name].shape} {state[name].dtype} instead of {shape} {'float32' if floating else 'int64'}"
        for name, (floating, shape) in expected.items()
        if name in state and (state[name].shape != shape or (state[name].dtype.kind == "f") != floating)
    ]
    found = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": misfits,
    }
    if parts := [listed(kind, names) for kind, names in found.items() if names]:
        message = (
            f"the checkpoint does not fit the model: {'; '.join(parts)}; it is incomplete, "
            "of a variant that is not supported, or of another architecture; give a checkpoint with exactly these keys"
        )
        raise CheckpointError(message, code="state_mismatch")
    return state


@contextmanager
def naming_unusable(checkpoint: Checkpoint) -> Iterator[None]:
    """Let a refusal of a checkpoint name those of its tensors that cannot become weights, too."""
    try:
        yield
    except CheckpointError as error:
        if not checkpoint.unusable:
            raise
        kinds = ", ".join(f"{shown(name)} ({kind})" for name, kind in list(checkpoint.unusable.items())[:10])
        message = (
            f"{error}; {len(checkpoint.unusable)} tensors of the file cannot become weights: {kinds}; save them as "
            "plain floating-point tensors (dequantize(), to_dense()) first"
        )
        raise CheckpointError(message, code=error.code) from error


def manifest_fields(weights: Weights, options: ExportOptions) -> dict[str, Any]:
    """Return the fields that every manifest has of a model; graphs and artifacts come with the bundle."""
    checkpoint, known = weights.checkpoint, weights.checkpoint.known
    return {
        "family": weights.family,
        "architecture": weights.config.architecture,
        "checkpoint": CheckpointFile(
            name=checkpoint.path.name,
            bytes=checkpoint.bytes,
            sha256=checkpoint.sha256,
            licence=known.licence if known else options.licence or "unknown",
            known=known is not None,
        ),
        "changes": weights.changes,
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
