# SPDX-License-Identifier: Apache-2.0
"""Graphs as sessions that a comparison runs, and a bundle held against the torch model of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from segship.arrays import AnyArray
from segship.backends import onnxruntime
from segship.backends.session import Session
from segship.bundle import Bundle
from segship.bundle.artifacts import weights_file
from segship.bundle.evidence import EXACT, Row
from segship.bundle.manifest import Manifest, task_module
from segship.errors import BundleError
from segship.promptable.manifest import PromptableManifest
from segship.semantic.manifest import SemanticManifest
from segship.ship.graph.wire import add_logits
from segship.ship.options import ExportOptions
from segship.spec import MASK_TOKENS, GraphSpec, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from segship.ship.loading import LoadedModel


def torch_sessions(parts: Mapping[str, tuple[nn.Module, GraphSpec]]) -> dict[str, Session]:
    """Return modules as sessions in float32 on the CPU, by graph."""
    from segship.backends import torch

    return {name: torch.Session(module, spec) for name, (module, spec) in parts.items()}


class _WithLogits(Session):
    """A graph that gives classes, and its twin that also tells the logits that they are taken from."""

    def __init__(self, path: Path, spec: GraphSpec) -> None:
        self._classes, self._logits = onnxruntime.Session(path, spec), _open_twin(path, spec)
        self.spec, self.description = spec, self._classes.description

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Return ``class_map``, whatever the graph calls it, and ``logits``."""
        classes = self._classes.run(inputs)[self.spec.outputs[0].name]
        return {"class_map": classes, "logits": self._logits.run(inputs)["logits"]}

    def close(self) -> None:
        """Release both."""
        self._classes.close()
        self._logits.close()


def _open_twin(path: Path, spec: GraphSpec, *, once: bool = False) -> Session:
    beside = path.with_name(f"{path.stem}_logits.onnx")
    add_logits(path, beside)
    image = spec.inputs[0].shape
    logits = TensorSpec("logits", "float32", (image[0], "classes", *image[2:]))
    return onnxruntime.Session(beside, GraphSpec(spec.name, spec.inputs, (*spec.outputs, logits)), once=once)


def open_graph(path: Path, spec: GraphSpec, *, once: bool = False) -> Session:
    """Load an exported graph in ONNX Runtime, which every comparison of an export runs in.

    Classes alone hide how close a graph is, so one that gives classes answers with their logits, too. With ``once`` it
    is for a run or two, and takes less memory.
    """
    if not (len(spec.outputs) == 1 and np.dtype(spec.outputs[0].dtype).kind in "iu"):
        return onnxruntime.Session(path, spec, once=once)
    return _open_twin(path, spec, once=True) if once else _WithLogits(path, spec)


def verify_bundle(path: Path, checkpoint_path: Path) -> list[Row]:
    """Hold every graph of a bundle against the torch model of its checkpoint; needs torch.

    Imported graphs do not say what they were made of, and are held against whatever is given.

    Returns
    -------
    list of Row
        As those of an export's last step; whether each passed stands in it.

    Raises
    ------
    BundleError
        ``other_checkpoint`` when the bundle was made of another one; ``one_mask`` for a decoder that gives one mask,
        where a model gives four; whatever is wrong with the bundle.
    CheckpointError
        When the checkpoint cannot be used.
    """
    bundle = Bundle.read(path)
    manifest = bundle.manifest
    if isinstance(manifest, PromptableManifest) and manifest.decoder_masks != MASK_TOKENS:
        message = f"the decoder of {path} gives one mask, and its model gives {MASK_TOKENS}, so they are not compared"
        raise BundleError(f"{message}; import a decoder that gives all", code="one_mask")
    model = load_origin(bundle, checkpoint_path)
    task = task_module(manifest.task)
    cases = task.cases(manifest)
    expected = task.answer(cases, torch_sessions(model.networks.reference(model)))
    with ExitStack() as stack, TemporaryDirectory(prefix="segship-verify-") as folder:
        files = {artifact.graph: _linked(bundle.path, artifact.file, Path(folder)) for artifact in manifest.artifacts}
        sessions: dict[str, Session] = {
            graph: stack.enter_context(open_graph(file, manifest.graph_spec(graph))) for graph, file in files.items()
        }
        found = task.answer(cases, manifest.adapt(sessions), expected)
    rows: list[Row] = task.compare("verified", cases, expected, found, task.bar(EXACT))
    return rows


def load_origin(bundle: Bundle, checkpoint_path: Path) -> LoadedModel:
    """Load the checkpoint that a bundle was made of, or refuse another one as ``other_checkpoint``.

    Imported graphs are only believed to be of a checkpoint, so theirs may be any.
    """
    from segship.ship.loading import load_model

    manifest = bundle.manifest
    model = load_model(checkpoint_path, options_of(manifest))
    is_foreign = isinstance(manifest, PromptableManifest) and manifest.foreign is not None
    if model.checkpoint.sha256 != manifest.checkpoint.sha256 and not is_foreign:
        message = (
            f"{bundle.path} was made of {manifest.checkpoint.name} with the SHA-256 {manifest.checkpoint.sha256}, and "
            f"that of {checkpoint_path} is {model.checkpoint.sha256}; give the checkpoint that it was made of"
        )
        raise BundleError(message, code="other_checkpoint")
    return model


def options_of(manifest: Manifest) -> ExportOptions:
    """Return the options by which a checkpoint becomes the model that a manifest tells of."""
    if isinstance(manifest, PromptableManifest):
        return ExportOptions(image_size=manifest.geometry.image_size)
    assert isinstance(manifest, SemanticManifest)
    return ExportOptions(semantic_window=manifest.semantic_window)


def _linked(folder: Path, name: str, other: Path) -> Path:
    """Link a graph, and the file of its weights, into a folder where a twin may lie beside it."""
    for file in (name, weights_file(name)):
        if (folder / file).exists():
            (other / file).symlink_to((folder / file).resolve())
    return other / name
