# SPDX-License-Identifier: Apache-2.0
"""Faults that were planted into a graph are found where they were planted."""

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segship.catalog import embedded_bundle
from segship.errors import BundleError, InputError
from segship.ship.locate import LocateOptions, Tensors, draw_depth, graph_tensors, locate, locate_in_bundle

FOLDER = embedded_bundle("tiny")
WEIGHTS = Path(__file__).parents[2] / "recipes/tiny/tiny.safetensors"
PLACE = Path("nowhere")


def plain(model):
    """The graph with its weights in float32, where they lie in float16 with a Cast behind them."""
    halves = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in halves]:
        array = numpy_helper.to_array(halves[node.input[0]]).astype(np.float32)
        model.graph.initializer.remove(halves[node.input[0]])
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        model.graph.node.remove(node)
    return model


@pytest.fixture(scope="module")
def reference():
    return plain(onnx.load(FOLDER / "mask_decoder.onnx"))


@pytest.fixture
def changed(reference):
    model = onnx.ModelProto()
    model.CopyFrom(reference)
    return model


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(3)
    return {
        "image_embeddings": rng.normal(size=(1, 128, 24, 24)).astype(np.float32),
        "point_coords": rng.uniform(0, 384, (2, 3, 2)).astype(np.float32),
        "point_labels": np.array([[1, 0, -1], [1, 1, 0]], np.float32),
        "mask_input": np.zeros((2, 1, 96, 96), np.float32),
        "has_mask_input": np.zeros(2, np.float32),
    }


def found_in(model, reference, inputs, **options):
    operators = [node.op_type for node in reference.graph.node for name in node.output if name]
    tensors = graph_tensors(reference, PLACE, inputs)
    precision = options.pop("precision", "fp32")
    return locate(model, PLACE, tensors, inputs, LocateOptions(**options), operators=operators, precision=precision)


def deep(model, op_type):
    """The node of a kind that stands in the middle of all of its kind."""
    nodes = [node for node in model.graph.node if node.op_type == op_type]
    return nodes[len(nodes) // 2]


def test_a_graph_beside_itself_leaves_nowhere(reference, inputs):
    located = found_in(reference, reference, inputs)
    assert located.first is None
    assert len(located.depth) > 250 and all(entry.error == 0 for entry in located.depth)


def scale_a_weight(model):
    weights = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    nodes = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    guilty = nodes[len(nodes) // 2]
    tensor = weights[guilty.input[1]]
    tensor.CopyFrom(numpy_helper.from_array(1.5 * numpy_helper.to_array(tensor), tensor.name))
    return guilty


def change_an_epsilon(model):
    guilty = deep(model, "LayerNormalization")
    (epsilon,) = (entry for entry in guilty.attribute if entry.name == "epsilon")
    epsilon.f = 0.3
    return guilty


@pytest.mark.parametrize("plant", [scale_a_weight, change_an_epsilon])
@pytest.mark.parametrize("renamed", [False, True])
def test_the_node_that_was_changed_is_named(reference, changed, inputs, plant, renamed):
    guilty = plant(changed)
    tensor = guilty.output[0]
    if renamed:
        for node in changed.graph.node:
            for names in (node.input, node.output):
                names[:] = [name and f"{name}.renamed" for name in names]
        for entry in (*changed.graph.initializer, *changed.graph.input, *changed.graph.output):
            entry.name += ".renamed"
        inputs_of_changed = {f"{name}.renamed": array for name, array in inputs.items()}
        del changed.graph.value_info[:]
        operators = [node.op_type for node in reference.graph.node for name in node.output if name]
        tensors = graph_tensors(reference, PLACE, inputs)
        located = locate(changed, PLACE, tensors, inputs_of_changed, operators=operators)
    else:
        located = found_in(changed, reference, inputs)
    first = located.first
    assert (first.tensor.removesuffix(".renamed"), first.reference, first.op_type) == (tensor, tensor, guilty.op_type)
    assert first.error > 1e-2 and first.before < 1e-5
    assert first.dtype == "float32" and first.expected != first.found
    later = located.depth[located.depth.index(first) :]
    assert max(entry.error for entry in later) > 1e-3


def test_an_overflow_of_float16_is_named(reference, changed, inputs):
    """Values past 65504 in both graphs, of which one holds them in float16 between two nodes."""
    large = onnx.ModelProto()
    large.CopyFrom(reference)
    for model in (large, changed):
        guilty = deep(model, "Softmax")
        place = list(model.graph.node).index(guilty)
        wide = [
            helper.make_node("Mul", [guilty.input[0], "1e6"], ["wide"]),
            helper.make_node("Mul", ["back", "1e-6"], ["same"]),
        ]
        between = helper.make_node("Identity", ["wide"], ["back"], name="passed on")
        if model is changed:
            wide.insert(1, helper.make_node("Cast", ["wide"], ["half"], to=TensorProto.FLOAT16))
            between = helper.make_node("Cast", ["half"], ["back"], to=TensorProto.FLOAT, name="out of float16")
        wide.insert(-1, between)
        guilty.input[0] = "same"
        for step, node in enumerate(wide):
            model.graph.node.insert(place + step, node)
        for name in ("1e6", "1e-6"):
            model.graph.initializer.append(numpy_helper.from_array(np.array(float(name), np.float32), name))
    first = found_in(changed, large, inputs, precision="fp16").first
    assert (first.tensor, first.node, first.op_type) == ("back", "out of float16", "Cast")
    assert first.error == math.inf and not np.isfinite(first.found).all()
    assert max(map(abs, first.expected)) > 65504


def test_rounding_of_a_precision_is_no_fault(reference, changed, inputs):
    for tensor in changed.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16).astype(np.float32), tensor.name))
    assert found_in(changed, reference, inputs, precision="fp16").first is None
    assert found_in(changed, reference, inputs).first is not None


