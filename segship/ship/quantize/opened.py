# SPDX-License-Identifier: Apache-2.0
"""A float32 graph opened for change: nodes in onnx's classes, weights as arrays beside them, so none is copied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from segship.arrays import AnyArray
from segship.machine import usable_cores
from segship.ship.graph.fill import LARGEST_INLINE_BYTES, Template, fill_graph
from segship.spec import GraphSpec

SMALLEST_WEIGHT_BYTES = 1024
"""Smaller constants, such as shapes and factors, stay in the graph."""


@dataclass(slots=True)
class OpenGraph:
    """A graph and its weights; whoever changes it changes a copy (`copied`).

    Attributes
    ----------
    model
        The graph, without the weights.
    weights
        By name, in the dtype that nodes get: what a file stores as float16 with a Cast behind it is float32 here.
    halves
        Whether the file stored weights so.
    """

    model: onnx.ModelProto
    weights: dict[str, AnyArray]
    halves: bool = False

    @property
    def nodes(self) -> Any:
        """The nodes, in the order in which they run."""
        return self.model.graph.node

    def copied(self) -> OpenGraph:
        """Return a graph with nodes of its own over the same arrays."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return OpenGraph(model, dict(self.weights), self.halves)

    def constant(self, name: str) -> AnyArray | None:
        """Return a weight or a small constant by name, None for what is computed."""
        if name in self.weights:
            return self.weights[name]
        found = next((tensor for tensor in self.model.graph.initializer if tensor.name == name), None)
        return None if found is None else numpy_helper.to_array(found)

    def add_constant(self, name: str, array: AnyArray) -> str:
        """Add a constant, unless there is one of that name, and return the name."""
        if array.nbytes >= SMALLEST_WEIGHT_BYTES:
            self.weights.setdefault(name, np.ascontiguousarray(array))
        elif all(tensor.name != name for tensor in self.model.graph.initializer):
            self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def replace_constant(self, name: str, array: AnyArray) -> None:
        """Put another array in the place of a constant; those of other copies stay."""
        self.weights.pop(name, None)
        small = [tensor for tensor in self.model.graph.initializer if tensor.name != name]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(small)
        self.add_constant(name, array)

    def users(self) -> dict[str, list[onnx.NodeProto]]:
        """Return the nodes that read each tensor."""
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
        return found

    def replace_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Put other nodes in the place of all, and forget weights that none of them reads."""
        kept = list(nodes)
        del self.nodes[:]
        self.nodes.extend(kept)
        used = {name for node in kept for name in node.input}
        self.weights = {name: array for name, array in self.weights.items() if name in used}
        small = [tensor for tensor in self.model.graph.initializer if tensor.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(small)

    def session(self, outputs: Iterable[str] = (), threads: int | None = None, *, lean: bool = True) -> Any:
        """Return an ONNX Runtime session over the same arrays, which also gives some of the tensors inside.

        One that is not lean runs twice as fast, and holds weights a second time and what its largest run took.
        """
        import onnxruntime

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        declared = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in declared)
        del model.graph.value_info[:]
        for name, array in self.weights.items():
            model.graph.initializer.append(_stub(name, array))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads or usable_cores()
        # The arena would keep the largest run of all images, and patterns plan one block for a whole run.
        options.enable_cpu_mem_arena = not lean
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1" if lean else "0")
        arrays = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self.weights.values()]
        options.add_external_initializers(list(self.weights), arrays)
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def write(self, path: Path, spec: GraphSpec, *, largest_inline_bytes: int = LARGEST_INLINE_BYTES) -> None:
        """Write the graph as a file of its contract; weights past what protobuf holds lie beside it."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.value_info[:]
        for name, array in self.weights.items():
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            model.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
        nothing = helper.make_model(helper.make_graph([], "prepare", [], []), opset_imports=model.opset_import)
        template = Template(nothing.SerializeToString(), model.SerializeToString())
        fill_graph(template, spec, self.weights, path, halves=self.halves, largest_inline_bytes=largest_inline_bytes)


def open_graph(path: Path) -> OpenGraph:
    """Read an artifact's graph, its weights with it."""
    model = onnx.load(str(path))
    weights: dict[str, AnyArray] = {}
    small = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.nbytes < SMALLEST_WEIGHT_BYTES:
            small.append(tensor)
        else:
            weights[tensor.name] = array
    del model.graph.initializer[:]
    model.graph.initializer.extend(small)
    del model.graph.value_info[:]
    graph = OpenGraph(model, weights)
    return _without_casts(graph)


def _without_casts(graph: OpenGraph) -> OpenGraph:
    """Let weights that are stored as float16 be what the Cast behind them makes of them."""
    kept = []
    for node in graph.nodes:
        if node.op_type == "Cast" and node.input[0] in graph.weights and node.attribute[0].i == onnx.TensorProto.FLOAT:
            graph.weights[node.output[0]] = graph.weights[node.input[0]].astype(np.float32)
            graph.halves = True
        else:
            kept.append(node)
    graph.replace_nodes(kept)
    return graph


def _stub(name: str, array: AnyArray) -> onnx.TensorProto:
    """Return an initializer whose data a session is given as an array."""
    tensor = onnx.TensorProto(
        name=name,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        dims=array.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    for key, value in (("location", "given"), ("offset", "0"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor
