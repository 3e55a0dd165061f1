# SPDX-License-Identifier: Apache-2.0
"""fp16 arithmetic, with islands of float32 where float16 does not reach; every tensor has the type that it computes in.

float16 ends at 65,504, and models are not trained for it: one residual or one sum of squares beyond gives infinity, and
after it nothing but NaN. So the ranges of all tensors are recorded first, and a node stays in float32, with a Cast
before and behind it, where

- something that it reads or makes goes past half of that (`LARGEST`), which leaves a picture more extreme than those
  recorded some room;
- it takes the mean of squares inside (LayerNormalization) and those go past it;
- it makes the argument of a sine: coordinates in float16 are off by up to half a pixel.

Engines that choose types themselves (TensorRT up to 9, OpenVINO by a hint) do not see ranges; typed graphs are what
TensorRT 10 and 11 take.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, shape_inference

from segship.ship.quantize.opened import OpenGraph
from segship.ship.quantize.ranges import Recorded

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
LARGEST = 65_504 / 2
_FLOAT_ONLY = {"Resize", "DequantizeLinear", "QuantizeLinear", "Range"}
"""Operators that have inputs which must be float32."""
_ANY_TYPE = {"Shape", "Size"}
"""Operators that look at no value."""
_NORMS = {"LayerNormalization", "ReduceMean", "Sqrt", "Softmax", "Reciprocal", "Exp", "ReduceSum"}
_LAYERS = {"MatMul", "Conv", "ConvTranspose", "Gemm", "Einsum"}

RUNGS = ("ranges alone", "norms and softmax", "residual sums", "all but layers")
"""What is float32 beside the islands that ranges ask for, from least to most; each holds those before it."""


def float_tensors(graph: OpenGraph) -> dict[str, bool]:
    """Return every tensor that nodes make, and whether it is float32."""
    kinds = _types(graph)
    return {name: kinds.get(name) == FLOAT for node in graph.nodes for name in node.output if name}


def _types(graph: OpenGraph) -> dict[str, int]:
    """Return the element types of the tensors that nodes make, by onnx's numbers."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for name, array in graph.weights.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    found = shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*found.value_info, *found.output)}


def islands(graph: OpenGraph, recorded: Mapping[str, Recorded], rung: int = 0) -> set[str]:
    """Return the nodes that stay in float32, by the names of their first outputs.

    Parameters
    ----------
    graph
        A float32 graph.
    recorded
        What its float tensors held, all that `float_tensors` tells of.
    rung
        Of `RUNGS`.
    """
    sines = _arguments_of_sines(graph)
    made = {name for node in graph.nodes for name in node.output}
    kept = set()
    for node in graph.nodes:
        tensors = [*node.input, *node.output]
        is_large = any(_magnitude(graph, name, recorded) > LARGEST for name in tensors)
        squares = node.op_type == "LayerNormalization" and _magnitude(graph, node.input[0], recorded) ** 2 > LARGEST
        is_sum = node.op_type == "Add" and all(name in made for name in node.input)
        higher = (node.op_type in _NORMS, is_sum, node.op_type not in _LAYERS)
        if is_large or squares or node.output[0] in sines or node.op_type in _FLOAT_ONLY or any(higher[:rung]):
            kept.add(node.output[0])
    return kept


def _magnitude(graph: OpenGraph, name: str, recorded: Mapping[str, Recorded]) -> float:
    if name in recorded:
        return recorded[name].magnitude
    array = graph.constant(name) if name else None
    return float(np.abs(array).max()) if array is not None and array.dtype == np.float32 and array.size else 0.0


def _arguments_of_sines(graph: OpenGraph) -> set[str]:
    """Return sines and all that leads to them."""
    makers = {name: node for node in graph.nodes for name in node.output}
    found: set[str] = set()
    waiting = [node for node in graph.nodes if node.op_type in ("Sin", "Cos")]
    while waiting:
        node = waiting.pop()
        if node.output[0] not in found:
            found.add(node.output[0])
            waiting += [makers[name] for name in node.input if name in makers]
    return found


def to_half(graph: OpenGraph, kept: Collection[str]) -> OpenGraph:
    """Return a graph that computes in float16 but for some nodes, with inputs and outputs as they were."""
    typing = _Typing(graph.copied(), float_tensors(graph), set(kept))
    return typing.rewritten()


