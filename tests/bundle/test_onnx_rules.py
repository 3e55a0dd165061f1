# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from segship.bundle.onnx_file import SIZE_INPUTS, read_graph
from segship.bundle.onnx_rules import MAX_ELEMENTS, OPERATORS, check_graph
from segship.errors import BundleError
from segship.spec import TensorSpec
from tests.small_bundle import decoder_model, encoder_model, make_model, raw_tensor

SIDECAR = "image_encoder.onnx.data"
VECTOR = TensorSpec("x", "float32", ("n", 4))


def model_with(*tensors, op_type="Identity", domain="", **attributes):
    node = helper.make_node(op_type, ["x"], ["y"], domain=domain, **attributes)
    model = make_model([node], [VECTOR], [TensorSpec("y", "float32", ("n", 4))])
    model.graph.initializer.extend(tensors)
    return model


def check(model, *, kind="mask_decoder", sidecar=None, sidecar_bytes=0):
    graph = read_graph(model.SerializeToString())
    check_graph(graph, kind=kind, file="graph.onnx", sidecar=sidecar, sidecar_bytes=sidecar_bytes)


def refused(model, code, words, **settings):
    with pytest.raises(BundleError, match=words) as caught:
        check(model, **settings)
    assert caught.value.code == code
    assert "graph.onnx" in str(caught.value)


def external(name="w", dims=(4,), **entries):
    return raw_tensor(name, dims=dims, data_location=1, external_data=list(entries.items()))


def test_ordinary_graphs_pass():
    check(encoder_model())
    check(decoder_model())


@pytest.mark.parametrize("domain", ["com.microsoft", "ai.onnx.ml", "ai.pyop", "AI.ONNX", " "])
def test_foreign_operators_are_refused(domain):
    refused(
        model_with(op_type="PyOp", domain=domain),
        "onnx_operator",
        f"uses {domain}::PyOp; only operators of ONNX itself",
    )


def test_imported_foreign_operator_set_is_refused():
    model = model_with()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    refused(model, "onnx_operator", "imports the operator set 'com.microsoft'")


def test_explicit_own_domain_passes():
    check(model_with(domain="ai.onnx"))


@pytest.mark.parametrize("op_type", ["If", "Loop", "Scan", "SequenceMap"])
def test_control_flow_is_refused(op_type):
    refused(model_with(op_type=op_type), "onnx_operator", f"control flow .{op_type}.")


@pytest.mark.parametrize("op_type", ["RandomNormal", "RandomUniformLike", "Optional", "StringConcat", "ImageDecoder"])
@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_operators_that_no_graph_of_a_kind_needs_are_refused(kind, op_type):
    refused(model_with(op_type=op_type), "onnx_operator", f"uses {op_type}, which no {kind} needs", kind=kind)


def grown(op_type, sizes, *, as_node=False, typed=False):
    """A graph in which an operator takes its size from a constant."""
    inputs = {"ConstantOfShape": ["n"], "Range": ["n", "n", "n"], "Resize": ["x", "", "", "n"]}.get(op_type, ["x", "n"])
    array = np.array(sizes, np.int64)
    tensor = numpy_helper.from_array(array, "n")
    if typed:
        tensor = helper.make_tensor("n", TensorProto.INT64, array.shape, array.ravel().tolist())
    nodes = [helper.make_node(op_type, inputs, ["y"])]
    if as_node:
        nodes.insert(0, helper.make_node("Constant", [], ["n"], value=tensor))
    model = make_model(nodes, [VECTOR], [TensorSpec("y", "float32", ("n", 4))])
    model.graph.initializer.extend([] if as_node else [tensor])
    return model


