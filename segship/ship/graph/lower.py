# SPDX-License-Identifier: Apache-2.0
"""Lower a graph from opset 18 to 14..17 for consumers that need it.

The exporter starts at 18 and the converters at hand stop at nodes that our graphs contain. Five things changed between
14 and 18 for the operators used here: reductions and Pad take their axes differently since 18, Split names its number
of outputs since 18, Resize can keep ratios and antialias since 18, LayerNormalization exists since 17 and Shape has
bounds since 15. Everything else is the same node in both opsets; an operator that is not on the list below is refused
by name instead of being passed on unchecked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from segship.errors import ExportError
from segship.ship.options import LOWEST_OPSET

HIGHEST_LOWERED_OPSET = 17

REDUCTIONS_WITH_AXES_INPUT_SINCE_18 = {"ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"}
UNCHANGED_SINCE_14 = {
    "Abs", "Add", "And", "ArgMax", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape",
    "Conv", "ConvTranspose", "Cos", "DequantizeLinear", "Div", "Einsum", "Equal", "Erf", "Exp", "Expand", "Flatten",
    "Floor", "Gather", "GatherElements", "GatherND", "Gemm", "Greater", "GreaterOrEqual", "Identity", "Less",
    "LessOrEqual", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "Or", "Pow", "QuantizeLinear",
    "Range", "Reciprocal", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Sqrt",
    "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


def lower_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Rewrite a graph of opset 18 for a lower one, in place.

    Raises
    ------
    ExportError
        When the opset is out of range, or an operator has no known form in it.
    """
    if not LOWEST_OPSET <= opset <= HIGHEST_LOWERED_OPSET:
        raise ExportError(f"opset {opset} cannot be written; accepted are {LOWEST_OPSET} and above")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [lowered for node in model.graph.node for lowered in _lower_node(node, opset, constants)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = min(model.ir_version, 8)
    return model


def _lower_node(node: onnx.NodeProto, opset: int, constants: dict[str, onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    rewrite = _rewrites(opset).get(node.op_type)
    if rewrite is not None:
        yield from rewrite(node, constants)
    elif node.op_type in UNCHANGED_SINCE_14 or (node.op_type == "LayerNormalization" and opset >= 17):
        yield node
    else:
        raise ExportError(
            f"operator {node.op_type} (node {node.name!r}) has no known form in opset {opset}; "
            "export at opset 18 or above"
        )


Rewrite = Callable[[onnx.NodeProto, dict[str, onnx.TensorProto]], Iterator[onnx.NodeProto]]


def _rewrites(opset: int) -> dict[str, Rewrite]:
    rewrites: dict[str, Rewrite] = dict.fromkeys(REDUCTIONS_WITH_AXES_INPUT_SINCE_18, _axes_to_attribute)
    rewrites["Pad"] = _pad_all_axes
    rewrites["Split"] = _split_without_count
    rewrites["Resize"] = _resize_plainly
    if opset < 17:
        rewrites["LayerNormalization"] = _expand_layer_norm
    if opset < 15:
        rewrites["Shape"] = _slice_shape
    return rewrites


def _axes_to_attribute(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    if len(node.input) == 2:
        axes = _constant(node, node.input[1], constants)
        del node.input[1]
        node.attribute.append(helper.make_attribute("axes", axes.tolist()))
    yield _without(node, "noop_with_empty_axes")


def _pad_all_axes(node: onnx.NodeProto, _: dict[str, onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    if len(node.input) > 3 and node.input[3]:
        raise ExportError(f"node {node.name!r} pads chosen axes, which needs opset 18; export at opset 18 or above")
    yield node


def _split_without_count(node: onnx.NodeProto, _: dict[str, onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    yield _without(node, "num_outputs")


def _resize_plainly(node: onnx.NodeProto, _: dict[str, onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    """Take off what Resize has since 18, where it says nothing else than what was understood before."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    policy = attributes.get("keep_aspect_ratio_policy", b"stretch")
    if attributes.get("antialias", 0) or policy != b"stretch" or "axes" in attributes:
        raise ExportError(f"node {node.name!r} resizes in a way that needs opset 18; export at opset 18 or above")
    yield _without(node, "antialias", "keep_aspect_ratio_policy")


def _slice_shape(node: onnx.NodeProto, _: dict[str, onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    """Write Shape with bounds, which exist since 15, as Shape and Slice."""
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    if not bounds:
        yield node
        return
    base = node.output[0]
    names = [f"{base}_start", f"{base}_end"]
    values = [bounds.get("start", 0), bounds.get("end", np.iinfo(np.int64).max)]
    for name, value in zip(names, values, strict=True):
        tensor = numpy_helper.from_array(np.array([value], np.int64), name)
        yield helper.make_node("Constant", [], [name], value=tensor)
    yield helper.make_node("Shape", list(node.input), [f"{base}_whole"])
    yield helper.make_node("Slice", [f"{base}_whole", *names], [base])


def _expand_layer_norm(node: onnx.NodeProto, _: dict[str, onnx.TensorProto]) -> Iterator[onnx.NodeProto]:
    """Write LayerNormalization over the last axis as (x - mean) / sqrt(variance + eps) * scale + bias."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("axis", -1) != -1:
        raise ExportError(f"node {node.name!r} normalises over axis {attributes['axis']}; only the last can be lowered")
    x, scale, *bias = node.input
    base = node.output[0]
    eps = numpy_helper.from_array(np.array(attributes.get("epsilon", 1e-5), np.float32), f"{base}_eps")
    yield helper.make_node("Constant", [], [f"{base}_eps"], value=eps)
    yield helper.make_node("ReduceMean", [x], [f"{base}_mean"], axes=[-1], keepdims=1)
    yield helper.make_node("Sub", [x, f"{base}_mean"], [f"{base}_centred"])
    yield helper.make_node("Mul", [f"{base}_centred", f"{base}_centred"], [f"{base}_squared"])
    yield helper.make_node("ReduceMean", [f"{base}_squared"], [f"{base}_variance"], axes=[-1], keepdims=1)
    yield helper.make_node("Add", [f"{base}_variance", f"{base}_eps"], [f"{base}_shifted"])
    yield helper.make_node("Sqrt", [f"{base}_shifted"], [f"{base}_deviation"])
    yield helper.make_node("Div", [f"{base}_centred", f"{base}_deviation"], [f"{base}_normalised"])
    scaled = f"{base}_scaled" if bias else base
    yield helper.make_node("Mul", [f"{base}_normalised", scale], [scaled])
    if bias:
        yield helper.make_node("Add", [scaled, bias[0]], [base])


def _without(node: onnx.NodeProto, *names: str) -> onnx.NodeProto:
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)
    return node


def _constant(node: onnx.NodeProto, name: str, constants: dict[str, onnx.TensorProto]) -> NDArray[Any]:
    if name not in constants:
        raise ExportError(f"node {node.name!r} computes its axes at run time, which needs opset 18 or above")
    return numpy_helper.to_array(constants[name])


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    if len(kept) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
