# SPDX-License-Identifier: Apache-2.0
import copy

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from segship.bundle.onnx_rules import OPERATORS
from segship.errors import ExportError
from segship.ship.graph.lower import UNCHANGED_SINCE_14, _rewrites, lower_opset
from segship.ship.graph.simplify import simplify_graph
from segship.spec import image_encoder_spec, mask_decoder_spec
from tests.oracle import SMALL_VIT
from tests.ship.graph.running import random_inputs, relative_difference, run_proto

GRAPHS = {"encoder": image_encoder_spec, "decoder": mask_decoder_spec}


@pytest.mark.parametrize("opset", [14, 15, 16, 17])
@pytest.mark.parametrize("graph", GRAPHS)
def test_lowered_graph_is_valid_and_gives_the_same(encoder_proto, decoder_proto, graph, opset):
    source = simplify_graph(copy.deepcopy(encoder_proto if graph == "encoder" else decoder_proto))
    lowered = lower_opset(copy.deepcopy(source), opset)
    onnx.checker.check_model(lowered, full_check=True)
    assert lowered.opset_import[0].version == opset
    assert opset == 17 or "LayerNormalization" not in {node.op_type for node in lowered.graph.node}
    inputs = random_inputs(GRAPHS[graph](SMALL_VIT.geometry))
    expected, actual = run_proto(source, inputs), run_proto(lowered, inputs)
    for name, value in expected.items():
        assert relative_difference(value, actual[name]) <= 1e-5


def test_every_operator_of_a_bundle_has_a_form_in_opset_14():
    # Gelu is an operator since 20; below, it is written as five.
    known = UNCHANGED_SINCE_14 | _rewrites(14).keys() | {"Gelu"}
    # Graphs that others wrote go into a bundle as they are.
    ours = (operators for kind, operators in OPERATORS.items() if not kind.startswith("foreign "))
    assert frozenset().union(*ours) - known == set()


@pytest.mark.parametrize("opset", [13, 18])
def test_opset_out_of_range_is_refused(decoder_proto, opset):
    with pytest.raises(ExportError, match=f"opset {opset} cannot be written"):
        lower_opset(copy.deepcopy(decoder_proto), opset)


def graph_of(node):
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 2])
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph([node], "g", [value], [result]))


def test_operator_without_a_known_form_is_named():
    model = graph_of(helper.make_node("Mish", ["x"], ["y"], name="new"))
    with pytest.raises(ExportError, match="operator Mish \\(node 'new'\\) has no known form in opset 17"):
        lower_opset(model, 17)


def test_axes_computed_at_run_time_are_refused():
    model = graph_of(helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean"))
    with pytest.raises(ExportError, match="'mean' computes its axes at run time"):
        lower_opset(model, 17)


def test_padding_of_chosen_axes_is_refused():
    model = graph_of(helper.make_node("Pad", ["x", "pads", "", "axes"], ["y"], name="pad"))
    with pytest.raises(ExportError, match="'pad' pads chosen axes"):
        lower_opset(model, 17)


def test_norm_over_another_axis_is_refused():
    model = graph_of(helper.make_node("LayerNormalization", ["x", "scale"], ["y"], name="norm", axis=1))
    with pytest.raises(ExportError, match="'norm' normalises over axis 1"):
        lower_opset(model, 16)


def resizing(**attributes):
    attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", **attributes}
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **attributes)
    sizes = numpy_helper.from_array(np.array([1, 2, 7, 9], np.int64), "sizes")
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 7, 9])],
        [sizes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize("opset", [14, 17])
def test_resizing_without_antialiasing_stays_the_same(opset):
    given = resizing(antialias=0, keep_aspect_ratio_policy="stretch")
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32)
    expected = onnxruntime.InferenceSession(given.SerializeToString()).run(None, {"x": x})[0]
    lowered = lower_opset(given, opset)
    onnx.checker.check_model(lowered, full_check=True)
    assert np.array_equal(onnxruntime.InferenceSession(lowered.SerializeToString()).run(None, {"x": x})[0], expected)


@pytest.mark.parametrize("attributes", [{"antialias": 1}, {"keep_aspect_ratio_policy": "not_larger"}, {"axes": [2, 3]}])
def test_resizing_that_only_opset_18_knows_is_refused(attributes):
    with pytest.raises(ExportError, match="resizes in a way that needs opset 18"):
        lower_opset(resizing(**attributes), 14)