@pytest.mark.parametrize("op_type", sorted(SIZE_INPUTS))
@pytest.mark.parametrize("as_node", [False, True])
@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("sizes", [[3_000_000_000], [60_000, 60_000], [2**62, 2**62], [-(2**63)]])
def test_sizes_are_bounded_before_a_runtime_sees_them(op_type, as_node, typed, sizes):
    sizes = sizes[0] if op_type == "Range" else sizes
    if op_type == "Range" and sizes == 60_000:
        return
    model = grown(op_type, sizes, as_node=as_node, typed=typed)
    kinds = [kind for kind, operators in OPERATORS.items() if {op_type, "Constant"} <= operators]
    graph = read_graph(model.SerializeToString())
    assert graph.sizes and graph.sizes[0][0] == op_type and graph.sizes[0][1] > MAX_ELEMENTS
    for kind in kinds:
        refused(model, "onnx_too_large", f"elements with {op_type}; at most", kind=kind)


def test_ordinary_sizes_pass():
    for kind, operators in OPERATORS.items():
        for op_type in operators & SIZE_INPUTS.keys() - {"Range"}:
            check(grown(op_type, [1, 171, 1024, 2048]), kind=kind)


def test_subgraphs_and_functions_are_refused():
    body = helper.make_graph([], "body", [], [])
    refused(model_with(body=body), "onnx_content", "subgraph in Identity")
    model = model_with()
    # A function that calls itself.
    call = helper.make_node("f", ["a"], ["b"], domain="")
    model.functions.append(helper.make_function("", "f", ["a"], ["b"], [call], [helper.make_opsetid("", 17)]))
    refused(model, "onnx_content", "local functions")


def test_unknown_protobuf_fields_are_refused():
    data = model_with().SerializeToString() + b"\xf8\x07\x01"
    with pytest.raises(BundleError, match="unknown field 127 in ModelProto"):
        check_graph(read_graph(data), kind="mask_decoder", file="graph.onnx", sidecar=None)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (raw_tensor("w", dims=(1,) * 9, raw_data=b"1234"), "at most 8 axes"),
        (raw_tensor("w", dims=(-1,), raw_data=b"1234"), "none negative"),
        (raw_tensor("w", dtype=99, raw_data=b"1234"), "unknown_99"),
        (raw_tensor("w", dtype=TensorProto.COMPLEX64, raw_data=bytes(8)), "known dtypes"),
        (raw_tensor("w", dims=(2,), raw_data=b"1234"), "its data take 4 bytes, and its shape needs 8"),
        (raw_tensor("w", dims=(1,), raw_data=b"12345678"), "its data take 8 bytes, and its shape needs 4"),
        # A tiny file that asks for exabytes, and one whose size overflows 64 bits to 4 bytes.
        (raw_tensor("w", dims=(1 << 60,), raw_data=b"1234"), "its shape needs 4611686018427387904"),
        (raw_tensor("w", dims=(1 << 31, 1 << 31, 4, 1), raw_data=b""), "its shape needs 73786976294838206464"),
    ],
)  # fmt: skip
def test_tensors_are_what_they_say(tensor, words):
    refused(model_with(tensor), "onnx_tensor", words)
    if len(tensor.dims) < 9:
        refused(model_with(value=tensor), "onnx_tensor", words)


def test_data_given_twice_are_counted_twice():
    tensor = raw_tensor("w", raw_data=b"1234")
    tensor.float_data.append(1.0)
    refused(model_with(tensor), "onnx_tensor", "its data take 8 bytes")


def test_empty_tensor_passes():
    check(model_with(raw_tensor("w", dims=(0,), raw_data=b"")))


LOCATIONS = [
    "",
    "../image_encoder.onnx.data",
    "/etc/hostname",
    "./image_encoder.onnx.data",
    "image_encoder.onnx",
    "mask_decoder.onnx.data",
    "sub/image_encoder.onnx.data",
    "IMAGE_ENCODER.ONNX.DATA",
    "image_encoder.onnx.data\0",
    "image_encoder.onnx.data ",
    "*/_ORT_MEM_ADDR_/*",
    "file:image_encoder.onnx.data",
    "..\\image_encoder.onnx.data",
    "image_encoder.onnx.data/",
    "manifest.json",
    "/dev/zero",
    "\\\\host\\share",
    "~/weights",
    "image_encoder.onnx.data:stream",
]


