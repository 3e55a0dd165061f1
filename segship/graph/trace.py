# SPDX-License-Identifier: Apache-2.0
"""From a torch module to an ONNX graph with the names, dtypes and dynamic axes of a `GraphSpec`.

Uses torch's current exporter (``torch.onnx.export(dynamo=True)``), whose graphs start at opset 18; lower ones are made
by `segship.graph.lower`.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim

from segship.errors import ExportError
from segship.graph.gelu import regroup_gelu
from segship.spec import GraphSpec, TensorSpec

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
    """Trace a module into an ONNX model.

    Parameters
    ----------
    module
        Takes the inputs of ``spec`` in order and returns its outputs in order.
    spec
        Names, dtypes and shapes; a named size becomes a dynamic axis.
    opset
        Opset of the result, 18 or more.
    largest_sizes
        Upper bounds of dynamic axes that have one.

    Raises
    ------
    ExportError
        When torch cannot trace the module at this opset.
    """
    largest_sizes = largest_sizes or {}
    dims = {name: Dim(name, max=largest_sizes.get(name)) for name in _dynamic_names(spec)}
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
    model = _to_proto(program)
    strip_metadata(model)
    regroup_gelu(model)
    _set_output_shapes(model, spec)
    return model


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


def _dynamic_names(spec: GraphSpec) -> list[str]:
    sizes = [size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)]
    return list(dict.fromkeys(sizes))


def _example_input(tensor: TensorSpec, largest_sizes: Mapping[str, int]) -> Tensor:
    sizes = [
        size if isinstance(size, int) else EXAMPLE_SIZES.get(size, largest_sizes.get(size, 2) // 2 + 1)
        for size in tensor.shape
    ]
    return torch.zeros(sizes, dtype=getattr(torch, tensor.dtype))


def _to_proto(program: torch.onnx.ONNXProgram) -> onnx.ModelProto:
    # Through a file, so that models beyond protobuf's 2 GiB take the same way as the others.
    with tempfile.TemporaryDirectory(prefix="segship-trace-") as folder:
        path = Path(folder) / "graph.onnx"
        program.save(str(path))
        return onnx.load(str(path))


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
