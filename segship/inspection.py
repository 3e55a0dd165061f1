# SPDX-License-Identifier: Apache-2.0
"""Say what a path is (a bundle, an ONNX graph or a checkpoint) and what stands in it; nothing of it is run."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from segship.bundle import Bundle
from segship.bundle.onnx_file import read_graph
from segship.catalog import CHECKPOINT_SUFFIXES
from segship.errors import InputError

GRAPH_SUFFIX = ".onnx"


class Described(Protocol):
    """Anything that can say as JSON what it is."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can carry."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a path holds.

    Attributes
    ----------
    kind
        ``bundle``, ``graph`` or ``checkpoint``.
    path
        As it was given.
    content
        The description: a `BundleDescription`, an `segship.bundle.onnx_file.OnnxGraph` or that of a checkpoint.
    """

    kind: Literal["bundle", "graph", "checkpoint"]
    path: Path
    content: Described

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can carry: ``kind``, ``path``, and the description under the kind's name."""
        return {"kind": self.kind, "path": str(self.path), self.kind: self.content.to_dict()}


@dataclass(frozen=True, slots=True)
class BundleDescription:
    """A bundle of which every byte was verified."""

    bundle: Bundle

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest, the bundle's digest, and a summary of every graph."""
        graphs = {
            artifact.graph: read_graph(self.bundle.path / artifact.file).to_dict()
            for artifact in self.bundle.manifest.artifacts
        }
        manifest = json.loads(self.bundle.manifest.to_json())
        return {"digest": self.bundle.digest, "manifest": manifest, "graphs": graphs}


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Describe a bundle folder, an ``.onnx`` graph or a checkpoint.

    Raises
    ------
    InputError
        ``file_missing`` or ``unknown_file`` when the path is none of them.
    BundleError, CheckpointError
        When the file is damaged or unsafe; the message names it.
    """
    target = Path(path)
    if target.is_dir():
        return Inspection("bundle", target, BundleDescription(Bundle.read(target)))
    if not target.exists():
        message = f"there is no file or folder {target}; check the name; `segship models` says where known ones lie"
        raise InputError(message, code="file_missing")
    suffix = target.suffix.lower()
    if suffix == GRAPH_SUFFIX:
        return Inspection("graph", target, read_graph(target))
    if suffix in CHECKPOINT_SUFFIXES:
        from segship.ship.describe import describe_checkpoint

        return Inspection("checkpoint", target, describe_checkpoint(target))
    accepted = ", ".join((GRAPH_SUFFIX, *CHECKPOINT_SUFFIXES))
    message = (
        f"{target} is not a bundle folder and its name does not end in one of {accepted}; rename it or name another"
    )
    raise InputError(message, code="unknown_file")