@pytest.mark.parametrize("location", LOCATIONS)
def test_only_one_location_is_accepted(location):
    tensor = external(location=location, offset="0", length="16")
    words = "only 'image_encoder.onnx.data' is accepted"
    refused(model_with(tensor), "external_data_location", "no external data is declared")
    refused(model_with(tensor), "external_data_location", words, sidecar=SIDECAR, sidecar_bytes=64)


def test_data_inside_the_sidecar_pass():
    for entries in (
        {"offset": "0", "length": "16"},
        {"offset": "48", "length": "16"},
        {},
        {"offset": "48", "checksum": "x"},
    ):
        check(model_with(external(location=SIDECAR, **entries)), sidecar=SIDECAR, sidecar_bytes=64)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "49", "length": "16"},
        {"offset": "0", "length": "15"},
        {"offset": "0", "length": "17"},
        {"offset": "0", "length": "1125899906842624"},
        {"offset": "9223372036854775807", "length": "16"},
        {"offset": "64"},
        {"length": "0"},
    ],
)
def test_data_outside_the_sidecar_are_refused(entries):
    tensor = external(location=SIDECAR, **entries)
    refused(model_with(tensor), "external_data_range", "needs 16 bytes and names", sidecar=SIDECAR, sidecar_bytes=64)


def test_external_petabytes_are_refused():
    tensor = external(dims=(1 << 48,), location=SIDECAR, offset="0", length=str(1 << 50))
    refused(model_with(tensor), "external_data_range", "which has 64", sidecar=SIDECAR, sidecar_bytes=64)


@pytest.mark.parametrize("number", ["-1", "+1", "1.0", "0x10", " 1", "1_0", "", "\u0661", "9" * 20])
@pytest.mark.parametrize("key", ["offset", "length"])
def test_numbers_of_external_data_are_plain(key, number):
    tensor = external(location=SIDECAR, **{key: number})
    refused(model_with(tensor), "external_data_entry", "needs a plain number", sidecar=SIDECAR, sidecar_bytes=64)


def test_keys_of_external_data_are_known_and_unique():
    for tensor in (
        external(location=SIDECAR, prepacked_0="x"),
        external(location=SIDECAR, basepath="/"),
        raw_tensor(
            "w", dims=(4,), data_location=1, external_data=[("location", SIDECAR), ("location", "/etc/hostname")]
        ),
    ):
        refused(model_with(tensor), "external_data_entry", "accepted, once each", sidecar=SIDECAR, sidecar_bytes=64)


def test_contradicting_locations_are_refused():
    inside = raw_tensor("w", raw_data=b"1234", external_data=[("location", SIDECAR)])
    both = raw_tensor("w", raw_data=b"1234", data_location=1, external_data=[("location", SIDECAR)])
    for tensor in (inside, both):
        refused(model_with(tensor), "onnx_tensor", "is contradicted", sidecar=SIDECAR, sidecar_bytes=64)


def test_constants_stay_in_the_file():
    model = model_with(value=external(location=SIDECAR, offset="0", length="16"))
    words = "a constant of a node has its data outside"
    refused(model, "external_data_location", words, sidecar=SIDECAR, sidecar_bytes=64)


def test_names_of_megabytes_are_cut_in_messages():
    with pytest.raises(BundleError) as caught:
        check(model_with(op_type="O" * 1_000_000, domain="d" * 1_000_000))
    assert len(str(caught.value)) < 500


def test_sidecar_that_nothing_uses_is_refused():
    refused(
        model_with(),
        "external_data_location",
        "does not use image_encoder.onnx.data",
        sidecar=SIDECAR,
        sidecar_bytes=64,
    )
