# SPDX-License-Identifier: Apache-2.0
"""Open Inference Protocol: a small table of what it asks for, the real client of Triton, and what is refused."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segship
from segship import InputError
from segship.promptable.prompts import PromptLimits
from segship.serve.tensors import read_request
from segship.spec import GraphSpec, TensorSpec, mask_decoder_spec

PHOTOGRAPH = segship.demo_photograph()


@pytest.fixture(scope="module")
def server(serve):
    return serve("--tensors")


@pytest.fixture(scope="module")
def predictor():
    with segship.load("tiny") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def frame(predictor):
    rng = np.random.default_rng(0)
    return rng.normal(size=(1, 3, predictor.image_size, predictor.image_size)).astype(np.float32)


@pytest.fixture(scope="module")
def decoder_inputs(predictor, frame):
    embeddings = predictor.session("image_encoder").run({"image": frame})["image_embeddings"]
    side = predictor.manifest.geometry.low_res_size
    return {
        "image_embeddings": embeddings,
        "point_coords": np.array([[[100, 80], [0, 0]], [[200, 300], [0, 0]]], np.float32),
        "point_labels": np.array([[1, -1], [1, -1]], np.float32),
        "mask_input": np.zeros((2, 1, side, side), np.float32),
        "has_mask_input": np.zeros(2, np.float32),
    }


def message(inputs, header=None, **more):
    """A request with all inputs as binary data: the body, and the length of its JSON."""
    rows = [
        {"name": name, "shape": list(array.shape), "datatype": "FP32", "parameters": {"binary_data_size": array.nbytes}}
        for name, array in inputs.items()
    ]
    text = json.dumps({"inputs": rows, **more} if header is None else header).encode()
    return text + b"".join(array.astype("<f4").tobytes() for array in inputs.values()), str(len(text))


def infer(server, graph, body, length=None, **more):
    fields = {} if length is None else {"Inference_Header_Content_Length": length}
    return server.post(f"/v2/models/{graph}/infer", body, **fields, **more)


def read_answer(answer):
    """The document of an answer, and its tensors."""
    length = int(answer.fields.get("inference-header-content-length", len(answer.body)))
    document, data, found = json.loads(answer.body[:length]), answer.body[length:], {}
    for row in document["outputs"]:
        if "data" in row:
            found[row["name"]] = np.array(row["data"], np.float32).reshape(row["shape"])
        else:
            size = row["parameters"]["binary_data_size"]
            found[row["name"]] = np.frombuffer(data[:size], "<f4").reshape(row["shape"])
            data = data[size:]
    assert not data
    return document, found


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name


# What the protocol asks for.


def test_the_server_says_what_it_is_and_every_limit(server):
    found = server.get("/v2").json
    assert found["name"] == "segship" and found["extensions"] == ["binary_tensor_data"]
    assert found["version"] == segship.__version__
    assert found["models"] == ["tiny.image_encoder", "tiny.mask_decoder"]
    assert found["limits"] == server.get("/v1/models").json["limits"]
    assert found["limits"]["tensor_bytes"] == 64 * 2**20


def test_health(server):
    assert server.get("/v2/health/live").json == {"live": True}
    assert server.get("/v2/health/ready").json["ready"] is True
    assert server.get("/v2/models/tiny.mask_decoder/ready").json == {"name": "tiny.mask_decoder", "ready": True}


def test_metadata_of_a_graph(server, predictor):
    found = server.get("/v2/models/tiny.mask_decoder").json
    assert found["name"] == "tiny.mask_decoder" and found["platform"] == "onnxruntime"
    spec = mask_decoder_spec(predictor.manifest.geometry)
    assert [row["name"] for row in found["inputs"]] == [tensor.name for tensor in spec.inputs]
    points = next(row for row in found["inputs"] if row["name"] == "point_coords")
    assert points == {"name": "point_coords", "datatype": "FP32", "shape": [-1, -1, 2]}
    side = predictor.manifest.geometry.low_res_size
    assert found["outputs"][1] == {"name": "low_res_masks", "datatype": "FP32", "shape": [-1, 4, side, side]}


@pytest.mark.parametrize("path", ["", "/ready", "/infer"])
@pytest.mark.parametrize(
    "name", ["tiny", "none.mask_decoder", "tiny.semantic", "tiny.shared_decoder", "%2e%2e", "a%00"]
)
def test_graphs_that_are_not_there(server, name, path):
    answer = server.ask("POST" if path == "/infer" else "GET", f"/v2/models/{name}{path}")
    assert answer.status == 404 and answer.json["code"] == "unknown_model"
    assert isinstance(answer.json["error"], str), "the protocol wants text"


def test_binary_tensors_there_and_back(server, predictor, decoder_inputs):
    body, length = message(decoder_inputs, parameters={"binary_data_output": True}, id="42")
    answer = infer(server, "tiny.mask_decoder", body, length)
    document, found = read_answer(answer)
    assert answer.status == 200 and answer.fields["content-type"] == "application/octet-stream"
    assert document["id"] == "42" and document["model_name"] == "tiny.mask_decoder"
    same(found, predictor.session("mask_decoder").run(decoder_inputs))


def test_the_encoder_and_a_batch_of_pictures(server, predictor, frame):
    both = np.concatenate([frame, frame[..., ::-1]])
    body, length = message({"image": both}, outputs=[{"name": "image_embeddings", "parameters": {"binary_data": True}}])
    _, found = read_answer(infer(server, "tiny.image_encoder", body, length))
    expected = predictor.encode_frames(both)
    assert np.array_equal(found["image_embeddings"], expected)


def test_outputs_are_json_unless_asked_otherwise(server, predictor, decoder_inputs):
    wanted = [{"name": "iou_predictions"}]
    body, length = message(decoder_inputs, outputs=wanted)
    answer = infer(server, "tiny.mask_decoder", body, length)
    document, found = read_answer(answer)
    assert answer.fields["content-type"] == "application/json" and "id" not in document
    expected = predictor.session("mask_decoder").run(decoder_inputs)["iou_predictions"]
    assert np.allclose(found["iou_predictions"], expected, atol=1e-7) and list(found) == ["iou_predictions"]


def test_one_output_may_differ_from_the_others(server, decoder_inputs):
    wanted = [{"name": "low_res_masks"}, {"name": "iou_predictions", "parameters": {"binary_data": False}}]
    body, length = message(decoder_inputs, outputs=wanted, parameters={"binary_data_output": True})
    document, found = read_answer(infer(server, "tiny.mask_decoder", body, length))
    assert ["data" in row for row in document["outputs"]] == [False, True] and len(found) == 2


@pytest.mark.parametrize("nested", [False, True])
def test_small_tensors_as_json(server, predictor, decoder_inputs, nested):
    """All but the large ones, which are zeros, flat and short in JSON."""
    inputs = {name: np.round(array, 1) for name, array in decoder_inputs.items()}
    inputs["image_embeddings"] = np.zeros_like(inputs["image_embeddings"])
    rows = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": "FP32",
            "data": array.tolist() if nested else array.astype(int).ravel().tolist(),
        }
        for name, array in inputs.items()
    ]
    text = json.dumps({"inputs": rows}, separators=(",", ":"))
    answer = infer(server, "tiny.mask_decoder", text.replace("0.0", "0").encode())
    assert answer.status == 200, answer.body[:300]
    _, found = read_answer(answer)
    expected = predictor.session("mask_decoder").run(inputs)
    assert all(np.allclose(found[name], expected[name], atol=1e-5) for name in expected)


# The client of Triton, as people use it.


@pytest.fixture
def triton(server):
    http = pytest.importorskip("tritonclient.http")
    with http.InferenceServerClient(server.address.removeprefix("http://")) as client:
        yield http, client


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tritons_client_asks_about_everything(triton):
    _, client = triton
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny.image_encoder")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    assert client.get_model_metadata("tiny.image_encoder")["outputs"][0]["name"] == "image_embeddings"
    assert not client.is_model_ready("none")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_encodes_and_decodes(triton, predictor, frame, decoder_inputs, binary):
    http, client = triton

    def ask(graph, inputs, outputs):
        given = []
        for name, array in inputs.items():
            given.append(http.InferInput(name, array.shape, "FP32"))
            given[-1].set_data_from_numpy(array, binary_data=True)
        wanted = [http.InferRequestedOutput(name, binary_data=binary) for name in outputs]
        answer = client.infer(graph, given, outputs=wanted, request_id="7")
        assert answer.get_response()["id"] == "7"
        return {name: answer.as_numpy(name) for name in outputs}

    embeddings = ask("tiny.image_encoder", {"image": frame}, ["image_embeddings"])["image_embeddings"]
    assert np.array_equal(embeddings, decoder_inputs["image_embeddings"])
    found = ask("tiny.mask_decoder", decoder_inputs, ["iou_predictions", "low_res_masks"])
    expected = predictor.session("mask_decoder").run(decoder_inputs)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tritons_client_understands_refusals(triton, frame):
    http, client = triton
    wrong = http.InferInput("image", (1, 3, 8, 8), "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(http._utils.InferenceServerException, match="expected"):
        client.infer("tiny.image_encoder", [wrong])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tritons_client_segments_classes(serve, small_semantic_bundle):
    http = pytest.importorskip("tritonclient.http")
    server = serve("--tensors", "--bundle", "tiny", "--bundle", f"street={small_semantic_bundle.path}")
    with segship.load_semantic(small_semantic_bundle.path) as predictor:
        spec, run = predictor.session.spec, predictor.session.run
        shape = [2, 3, *spec.inputs[0].shape[2:]]
        frames = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        expected = run({"image": frames})["class_map"]
    with http.InferenceServerClient(server.address.removeprefix("http://")) as client:
        given = http.InferInput("image", shape, "FP32")
        given.set_data_from_numpy(frames)
        found = client.infer("street.semantic", [given]).as_numpy("class_map")
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


# What is refused, before anything runs: of a graph whose tensors are small.

SMALL = GraphSpec(
    "mask_decoder",
    (TensorSpec("point_coords", "float32", ("objects", "points", 2)), TensorSpec("kind", "uint8", (2,))),
    (TensorSpec("iou_predictions", "float32", ("objects", 4)),),
)
LIMITS = PromptLimits(objects=64, points_per_object=64, json_bytes=20_000)
COORDS = {"name": "point_coords", "shape": [1, 2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
KIND = {"name": "kind", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}
PLAIN = {**{key: value for key, value in KIND.items() if key != "parameters"}, "data": [3, 255]}


def read(document, data=b"", length=None, most=2**20):
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    length = str(len(text)) if length is None and data else length
    return read_request(text + data, length, SMALL, LIMITS, most)


def test_what_is_fine_is_read():
    found = read({"inputs": [COORDS, KIND], "id": "x"}, b"\x03\xff")
    assert found.arrays["point_coords"].tolist() == [[[1, 2], [3, 4]]] and found.arrays["kind"].tolist() == [3, 255]
    assert found.outputs == (("iou_predictions", False),) and found.id == "x"
    assert read({"inputs": [PLAIN, COORDS], "outputs": []}).arrays["kind"].dtype == np.uint8


def coords(**changes):
    return {"inputs": [{**COORDS, **changes}, PLAIN]}


def kind(**changes):
    return {"inputs": [COORDS, {**KIND, **changes}]}


REFUSED = {
    "no JSON": (b"{", "bad_json"),
    "no object": (b"[]", "bad_json"),
    "twice the same key": (b'{"inputs": [], "inputs": []}', "duplicate_key"),
    "deep": (b'{"inputs": ' + b"[" * 20 + b"]" * 20 + b"}", "json_too_deep"),
    "nothing": ({}, "bad_request"),
    "inputs that are an object": ({"inputs": {}}, "bad_request"),
    "inputs of numbers": ({"inputs": [1, 2]}, "bad_request"),
    "too many inputs": ({"inputs": [COORDS] * 3}, "bad_request"),
    "an unknown key": ({"inputs": [COORDS, PLAIN], "more": 1}, "unknown_key"),
    "an unknown key of an input": (coords(more=1), "unknown_key"),
    "an unknown parameter": ({**coords(), "parameters": {"sequence_id": 1}}, "unknown_key"),
    "shared memory": (coords(parameters={"shared_memory_region": "a"}), "unknown_key"),
    "parameters that are a list": ({**coords(), "parameters": []}, "bad_request"),
    "an id that is a number": ({**coords(), "id": 3}, "bad_request"),
    "an unknown input": (coords(name="image"), "bad_tensor"),
    "an input without a name": (coords(name=None), "bad_tensor"),
    "an input twice": ({"inputs": [COORDS, COORDS]}, "bad_tensor"),
    "an input that is missing": ({"inputs": [COORDS]}, "bad_tensor"),
    "another type": (coords(datatype="FP64"), "bad_tensor"),
    "text as a type": (coords(datatype="BYTES", data=["a"] * 4), "bad_tensor"),
    "no type": (coords(datatype=None), "bad_tensor"),
    "no shape": (coords(shape=None), "bad_tensor"),
    "another rank": (coords(shape=[2, 2]), "bad_tensor"),
    "a rank of 9": (coords(shape=[1] * 9, data=[1]), "bad_tensor"),
    "a fixed side that differs": (coords(shape=[1, 1, 4]), "bad_tensor"),
    "a negative side": (coords(shape=[-1, -2, 2]), "bad_tensor"),
    "a side of 0": (coords(shape=[0, 2, 2], data=[]), "bad_tensor"),
    "a side of 2^63": (coords(shape=[2**63, 2, 2]), "bad_tensor"),
    "a side of 2^64 + 1": (coords(shape=[2**64 + 1, 2, 2]), "bad_tensor"),
    "sides whose product wraps around to 4": (coords(shape=[2**31 - 1, 2**31 - 1, 2]), "bad_tensor"),
    "a side of 1.5": (coords(shape=[1.5, 2, 2]), "bad_tensor"),
    "a side of true": (coords(shape=[True, 2, 2]), "bad_tensor"),
    "a side of text": (coords(shape=["1", 2, 2]), "bad_tensor"),
    "a side of 1e400": (b'{"inputs": [{"name": "point_coords", "shape": [1e400, 2, 2]}]}', "bad_tensor"),
    "a number too few": (coords(data=[1, 2, 3]), "bad_tensor"),
    "a number too many": (coords(data=[1, 2, 3, 4, 5]), "bad_tensor"),
    "lists of another shape": (coords(data=[[[1, 2, 3, 4]]]), "bad_tensor"),
    "lists of different lengths": (coords(data=[[[1, 2], [3]]]), "bad_tensor"),
    "lists and numbers": (coords(data=[[[1, 2], 3]]), "bad_tensor"),
    "text as data": (coords(data="1234"), "bad_tensor"),
    "text in data": (coords(data=[1, 2, 3, "4"]), "bad_tensor"),
    "true in data": (coords(data=[1, 2, 3, True]), "bad_tensor"),
    "null in data": (coords(data=[1, 2, 3, None]), "bad_tensor"),
    "data and a size": (coords(parameters={"binary_data_size": 16}), "bad_tensor"),
    "neither": ({"inputs": [{**COORDS, "data": 1} | {"name": "kind"}]}, "bad_tensor"),
    "an unknown output": ({**coords(), "outputs": [{"name": "low"}]}, "bad_tensor"),
    "an output twice": ({**coords(), "outputs": [{"name": "iou_predictions"}] * 2}, "bad_request"),
    "outputs that are text": ({**coords(), "outputs": "iou_predictions"}, "bad_request"),
    "classification": (
        {**coords(), "outputs": [{"name": "iou_predictions", "parameters": {"classification": 3}}]},
        "unknown_key",
    ),
    "binary data that is no truth": ({**coords(), "parameters": {"binary_data_output": 1}}, "bad_request"),
    "65 objects": (coords(shape=[65, 1, 2], data=[1] * 130), "too_many_objects"),
    "67 points": (coords(shape=[1, 67, 2], data=[1] * 134), "too_many_points"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_json(name):
    document, code = REFUSED[name]
    with pytest.raises(InputError) as caught:
        read(document)
    assert caught.value.code == code, caught.value


BINARY = {
    "a byte too few": (kind(), b"\x01", None),
    "a byte too many": (kind(), b"\x01\x02\x03", None),
    "a size that is not the shape's": (kind(parameters={"binary_data_size": 3}), b"\x01\x02\x03", None),
    "a negative size": (kind(parameters={"binary_data_size": -2}), b"\x01\x02", None),
    "a size of 2^64 + 2": (kind(parameters={"binary_data_size": 2**64 + 2}), b"\x01\x02", None),
    "a size of text": (kind(parameters={"binary_data_size": "2"}), b"\x01\x02", None),
    "data that no tensor takes": (coords(), b"\x01", None),
    "a length beyond the body": (kind(), b"\x01\x02", "999999"),
    "a negative length": (kind(), b"\x01\x02", "-5"),
    "a length with a sign": (kind(), b"\x01\x02", "+5"),
    "a length of 30 digits": (kind(), b"\x01\x02", "9" * 30),
    "a length of other digits": (kind(), b"\x01\x02", "\u0665"),
    "a length that is none": (kind(), b"\x01\x02", ""),
    "no length": (kind(), b"", None),
}  # fmt: skip


@pytest.mark.parametrize("name", BINARY)
def test_refused_as_binary_data(name):
    document, data, length = BINARY[name]
    with pytest.raises(InputError) as caught:
        read(document, data, length)
    assert caught.value.code in ("bad_tensor", "bad_request"), caught.value


@pytest.mark.parametrize(("objects", "points"), [(64, 1), (1, 66)])
def test_as_many_as_the_limits_allow(objects, points):
    read(coords(shape=[objects, points, 2], data=[1] * (objects * points * 2)))


def test_json_is_bounded_and_so_is_the_answer():
    from segship.serve.errors import Refusal

    with pytest.raises(Refusal) as caught:
        read(json.dumps(coords()).encode().ljust(20_001))
    assert caught.value.limit == ("json_bytes", 20_000, 20_001)
    read(coords(), most=80)
    with pytest.raises(InputError) as refused:
        read(coords(), most=79)
    assert refused.value.code == "answer_too_large"
    read({**coords(), "parameters": {"binary_data_output": True}}, most=16)


KEYS = st.sampled_from(["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "binary_data_size"])
LISTS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300)
@given(LISTS, st.binary(max_size=8), st.none() | st.integers(-2, 50).map(str))
def test_whatever_comes_is_read_or_refused(document, data, length):
    for whole in ({"inputs": document}, {"inputs": [document, PLAIN]}, coords(shape=document), coords(data=document)):
        try:
            read(whole, data, length)
        except InputError:
            pass


@pytest.mark.parametrize(
    ("value", "code"), [(np.nan, "non_finite"), (np.inf, "non_finite"), (3e38, "nonfinite_output")]
)
def test_numbers_that_are_none(server, decoder_inputs, value, code):
    wrong = {**decoder_inputs, "image_embeddings": np.full_like(decoder_inputs["image_embeddings"], value)}
    answer = infer(server, "tiny.mask_decoder", *message(wrong))
    assert (answer.status, answer.json["code"], answer.json["kind"]) == (422, code, "InputError")


def test_refusals_are_the_clients_fault_and_the_next_is_answered(server, decoder_inputs):
    body, length = message(decoder_inputs, parameters={"binary_data_output": True})
    for spoiled in (body[:-1], body + b"\0", struct.pack("<Q", 2**63) + body):
        assert infer(server, "tiny.mask_decoder", spoiled, length).status == 422
    assert infer(server, "tiny.mask_decoder", body, length).status == 200


def test_it_is_off_unless_asked_for(serve):
    plain = serve()
    assert plain.get("/v2").status == 404 and plain.get("/v2/models/tiny.mask_decoder").status == 404