def test_no_more_is_held_than_the_memory_allows(reference, changed, inputs):
    scale_a_weight(changed)
    whole, asked = graph_tensors(reference, PLACE, inputs), []

    def read(names):
        found = whole.read(names)
        asked.append((len(names), sum(array.nbytes for array in found.values())))
        return found

    most = 4 * 2**20
    located = locate(changed, PLACE, Tensors(whole.names, read), inputs, LocateOptions(memory_bytes=most))
    assert len(asked) > 3
    assert all(count == 1 or 2 * size <= most for count, size in asked)
    assert located.first == found_in(changed, reference, inputs).first


def test_a_graph_of_a_bundle_is_held_against_torch():
    located = next(locate_in_bundle(FOLDER, checkpoint=WEIGHTS))
    assert located.first is None and len(located.depth) > 0.6 * located.tensors


def test_a_graph_of_a_model_that_the_tests_trace_once_is_held_against_torch(small_checkpoint, small_export):
    bundle, _ = small_export
    located = next(locate_in_bundle(bundle.path, checkpoint=small_checkpoint))
    assert located.first is None and len(located.depth) > 0.6 * located.tensors


@pytest.mark.slow
def test_graphs_of_a_bundle_are_held_against_torch():
    depth = {located.graph: located for located in locate_in_bundle(FOLDER, checkpoint=WEIGHTS)}
    assert set(depth) == {"image_encoder", "image_side", "mask_decoder", "selective_decoder"}
    for located in depth.values():
        assert located.first is None
        assert len(located.depth) > 0.6 * located.tensors
    picture = ElementTree.fromstring(draw_depth(list(depth.values())))
    assert len(picture.findall("{*}polyline")) == 4


def test_a_file_is_the_reference_of_the_graph_with_its_inputs(reference, changed, tmp_path):
    guilty = change_an_epsilon(changed)
    onnx.save(changed, tmp_path / "other.onnx")
    (located,) = locate_in_bundle(FOLDER, against=tmp_path / "other.onnx")
    assert located.graph == "mask_decoder" and located.first.tensor == guilty.output[0]
    assert guilty.op_type in draw_depth([located])


@pytest.mark.parametrize(
    "given",
    [{}, {"against": FOLDER, "checkpoint": WEIGHTS}, {"precision": "int8", "against": FOLDER, "checkpoint": WEIGHTS}],
)
def test_one_reference_is_named(given):
    with pytest.raises(InputError, match="name one: precision, against or checkpoint"):
        next(locate_in_bundle(FOLDER, **given))


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(BundleError, match="has no graph in int8; it has fp32") as caught:
        next(locate_in_bundle(FOLDER, precision="int8"))
    assert caught.value.code == "precision_unavailable"
    for factor in (1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="accepted is a number above 1"):
            LocateOptions(factor=factor)
    # A graph with the same inputs and nothing of what is inside.
    spec = onnx.load(FOLDER / "image_side.onnx")
    node = helper.make_node("Shape", ["image_embeddings"], ["sizes"])
    graph = helper.make_graph([node], "g", list(spec.graph.input), [onnx.ValueInfoProto(name="sizes")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "other.onnx")
    with pytest.raises(InputError, match="no tensor of image_side is found") as caught:
        next(locate_in_bundle(FOLDER, against=tmp_path / "other.onnx"))
    assert caught.value.code == "no_tensors"


def unrelated(path, name, sizes):
    """Write a graph of one node that reads an input of a name."""
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
    graph = helper.make_graph([helper.make_node("Relu", [name], ["y"])], "g", [value], [onnx.ValueInfoProto(name="y")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("x", [1, 3], "has the inputs of no graph of"),
        ("image", [1, 3, 7, 7], "does not run on what the other is given"),
    ],
)
def test_a_reference_of_another_graph_is_refused(tmp_path, name, sizes, words):
    unrelated(tmp_path / "other.onnx", name, sizes)
    model = onnx.load(tmp_path / "other.onnx")
    # A tensor of the same name, so that it is asked for.
    inner = onnx.load(FOLDER / "image_encoder.onnx").graph.node[0].output[0]
    model.graph.node[0].output[0] = model.graph.output[0].name = inner
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(InputError, match=words) as caught:
        list(locate_in_bundle(FOLDER, against=tmp_path / "other.onnx"))
    assert caught.value.code == "no_tensors"


def test_a_reference_that_is_no_graph_or_of_another_checkpoint_is_refused(tmp_path, small_checkpoint):
    (tmp_path / "photo.onnx").write_bytes(b"no graph at all")
    with pytest.raises(BundleError) as caught:
        next(locate_in_bundle(FOLDER, against=tmp_path / "photo.onnx"))
    assert caught.value.code == "onnx_malformed"
    with pytest.raises(BundleError, match="give the checkpoint that it was made of") as caught:
        next(locate_in_bundle(FOLDER, checkpoint=small_checkpoint))
    assert caught.value.code == "other_checkpoint"
