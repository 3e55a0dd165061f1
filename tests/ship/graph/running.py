# SPDX-License-Identifier: Apache-2.0
"""Run a graph that is still in memory, and make inputs for a contract."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from segship.ship.graph.cut import cut_graph
from segship.ship.graph.fill import fill_graph
from segship.ship.graph.trace import EXAMPLE_SIZES, tensors_of, trace_graph


def traced_graph(module, spec, **options):
    """Return the graph of a module with its weights, as an export that stops after tracing has it."""
    return filled(cut_graph(trace_graph(module, spec, opset=18, **options), spec), module, spec)


def filled(cut, module, spec, *, change=lambda array: array, **options):
    """Return a cut graph with the weights of a module, changed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        tensors = {name: change(tensor.detach().numpy()) for name, tensor in tensors_of(module).items()}
        fill_graph(cut.template(), spec, tensors, path, **options)
        onnx.checker.check_model(path, full_check=True)
        return onnx.load(path)


def scale_weight(body, name, row=slice(None)):
    """Multiply some rows of a weight of a graph's body by 1.1, in place."""
    weight = next(value for value in body.graph.input if value.name == name)
    factors = np.ones([dim.dim_value for dim in weight.type.tensor_type.shape.dim], np.float32)
    factors[row] = 1.1
    for node in body.graph.node:
        for index, given in enumerate(node.input):
            if given == name:
                node.input[index] = "scaled"
    body.graph.initializer.append(numpy_helper.from_array(factors, "factors"))
    body.graph.node.insert(0, helper.make_node("Mul", [name, "factors"], ["scaled"]))


def run_proto(model, inputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def random_inputs(spec, seed=0, **sizes):
    """Return seeded inputs for a contract; labels are valid, coordinates lie in the frame."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for tensor in spec.inputs:
        shape = [size if isinstance(size, int) else sizes.get(size, EXAMPLE_SIZES.get(size)) for size in tensor.shape]
        values = rng.normal(0, 1, shape)
        if tensor.name == "point_coords":
            values = rng.uniform(0, 128, shape)
        elif tensor.name == "point_labels":
            values = rng.integers(-1, 4, shape)
        elif tensor.name == "has_mask_input":
            values = rng.integers(0, 2, shape)
        inputs[tensor.name] = values.astype(np.float32)
    return inputs


def relative_difference(expected, actual):
    return float(np.abs(expected - actual).max() / np.abs(expected).max())
