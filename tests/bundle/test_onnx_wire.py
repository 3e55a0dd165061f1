# SPDX-License-Identifier: Apache-2.0
import json
import random
import time
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from segship.bundle.onnx_file import DTYPE_BITS, ONNX_DTYPES, GraphLimits, OnnxTensor, read_graph
from segship.errors import BundleError, InputError
from segship.spec import TensorSpec
from tests.small_bundle import decoder_model, encoder_model, make_model, raw_tensor, save_models

VECTOR = TensorSpec("x", "float32", ("n", 4))


def read(model):
    return read_graph(model.SerializeToString())


def model_with(*tensors, **attributes):
    """One node with the given attributes, and initializers made by hand."""
    model = make_model(
        [helper.make_node("Identity", ["x"], ["y"], **attributes)], [VECTOR], [TensorSpec("y", "float32", ("n", 4))]
    )
    model.graph.initializer.extend(tensors)
    return model


@pytest.mark.parametrize("model", [encoder_model(), decoder_model()], ids=["encoder", "decoder"])
def test_reader_agrees_with_the_onnx_package(model):
    graph = read(model)
    assert graph.ir_version == model.ir_version
    assert dict(graph.opset_imports) == {entry.domain: entry.version for entry in model.opset_import}
    for found, values in ((graph.inputs, model.graph.input), (graph.outputs, model.graph.output)):
        assert [tensor.name for tensor in found] == [value.name for value in values]
        for tensor, value in zip(found, values, strict=True):
            dims = value.type.tensor_type.shape.dim
            assert list(tensor.shape) == [dim.dim_param or dim.dim_value for dim in dims]
            assert tensor.dtype == "float32"
    assert sum(graph.operators.values()) == len(model.graph.node)
    assert {op_type for _, op_type in graph.operators} == {node.op_type for node in model.graph.node}
    for tensor, proto in zip(graph.initializers, model.graph.initializer, strict=True):
        array = numpy_helper.to_array(proto)
        assert (tensor.name, tensor.dtype, tensor.shape) == (proto.name, str(array.dtype), array.shape)
        assert (tensor.stored_bytes, tensor.location) == (array.nbytes, 0)
    assert graph.oddities == ()


def test_path_and_bytes_give_the_same(tmp_path):
    path = tmp_path / "graph.onnx"
    onnx.save(encoder_model(), path)
    assert read_graph(path) == read_graph(str(path)) == read_graph(path.read_bytes())


def test_external_data_is_listed_as_it_stands(tmp_path):
    graph = read_graph(save_models(tmp_path, external=True)["image_encoder"])
    (weight,) = graph.initializers
    assert (weight.location, weight.stored_bytes) == (1, 0)
    assert dict(weight.external_entries) == {"location": "image_encoder.onnx.data", "offset": "0", "length": "12288"}
    assert graph.external_locations == ("image_encoder.onnx.data",)


@pytest.mark.parametrize("code", sorted(ONNX_DTYPES))
def test_table_of_dtypes_is_that_of_onnx(code):
    name, bits = ONNX_DTYPES[code]
    dtype = helper.tensor_dtype_to_np_dtype(code)
    assert dtype.name == name
    assert bits == (4 if name in ("int4", "uint4") else 8 * dtype.itemsize)


@pytest.mark.parametrize(
    ("code", "field", "values"),
    [
        (TensorProto.FLOAT, "float_data", [1.5, -2.0, 3.0]),
        (TensorProto.DOUBLE, "double_data", [1.5, -2.0, 3.0]),
        (TensorProto.INT64, "int64_data", [1, -1, 2**40]),
        (TensorProto.UINT64, "uint64_data", [1, 2**63, 5]),
        (TensorProto.INT32, "int32_data", [1, -1, 300]),
        (TensorProto.INT8, "int32_data", [1, -1, 100]),
        (TensorProto.FLOAT16, "int32_data", [15360, 0, 1]),
    ],
)
def test_typed_data_count_as_they_would_in_memory(code, field, values):
    tensor = TensorProto(name="w", data_type=code, dims=[3])
    getattr(tensor, field).extend(values)
    (found,) = read(model_with(tensor)).initializers
    assert found.stored_bytes == 3 * DTYPE_BITS[found.dtype] // 8


def test_two_small_integers_share_a_number():
    tensor = helper.make_tensor("w", TensorProto.INT4, [4], [1, 2, 3, -4])
    (found,) = read(model_with(tensor)).initializers
    assert (found.dtype, found.stored_bytes) == ("int4", 2)


def test_constants_in_nodes_are_listed():
    value = numpy_helper.from_array(np.ones((2, 3), np.float32), "value")
    model = model_with()
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))
    assert read(model).constants == (OnnxTensor("value", "float32", (2, 3), 24, 0, (), (1.0,) * 6),)


def test_initializers_are_no_inputs():
    model = model_with(raw_tensor("w", raw_data=b"1234"))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    assert [tensor.name for tensor in read(model).inputs] == ["x"]


def test_shapes_that_are_not_known_are_marked():
    model = model_with()
    model.graph.input.append(helper.make_tensor_value_info("ranked", TensorProto.INT64, [None, 2]))
    model.graph.input.append(helper.make_tensor_value_info("free", TensorProto.INT64, None))
    model.graph.input.append(helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, [1]))
    _, ranked, free, sequence = read(model).inputs
    assert ranked == TensorSpec("ranked", "int64", ("?", 2))
    assert free == TensorSpec("free", "int64", ("...",))
    assert sequence.dtype == "not_a_tensor"


def subgraph():
    return helper.make_graph([], "body", [], [])


def test_oddities_are_named():
    model = model_with(body=subgraph())
    model.graph.node[0].attribute.append(helper.make_attribute("tp", helper.make_tensor_type_proto(1, [1])))
    model.graph.sparse_initializer.add()
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"text"]))
    model.training_info.add()
    model.functions.append(helper.make_function("local", "f", ["a"], ["b"], [], [helper.make_opsetid("", 17)]))
    assert sorted(read(model).oddities) == [
        "local functions",
        "sparse initializer",
        "string tensor",
        "subgraph in Identity",
        "training info",
        "type in Identity",
    ]


def test_subgraphs_are_not_entered_however_deep():
    graph = subgraph()
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "body", [], [])
    found = read(helper.make_model(graph))
    assert sum(found.operators.values()) == 1
    assert found.oddities == ("subgraph in If",)


def length_prefixed(number, payload):
    size, data = len(payload), bytearray([number << 3 | 2])
    while size >= 0x80:
        data.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(data) + bytes([size]) + payload


def nested(*numbers, payload):
    for number in reversed(numbers):
        payload = length_prefixed(number, payload)
    return payload


def test_bottomless_nesting_costs_nothing():
    # Node in graph in attribute in node, 1,000 times, which a recursive reader would not survive.
    layers = b""
    for _ in range(1000):
        layers = nested(1, 5, 6, payload=layers)
    graph = read_graph(length_prefixed(7, layers))
    assert graph.oddities == ("subgraph in ",)
    with pytest.raises(BundleError, match="wire type 3"):
        read_graph(b"\x3b" * 100_000)


def test_counts_are_limited():
    model = model_with(*(raw_tensor(f"w{index}", raw_data=b"1234") for index in range(3)))
    data = model.SerializeToString()
    assert len(read_graph(data, GraphLimits(initializers=3, nodes=1)).initializers) == 3
    for limits, words in [
        (GraphLimits(initializers=2), "more than 2 initializers"),
        (GraphLimits(nodes=0), "more than 0 nodes"),
        (GraphLimits(bytes=len(data) - 1), "more than .* bytes"),
        (GraphLimits(fields=10), "too many fields"),
    ]:
        with pytest.raises(BundleError, match=words) as caught:
            read_graph(data, limits)
        assert caught.value.code == "onnx_too_large"


def test_constants_are_limited():
    model = model_with(a=numpy_helper.from_array(np.ones(1)), b=numpy_helper.from_array(np.ones(1)))
    with pytest.raises(BundleError, match="more than 1 constants"):
        read_graph(model.SerializeToString(), GraphLimits(constants=1))


def test_default_limits_are_the_promised_ones():
    assert (GraphLimits().nodes, GraphLimits().initializers) == (20_000, 5_000)
    node = length_prefixed(1, b"\x22\x04Relu")
    assert sum(read_graph(length_prefixed(7, node * 20_000)).operators.values()) == 20_000
    with pytest.raises(BundleError, match="more than 20000 nodes"):
        read_graph(length_prefixed(7, node * 20_001))


def test_large_file_is_refused_by_its_size_alone(tmp_path):
    with open(tmp_path / "huge.onnx", "wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(BundleError, match="more than 2147483647 bytes"):
        read_graph(tmp_path / "huge.onnx")


def test_weights_are_skipped_and_not_copied(tmp_path):
    tensor = raw_tensor("w", dims=(16, 1 << 20), raw_data=bytes(1 << 26))
    onnx.save(model_with(tensor), tmp_path / "large.onnx")
    tracemalloc.start()
    started = time.perf_counter()
    graph = read_graph(tmp_path / "large.onnx")
    elapsed, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert graph.initializers[0].stored_bytes == 1 << 26
    assert peak < 1 << 20
    assert elapsed < 0.5


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "there is no graph in it"),
        (b"\x08\x08", "there is no graph in it"),
        (b"\x3a\x00\x3a\x00", "field 7 twice"),
        (b"PK\x03\x04 an archive", "not a well-formed ONNX file"),
        (nested(7, 5, payload=b"\x08\x01" * 65), "more than 64 axes"),
        (nested(7, 5, 1, payload=b"\x01" * 65), "more than 64 numbers"),
        (nested(7, 11, 2, 1, 2, payload=b"\x0a\x00" * 65), "more than 64 axes"),
    ],
)  # fmt: skip
def test_what_is_no_graph_is_refused(data, words):
    with pytest.raises(BundleError, match=words) as caught:
        read_graph(data)
    assert caught.value.code == "onnx_malformed"


def test_files_that_are_no_files_are_refused(tmp_path):
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(BundleError, match="the file is empty"):
        read_graph(tmp_path / "empty.onnx")
    with pytest.raises(InputError, match="not a regular file"):
        read_graph(tmp_path)


def test_every_truncation_ends_in_an_answer():
    data = decoder_model().SerializeToString()
    for length in range(len(data)):
        try:
            graph = read_graph(data[:length])
        except BundleError:
            continue
        # Cut between two fields of the model, the rest is a file of its own, without its last field.
        assert graph.opset_imports == ()


def test_mutated_files_end_in_an_answer():
    data, rng = decoder_model().SerializeToString(), random.Random(0)
    for _ in range(3000):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            mutated[rng.randrange(len(data))] = rng.randrange(256)
        try:
            graph = read_graph(bytes(mutated))
        except BundleError:
            continue
        assert graph.file_bytes == len(data)


def test_summary_is_json(tmp_path):
    summary = json.loads(json.dumps(read_graph(save_models(tmp_path, external=True)["image_encoder"]).to_dict()))
    assert summary["operators"] == {"Conv": 1}
    assert summary["initializer_dtypes"] == {"float32": 1}
    assert summary["external_locations"] == ["image_encoder.onnx.data"]
    assert summary["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 32, 32]}]


def test_foreign_operators_are_shown_with_their_domain():
    model = model_with()
    model.graph.node[0].domain = "com.example"
    assert read(model).to_dict()["operators"] == {"com.example::Identity": 1}
