# SPDX-License-Identifier: Apache-2.0
"""Say what a path is (a bundle, an ONNX graph or a checkpoint) and what stands in it; nothing of it is run."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segship.bundle import Bundle
from segship.bundle.certificate import read_certificate, strangeness
from segship.bundle.folder import EXPORT_FILE, is_contract
from segship.bundle.manifest import MAX_MANIFEST_BYTES
from segship.bundle.onnx_file import read_graph
from segship.catalog import CHECKPOINT_SUFFIXES, EMBEDDED_MODELS, KNOWN_CHECKPOINTS, find_model, importable
from segship.errors import BundleError, InputError
from segship.files import read_bytes

GRAPH_SUFFIX = ".onnx"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a path holds.

    Attributes
    ----------
    kind
        ``bundle``, ``contract`` (graphs for another program), ``graph`` or ``checkpoint``.
    path
        As it was given.
    content
        Plain values that JSON can carry. Of a bundle its digest, its manifest, a summary of every graph, and the
        verdicts of its certificate or why that is not its own; of a contract its ``export.json`` and the summaries.
    """

    kind: Literal["bundle", "contract", "graph", "checkpoint"]
    path: Path
    content: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can carry: ``kind``, ``path``, and the description under the kind's name."""
        return {"kind": self.kind, "path": str(self.path), self.kind: self.content}


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """Describe a bundle folder or that of another contract, an ``.onnx`` graph or a checkpoint, by its path or name.

    Names are those that `segship.load` knows.

    Raises
    ------
    InputError
        ``file_missing`` or ``unknown_file`` when the path is none of them.
    BundleError, CheckpointError
        When the file is damaged or unsafe; the message names it.
    """
    name = os.fspath(path)
    known = name in (*EMBEDDED_MODELS, *KNOWN_CHECKPOINTS, *importable()) and not os.path.exists(name)
    target = find_model(name) if known else Path(name)
    if name and is_contract(target):
        return Inspection("contract", target, _describe_contract(target))
    if name and os.path.isdir(target):
        return Inspection("bundle", target, _describe_bundle(Bundle.read(target)))
    if not name or not os.path.exists(target):
        message = f"there is no file or folder {name!r}; check the name; `segship models` says where known ones lie"
        raise InputError(message, code="file_missing")
    suffix = target.suffix.lower()
    if suffix == GRAPH_SUFFIX:
        return Inspection("graph", target, read_graph(target).to_dict())
    if suffix in CHECKPOINT_SUFFIXES:
        from segship.ship.describe import describe_checkpoint

        return Inspection("checkpoint", target, describe_checkpoint(target).to_dict())
    accepted = ", ".join((GRAPH_SUFFIX, *CHECKPOINT_SUFFIXES))
    message = (
        f"{target} is not a bundle folder and its name does not end in one of {accepted}; rename it or name another"
    )
    raise InputError(message, code="unknown_file")


def _describe_contract(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads(read_bytes(folder / EXPORT_FILE, limit=MAX_MANIFEST_BYTES))
    except ValueError as error:
        raise BundleError(f"{folder / EXPORT_FILE} is no JSON; export it again", code="bad_bundle") from error
    graphs = {file.stem: read_graph(file).to_dict() for file in sorted(folder.glob(f"*{GRAPH_SUFFIX}"))}
    return {"export": document, "graphs": graphs}


def _describe_bundle(bundle: Bundle) -> dict[str, Any]:
    artifacts = bundle.manifest.artifacts
    # The stem is the graph's name, and the precision where it is not fp32.
    files = [bundle.path / artifact.file for artifact in artifacts]
    graphs = {file.stem: read_graph(file).to_dict() for file in files}
    described = {"digest": bundle.digest, "manifest": json.loads(bundle.manifest.to_json()), "graphs": graphs}
    certificate = read_certificate(bundle.path)
    if certificate is None:
        return described
    strange = list(strangeness(certificate, bundle))
    if strange:
        return {**described, "certificate": {"problem": f"it is not this bundle's: {'; '.join(strange)}"}}
    verdicts = {f"{row.backend} {row.precision}": f"{row.verdict}: {row.reason}" for row in certificate.certified}
    evaluation = certificate.evaluation
    about = {"created": certificate.created, "pictures": evaluation.images, "truth": evaluation.truth}
    return {**described, "certificate": {**about, "verdicts": verdicts}}
