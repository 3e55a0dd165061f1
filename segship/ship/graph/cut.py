# SPDX-License-Identifier: Apache-2.0
"""A traced graph in two: what is made of weights alone, and the rest.

Transposed matrices, batch norms folded into convolutions, position codes: whatever needs no input of the graph is the
same in every run, so it is made once, when the weights are put in (`segship.ship.graph.fill`), by the graph
``prepare``. The rest is the ``body``; its weights are tensors of the checkpoint and outputs of ``prepare``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from segship.ship.graph.fill import Template
from segship.spec import GraphSpec


@dataclass(frozen=True, slots=True, eq=False)
class CutGraph:
    """A graph in two parts, without weights.

    Attributes
    ----------
    prepare
        Tensors of the checkpoint to what has to be made of them.
    body
        The graph of the contract; its weights are further inputs.
    halves
        Weights that float16 holds exactly are stored so.
    """

    prepare: onnx.ModelProto
    body: onnx.ModelProto
    halves: bool = False

    def template(self) -> Template:
        """Return both as bytes, equal ones for equal graphs."""
        return Template(*(part.SerializeToString(deterministic=True) for part in (self.prepare, self.body)))


NOTHING = CutGraph(onnx.ModelProto(), onnx.ModelProto())
"""Before a graph is traced."""


def cut_graph(model: onnx.ModelProto, spec: GraphSpec, names: Mapping[str, str] | None = None) -> CutGraph:
    """Cut a graph of `segship.ship.graph.trace.trace_graph` between what its inputs reach and what they do not.

    ``names`` are other names for weights.
    """
    graph = model.graph
    _rename_inputs(graph, names or {})
    named = {tensor.name for tensor in spec.inputs}
    weights = {value.name for value in graph.input} - named
    outputs = {value.name for value in graph.output}
    reached = _reached(graph.node, named)
    # Behind weights, and behind nothing else but constants.
    made = _reached(graph.node, weights) - reached
    used = {name for node in graph.node if reached.intersection(node.output) for name in node.input} | outputs
    prepared = [name for node in graph.node for name in node.output if name in used & made]
    types = {value.name: value for value in (*graph.value_info, *graph.input)}
    body = _makers(graph.node, outputs, stop={*prepared, *weights})
    making = _makers(graph.node, set(prepared), stop=weights)
    taken = [types[name] for name in (*sorted(used & weights), *prepared)]
    needed = {name for node in making for name in node.input}
    return CutGraph(
        _model(model, making, [types[name] for name in sorted(needed & weights)], [types[name] for name in prepared]),
        _model(model, body, [*(types[tensor.name] for tensor in spec.inputs), *taken], list(graph.output)),
    )


def _rename_inputs(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in graph.input:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _reached(nodes: Iterable[onnx.NodeProto], start: set[str]) -> set[str]:
    """Return the names that some of ``start`` takes part in, and these."""
    found = set(start)
    for node in nodes:
        if found.intersection(node.input):
            found.update(node.output)
    return found


def _makers(nodes: Sequence[onnx.NodeProto], wanted: set[str], stop: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that make some names, from those of ``stop`` and from constants."""
    wanted, kept = set(wanted), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(name for name in node.input if name not in stop)
    return kept[::-1]


def _model(
    whole: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    used = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in whole.graph.initializer if tensor.name in used]
    graph = helper.make_graph(nodes, whole.graph.name, inputs, outputs, constants)
    part = helper.make_model(graph, opset_imports=list(whole.opset_import), ir_version=whole.ir_version)
    part.producer_name, part.producer_version = whole.producer_name, whole.producer_version
    return part
