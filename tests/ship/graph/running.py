# SPDX-License-Identifier: Apache-2.0
"""Run a graph that is still in memory, and make inputs for a contract."""

import numpy as np
import onnxruntime

from segship.ship.graph.trace import EXAMPLE_SIZES


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
