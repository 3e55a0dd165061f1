# SPDX-License-Identifier: Apache-2.0
"""Fold constants and remove redundant nodes of a graph with onnxslim; its contract stays as it was."""

from __future__ import annotations

import onnx
from onnx import helper

from segship.errors import ExportError, way
from segship.ship.graph.trace import strip_metadata
from segship.ship.options import LARGEST_INLINE_BYTES

SMALLEST_DETACHED_BYTES = 1_000_000

_WITHOUT = way("simplify=False", "--no-simplify")


def simplify_graph(model: onnx.ModelProto, *, largest_whole_bytes: int = LARGEST_INLINE_BYTES) -> onnx.ModelProto:
    """Return a smaller graph with the same inputs and outputs; the one that is given may be changed on the way.

    Weights beyond ``largest_whole_bytes`` are set aside while onnxslim works, since it serialises the graph and
    protobuf stops at 2 GiB.

    Raises
    ------
    ExportError
        When onnxslim fails, or changes the names of inputs or outputs.
    """
    import onnxslim

    interface = _interface(model)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    detached = _detach_weights(model) if weights > largest_whole_bytes else []
    try:
        slimmed = onnxslim.slim(model)
    except Exception as error:
        # Third-party graph surgery fails in many ways; the graph as traced is still there for `--no-simplify`.
        raise ExportError(f"onnxslim could not simplify the graph: {error}; export without it: {_WITHOUT}") from error
    if isinstance(slimmed, onnx.ModelProto):
        _attach_weights(slimmed, detached)
    if not isinstance(slimmed, onnx.ModelProto) or _interface(slimmed) != interface:
        raise ExportError(f"onnxslim changed the inputs or outputs of the graph; export without it: {_WITHOUT}")
    strip_metadata(slimmed)
    return slimmed


def _interface(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output]


def _detach_weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Turn large weights into inputs of the same name, and return them."""
    large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= SMALLEST_DETACHED_BYTES]
    small = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) < SMALLEST_DETACHED_BYTES]
    detached = []
    for tensor in large:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        detached.append(onnx.TensorProto())
        detached[-1].CopyFrom(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(small)
    return detached


def _attach_weights(model: onnx.ModelProto, detached: list[onnx.TensorProto]) -> None:
    """Turn the inputs that `_detach_weights` made into weights again."""
    names = {tensor.name for tensor in detached}
    inputs = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(tensor for tensor in detached if tensor.name in used)
