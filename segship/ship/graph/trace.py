# SPDX-License-Identifier: Apache-2.0
"""From a torch module to an ONNX graph with the names and sizes of its contract, and no weight in it.

What a graph of known sizes computes is known without its weights, so they are inputs here. Nothing that is done to the
graph afterwards can depend on their values; `segship.ship.graph.cut` parts what is made of them alone from the rest,
and `segship.ship.graph.fill` puts the weights of a checkpoint in.

GELU is written the way ONNX Runtime recognises it, so that it runs as one kernel instead of five. Below opset 20 the
exporter spells it x * (0.5 * (1 + erf(x / sqrt 2))). ONNX Runtime's fusion knows
(x * (1 + erf(x / sqrt 2))) * 0.5 and passes the other form by. Both are the same number, bit for bit: 0.5 is a power of
two, so multiplying by it rounds nothing (short of underflow, where the result is 0 to every purpose) and may be done
first or last. OpenVINO fuses both.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import onnx
import onnx_ir
import torch
from onnx import helper, numpy_helper
from onnxscript import optimizer
from torch import Tensor, nn
from torch.export import Dim

from segship.errors import ExportError
from segship.spec import GraphSpec, TensorSpec


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


LOWEST_TRACED_OPSET = 18
# torch treats sizes 0 and 1 as constants while it traces, so every dynamic axis gets a size of its own above that.
EXAMPLE_SIZES: Mapping[str, int] = {
    "batch": 2,
    "objects": 3,
    "points": 4,
    "num_points": 5,
    "rows": 5,
    "columns": 6,
    "height": 451,
    "width": 614,
}


def trace_graph(
    module: nn.Module, spec: GraphSpec, *, opset: int, largest_sizes: Mapping[str, int] | None = None
) -> onnx.ModelProto:
    """Trace a module into an ONNX model of opset 18 or more, whose inputs are those of ``spec`` and then its weights.

    The module takes the inputs of ``spec`` in order and returns its outputs in order; a named size becomes a dynamic
    axis, and ``largest_sizes`` are upper bounds of those that have one. Weights have the names of `tensors_of`.

    Raises
    ------
    ExportError
        When torch cannot trace the module at this opset.
    """
    program = trace_program(module, spec, opset=opset, largest_sizes=largest_sizes)
    model = _without_weights(program.model, tensors_of(module))
    strip_metadata(model)
    regroup_gelu(model)
    _set_output_shapes(model, spec)
    return model


def trace_program(
    module: nn.Module, spec: GraphSpec, *, opset: int, largest_sizes: Mapping[str, int] | None = None
) -> torch.onnx.ONNXProgram:
    """Trace a module as `trace_graph` does, and return torch's own program beside the graph as torch made it."""
    largest_sizes = largest_sizes or {}
    names = dict.fromkeys(size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str))
    dims = {name: Dim(name, max=largest_sizes.get(name)) for name in names}
    examples = tuple(_example_input(tensor, largest_sizes) for tensor in spec.inputs)
    shapes = tuple(
        {axis: dims[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)} for tensor in spec.inputs
    )
    try:
        with _quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                examples,
                dynamo=True,
                # Its own optimiser would fold weights that it can see; below it sees none.
                optimize=False,
                opset_version=max(opset, LOWEST_TRACED_OPSET),
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:
        # The exporter raises many kinds of error; whichever it was, no graph exists and its words say why.
        raise ExportError(f"torch could not trace the graph {spec.name!r} at opset {opset}: {error}") from error
    assert program is not None
    return program


def strip_metadata(model: onnx.ModelProto) -> None:
    """Remove stack traces and documentation, which name files of the machine that exported the graph."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.graph.doc_string = ""
    for entry in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del entry.metadata_props[:]
        entry.doc_string = ""
    for tensor in model.graph.initializer:
        tensor.doc_string = ""


def _example_input(tensor: TensorSpec, largest_sizes: Mapping[str, int]) -> Tensor:
    sizes = [
        size if isinstance(size, int) else EXAMPLE_SIZES.get(size, largest_sizes.get(size, 2) // 2 + 1)
        for size in tensor.shape
    ]
    return torch.zeros(sizes, dtype=getattr(torch, tensor.dtype))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name: what the weights of its graph are called."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def names_in(model: nn.Module, module: nn.Module) -> dict[str, str]:
    """Return what the state dict of a model calls the tensors of a module that was made around it."""
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    return {name: names[id(tensor)] for name, tensor in tensors_of(module).items() if id(tensor) in names}


def _without_weights(model: onnx_ir.Model, weights: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Make weights inputs, and fold what is left of constants and shapes."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if name in weights:
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    optimizer.optimize(model)
    proto: onnx.ModelProto = onnx_ir.to_proto(model)
    return proto


def _set_output_shapes(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Write the contract's sizes on the outputs, which shape inference may have left as expressions."""
    for value, tensor in zip(model.graph.output, spec.outputs, strict=True):
        dims = value.type.tensor_type.shape.dim
        del dims[:]
        for size in tensor.shape:
            if isinstance(size, int):
                dims.add().dim_value = size
            else:
                dims.add().dim_param = size


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's own reports; what matters is raised, and every graph is compared afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
