# SPDX-License-Identifier: Apache-2.0
import copy

import numpy as np
from onnx import TensorProto, numpy_helper

from segship.ship.graph.store import halve_exact_weights
from segship.spec import mask_decoder_spec
from tests.oracle import SMALL_VIT
from tests.ship.graph.running import random_inputs, run_proto


def rounded_to_half(model):
    """A copy whose large weights are values of float16."""
    rounded = copy.deepcopy(model)
    for tensor in rounded.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return rounded


def test_weights_of_half_precision_take_half_the_bytes_and_change_nothing(decoder_proto):
    source = rounded_to_half(decoder_proto)
    halved = copy.deepcopy(source)
    assert halve_exact_weights(halved) > 20
    assert len(halved.SerializeToString()) < 0.75 * len(source.SerializeToString())
    inputs = random_inputs(mask_decoder_spec(SMALL_VIT.geometry))
    expected, actual = run_proto(source, inputs), run_proto(halved, inputs)
    assert all(np.array_equal(expected[name], actual[name]) for name in expected)


def test_weights_that_half_precision_cannot_hold_stay(decoder_proto):
    model = copy.deepcopy(decoder_proto)
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.raw_data) > 4096}
    halve_exact_weights(model)
    assert weights <= {tensor.name for tensor in model.graph.initializer}
