# SPDX-License-Identifier: Apache-2.0
"""Write GELU the way ONNX Runtime recognises it, so that it runs as one kernel instead of five.

Below opset 20 the exporter spells GELU x * (0.5 * (1 + erf(x / sqrt 2))). ONNX Runtime's fusion knows
(x * (1 + erf(x / sqrt 2))) * 0.5 and passes the other form by. Both are the same number, bit for bit: 0.5 is a power of
two, so multiplying by it rounds nothing (short of underflow, where the result is 0 to every purpose) and may be done
first or last. OpenVINO fuses both.
"""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper


def regroup_gelu(model: onnx.ModelProto) -> int:
    """Rewrite every GELU of a graph in place and return how many there were."""
    constants = _single_numbers(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, int] = {}
    for name in [name for node in model.graph.node for name in node.input] + [out.name for out in model.graph.output]:
        readers[name] = readers.get(name, 0) + 1
    regrouped = 0
    for outer in model.graph.node:
        for x, halved in _two_ways(outer) if outer.op_type == "Mul" else ():
            inner = makers.get(halved)
            if inner is None or inner.op_type != "Mul" or readers[halved] != 1:
                continue
            for half, shifted in _two_ways(inner):
                if constants.get(half) == 0.5 and _is_shifted_erf(shifted, x, makers, constants):
                    inner.CopyFrom(helper.make_node("Mul", [x, shifted], [halved], name=inner.name))
                    outer.CopyFrom(helper.make_node("Mul", [halved, half], list(outer.output), name=outer.name))
                    regrouped += 1
    return regrouped


def _two_ways(node: onnx.NodeProto) -> tuple[tuple[str, str], tuple[str, str]]:
    first, second = node.input
    return (first, second), (second, first)


def _is_shifted_erf(name: str, x: str, makers: dict[str, onnx.NodeProto], constants: dict[str, float]) -> bool:
    """Return whether ``name`` is 1 + erf(x / c) for a constant c."""
    shift = makers.get(name)
    if shift is None or shift.op_type != "Add":
        return False
    for one, error in _two_ways(shift):
        erf = makers.get(error)
        if constants.get(one) != 1.0 or erf is None or erf.op_type != "Erf":
            continue
        scaled = makers.get(erf.input[0])
        return scaled is not None and scaled.op_type in ("Div", "Mul") and scaled.input[0] == x
    return False


def _single_numbers(model: onnx.ModelProto) -> dict[str, float]:
    """Return the constants of one element, by name."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items() if len(tensor.dims) < 2}
    return {name: float(array.reshape(())) for name, array in arrays.items() if array.size == 1}
