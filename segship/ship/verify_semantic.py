# SPDX-License-Identifier: Apache-2.0
"""Compare the graph of a semantic model with the torch model it was made from, and hold the differences against a bar.

A class map alone hides how close a graph is, so its logits are compared too: a twin of the graph is run that gives out
the logits from which it takes the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from segship.backends.onnxruntime import Session
from segship.backends.session import SessionOptions
from segship.bundle.agreement import class_map_step, logits_step
from segship.bundle.measured import SemanticBar, SemanticStep
from segship.cases import comparison_tensors
from segship.errors import ExportError
from segship.ship.families.semask.model import SemanticGraph, Semask
from segship.ship.graph.store import save_graph
from segship.spec import GraphSpec, TensorSpec

Size = tuple[int, int]

OPEN_SIZES: tuple[Size, ...] = ((512, 1024), (333, 517))
"""Heights and widths at which a graph of any size is compared: one of a street, and one that nothing divides."""


@dataclass(frozen=True, slots=True, eq=False)
class SemanticCase:
    """Pictures for one run of the graph, and what the model answered to each of them by itself.

    Attributes
    ----------
    image
        (B, 3, H, W) float32.
    logits
        (B, K, H, W) float32.
    """

    image: NDArray[np.float32]
    logits: NDArray[np.float32]

    @property
    def class_map(self) -> NDArray[np.uint8]:
        """(B, H, W) uint8."""
        return np.asarray(self.logits.argmax(axis=1), np.uint8)


def run_semantic_reference(
    semask: Semask, sizes: Sequence[Size], *, batch: int | None = None
) -> tuple[SemanticCase, ...]:
    """Run the torch model in float32 on pictures of some sizes.

    Parameters
    ----------
    sizes
        Heights and widths.
    batch
        Pictures that the graph takes at once; None if it takes any number, in which case one and two are tried.
    """
    config = semask.config
    model = SemanticGraph(semask, "logits")
    cases: list[SemanticCase] = []
    for index, size_hw in enumerate(sizes):
        tensors = comparison_tensors(size_hw, config.pixel_mean, config.pixel_std)
        # Fixed sizes are compared on two pictures; of several sizes each has one.
        chosen = [tensors[(index + place) % len(tensors)] for place in range(2 if len(sizes) == 1 else 1)]
        with torch.inference_mode():
            answers = [model(torch.from_numpy(tensor)).numpy() for tensor in chosen]
        if batch is None or batch == 1:
            cases.extend(map(SemanticCase, chosen, answers))
        if batch is None:
            cases.append(_joined(chosen, answers, 2))
        elif batch > 1:
            cases.append(_joined(chosen, answers, batch))
    return tuple(cases)


def _joined(tensors: Sequence[NDArray[np.float32]], answers: Sequence[NDArray[np.float32]], batch: int) -> SemanticCase:
    """Return so many pictures in one run, the given ones in turn."""
    order = [index % len(tensors) for index in range(batch)]
    return SemanticCase(
        np.concatenate([tensors[index] for index in order]), np.concatenate([answers[index] for index in order])
    )


def compare_semantic(
    step: str, cases: Sequence[SemanticCase], model: onnx.ModelProto, path: Path, spec: GraphSpec, bar: SemanticBar
) -> tuple[SemanticStep, ...]:
    """Compare a graph with the model on all cases.

    Parameters
    ----------
    model, path
        The graph, and the file that it was saved to.
    spec
        Its contract; its first output is logits, or numbers of classes of any integer type.

    Raises
    ------
    ExportError
        ``no_argmax`` when the graph gives classes and does not take them from logits.
    """
    output = spec.outputs[0]
    found: list[NDArray[np.float32]] = []
    maps: list[NDArray[Any]] = []
    if output.name != "logits":
        twin, twin_spec = add_logits(model, spec)
        twin_path = path.with_name(f"{path.stem}_logits.onnx")
        save_graph(twin, twin_path)
        with Session(path, spec, SessionOptions()) as session:
            maps.extend(session.run({"image": case.image})[output.name] for case in cases)
        path, spec = twin_path, twin_spec
    with Session(path, spec, SessionOptions()) as session:
        found.extend(session.run({"image": case.image})["logits"] for case in cases)
    maps = maps or [logits.argmax(axis=1) for logits in found]
    return (
        logits_step(step, _by_picture([case.logits for case in cases], found), bar),
        class_map_step(step, _by_picture([case.class_map for case in cases], maps), bar),
    )


def _by_picture(
    expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Pair the answers to every picture of every run, so that the worst picture decides."""
    return [pair for known, made in zip(expected, found, strict=True) for pair in zip(known, made, strict=True)]


def add_logits(model: onnx.ModelProto, spec: GraphSpec) -> tuple[onnx.ModelProto, GraphSpec]:
    """Return a graph that gives out, besides the classes, the logits that they are taken from, and its contract."""
    nodes = [node for node in model.graph.node if node.op_type == "ArgMax"]
    if len(nodes) != 1:
        message = f"the graph takes classes by {len(nodes)} ArgMax nodes, and one is expected; report this"
        raise ExportError(message, code="no_argmax")
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    twin.graph.node.append(helper.make_node("Identity", [nodes[0].input[0]], ["logits"]))
    twin.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None] * 4))
    image = spec.inputs[0].shape
    logits = TensorSpec("logits", "float32", (image[0], "classes", *image[2:]))
    return twin, GraphSpec(spec.name, spec.inputs, (*spec.outputs, logits))
