# SPDX-License-Identifier: Apache-2.0
"""Graphs as sessions that a comparison runs: torch modules as they are, exported ones in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from segship.arrays import AnyArray
from segship.backends import onnxruntime, torch
from segship.backends.session import Session
from segship.ship.graph.wire import add_logits
from segship.spec import GraphSpec, TensorSpec


def torch_sessions(parts: Mapping[str, tuple[nn.Module, GraphSpec]]) -> dict[str, Session]:
    """Return modules as sessions in float32 on the CPU, by graph."""
    return {name: torch.Session(module, spec) for name, (module, spec) in parts.items()}


class _WithLogits(Session):
    """A graph that gives classes, and its twin that also tells the logits that they are taken from."""

    def __init__(self, path: Path, spec: GraphSpec) -> None:
        beside = path.with_name(f"{path.stem}_logits.onnx")
        add_logits(path, beside)
        image = spec.inputs[0].shape
        logits = TensorSpec("logits", "float32", (image[0], "classes", *image[2:]))
        twin_spec = GraphSpec(spec.name, spec.inputs, (*spec.outputs, logits))
        self._classes = onnxruntime.Session(path, spec)
        self._logits = onnxruntime.Session(beside, twin_spec)
        self.spec, self.description = spec, self._classes.description

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        """Return ``class_map``, whatever the graph calls it, and ``logits``."""
        classes = self._classes.run(inputs)[self.spec.outputs[0].name]
        return {"class_map": classes, "logits": self._logits.run(inputs)["logits"]}

    def close(self) -> None:
        """Release both."""
        self._classes.close()
        self._logits.close()


def open_graph(path: Path, spec: GraphSpec) -> Session:
    """Load an exported graph in ONNX Runtime, which every comparison of an export runs in.

    Classes alone hide how close a graph is, so one that gives classes answers with their logits, too.
    """
    gives_classes = len(spec.outputs) == 1 and np.dtype(spec.outputs[0].dtype).kind in "iu"
    return _WithLogits(path, spec) if gives_classes else onnxruntime.Session(path, spec)