@dataclass(slots=True)
class _Typing:
    """Gives every tensor of a graph its type; ``now`` is the type that each has in the new graph."""

    graph: OpenGraph
    is_float: dict[str, bool]
    kept: set[str]
    now: dict[str, int] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)

    def rewritten(self) -> OpenGraph:
        graph = self.graph
        self.now |= {
            value.name: FLOAT for value in graph.model.graph.input if value.type.tensor_type.elem_type == FLOAT
        }
        outputs = [value.name for value in graph.model.graph.output]
        for node in list(graph.nodes):
            kind = FLOAT if node.output[0] in self.kept else HALF
            if node.op_type not in _ANY_TYPE:
                for place, name in enumerate(node.input):
                    node.input[place] = self._as(name, kind) if name else name
            _retype(node, kind)
            self.now |= {name: kind for name in node.output if self.is_float.get(name)}
            self.nodes.append(node)
        for name in outputs:
            if self.now.get(name) == HALF:
                self._rename(name)
        graph.replace_nodes(self.nodes)
        graph.halves = False
        return graph

    def _as(self, name: str, kind: int) -> str:
        """Return the name of a tensor in a type, with a Cast before its first use where it has the other."""
        constant = None if name in self.now else self.graph.constant(name)
        if constant is not None:
            if constant.dtype != np.float32 or kind == FLOAT:
                return name
            with np.errstate(over="ignore"):
                return self.graph.add_constant(f"{name}.half", constant.astype(np.float16))
        if name not in self.now or self.now[name] == kind:
            return name
        if (name, kind) not in self.casts:
            self.casts[name, kind] = f"{name}.{'half' if kind == HALF else 'float'}"
            self.nodes.append(helper.make_node("Cast", [name], [self.casts[name, kind]], to=kind))
        return self.casts[name, kind]

    def _rename(self, name: str) -> None:
        """Let an output of the graph be what it was called, in float32."""
        inner = f"{name}.inner"
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, found in enumerate(names):
                    if found == name:
                        names[place] = inner
        self.nodes.append(helper.make_node("Cast", [inner], [name], to=FLOAT))


def _retype(node: onnx.NodeProto, kind: int) -> None:
    """Let nodes that state the type of what they make state the new one."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = kind
        elif attribute.name == "value" and attribute.t.data_type == FLOAT and kind == HALF:
            array = onnx.numpy_helper.to_array(attribute.t).astype(np.float16)
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(array))


def rounded(graph: OpenGraph) -> OpenGraph:
    """Return the float32 graph that rounds as an engine with float16 arithmetic would: after every node.

    ONNX Runtime has no float16 arithmetic on CPUs, computes such nodes in float32 and rounds where it likes. Here each
    result in float16 is rounded by itself, sums inside a product are float32, as tensor cores have them. Run it
    with the graph optimisations off, which would take the Casts away.
    """
    made = graph.copied()
    nodes: list[onnx.NodeProto] = []
    is_half = {name for name, kind in _types(made).items() if kind == HALF}
    for name in [name for name, array in made.weights.items() if array.dtype == np.float16]:
        made.weights[name] = made.weights[name].astype(np.float32)
    for tensor in made.model.graph.initializer:
        if tensor.data_type == HALF:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for node in made.nodes:
        _unhalve(node)
        after = [(place, name) for place, name in enumerate(node.output) if name in is_half]
        for place, name in after:
            node.output[place] = f"{name}.exact"
        nodes.append(node)
        for _, name in after:
            nodes += [
                helper.make_node("Cast", [f"{name}.exact"], [f"{name}.rounded"], to=HALF),
                helper.make_node("Cast", [f"{name}.rounded"], [name], to=FLOAT),
            ]
    made.replace_nodes(nodes)
    return made


def _unhalve(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == HALF:
            attribute.i = FLOAT
        elif attribute.name == "value" and attribute.t.data_type == HALF:
            array = onnx.numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(array))


def float_tensors_of(graph: OpenGraph) -> list[str]:
    """Return the float32 tensors that nodes make: their ranges decide on islands."""
    return [name for name, is_float in float_tensors(graph).items() if is_float]
