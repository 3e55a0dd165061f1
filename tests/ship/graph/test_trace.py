# SPDX-License-Identifier: Apache-2.0
import copy

import onnx
import pytest
import torch
from torch.export import Dim

from segship.errors import ExportError
from segship.ship.families.sam.model import ImageEncoderGraph, MaskDecoderGraph
from segship.ship.graph.trace import trace_graph
from segship.ship.verify import torch_sessions
from segship.spec import GraphSpec, TensorSpec, image_encoder_spec, mask_decoder_spec
from tests.oracle import SMALL_VIT
from tests.ship.graph.running import random_inputs, relative_difference, run_proto
from tests.traces import remembering


def interface(values):
    return [
        (value.name, tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim))
        for value in values
    ]


def assert_contract(model, spec):
    assert interface(model.graph.input) == [(tensor.name, tensor.shape) for tensor in spec.inputs]
    assert interface(model.graph.output) == [(tensor.name, tensor.shape) for tensor in spec.outputs]


def test_graphs_have_the_names_and_shapes_of_their_contracts(encoder_proto, decoder_proto):
    assert_contract(encoder_proto, image_encoder_spec(SMALL_VIT.geometry))
    assert_contract(decoder_proto, mask_decoder_spec(SMALL_VIT.geometry))


def test_decoders_compare_nothing(decoder_proto, cut_decoder_protos):
    """Engines of phones and of NPUs refuse comparisons of labels, and bools."""
    for model in (decoder_proto, cut_decoder_protos[False]):
        used = {node.op_type for node in model.graph.node}
        assert not used & {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Where"}
        casts = [node.attribute[0].i for node in model.graph.node if node.op_type == "Cast"]
        assert onnx.TensorProto.BOOL not in casts


@pytest.mark.parametrize("batch", [1, 3])
def test_encoder_graph_equals_the_module(sam, encoder_proto, batch):
    spec = image_encoder_spec(SMALL_VIT.geometry)
    inputs = random_inputs(spec, batch=batch)
    expected = torch_sessions({"encoder": (ImageEncoderGraph(sam), spec)})["encoder"].run(inputs)
    actual = run_proto(encoder_proto, inputs)
    assert relative_difference(expected["image_embeddings"], actual["image_embeddings"]) <= 1e-5


@pytest.mark.parametrize(("objects", "points"), [(1, 1), (1, 9), (5, 2), (17, 3)])
def test_decoder_graph_equals_the_module_at_any_count(sam, decoder_proto, objects, points):
    spec = mask_decoder_spec(SMALL_VIT.geometry)
    inputs = random_inputs(spec, objects=objects, points=points)
    expected = torch_sessions({"decoder": (MaskDecoderGraph(sam), spec)})["decoder"].run(inputs)
    actual = run_proto(decoder_proto, inputs)
    assert list(expected) == ["iou_predictions", "low_res_masks"]
    for name, value in expected.items():
        assert relative_difference(value, actual[name]) <= 1e-5


def test_no_file_name_of_this_machine_is_in_a_graph(decoder_proto):
    assert b".py" not in decoder_proto.SerializeToString()


def test_module_that_cannot_be_traced_is_an_export_error():
    class DataDependent(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    spec = GraphSpec("broken", (TensorSpec("x", "float32", (2,)),), (TensorSpec("y", "float32", (2,)),))
    with pytest.raises(ExportError, match="could not trace the graph 'broken' at opset 18"):
        trace_graph(DataDependent(), spec, opset=18)


def test_tests_share_a_trace_only_where_nothing_differs(tmp_path):
    traced = []

    class Program:
        def save(self, path):
            onnx.save(onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 18]> g () => () {}'), path)

    def export(module, examples, **options):
        traced.append(module)
        return Program()

    def trace(module, sizes=(1, 4), opset=18, most=5):
        remembering(export, tmp_path)(
            module, (torch.zeros(sizes),), opset_version=opset, dynamic_shapes=({0: Dim("batch", max=most)},)
        )
        return len(traced)

    torch.manual_seed(0)
    first = torch.nn.Linear(4, 2).eval()
    other = torch.nn.Linear(4, 2).eval()
    assert [trace(first), trace(copy.deepcopy(first))] == [1, 1]
    assert [trace(other), trace(first, sizes=(2, 4)), trace(first, opset=20), trace(first, most=6)] == [2, 3, 4, 5]
    first.variant = "another"
    assert trace(first) == 6
