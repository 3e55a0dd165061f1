# SPDX-License-Identifier: Apache-2.0
"""The document of the routes is one by others' judgement, and what the server answers is what it says."""

import base64
import json
from dataclasses import fields

import jsonschema
import pytest

import segship
from segship.options import read_help
from segship.serve.app import PAGE_ROUTES, ROUTES, TENSOR_ROUTES, rows_of
from segship.serve.openapi import STATUSES
from segship.serve.options import ServeLimits, ServeOptions
from segship.serve.questions import MaskQuestion
from tests.serve.test_labelling import point, question
from tests.serve.test_tensors import message

PHOTOGRAPH = segship.demo_photograph().read_bytes()
ROWS = [*ROUTES, *TENSOR_ROUTES, *PAGE_ROUTES]


@pytest.fixture(scope="module")
def server(serve):
    return serve("--tensors")


@pytest.fixture(scope="module")
def document(server):
    return server.get("/openapi.json").json


@pytest.fixture(scope="module")
def image(server):
    return server.post("/v1/images", PHOTOGRAPH).json["id"]


def test_others_find_it_valid(document):
    validator = pytest.importorskip("openapi_spec_validator")
    validator.OpenAPIV31SpecValidator(document).validate()
    broken = json.loads(json.dumps(document))
    broken["paths"]["/v1/images"]["post"]["responses"]["200"] = {"content": {}}
    with pytest.raises(Exception, match="description"):
        validator.OpenAPIV31SpecValidator(broken).validate()


def test_every_route_is_there_with_what_it_says_of_itself(document):
    found = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert found == {(row.method.lower(), row.path) for row in ROWS}
    assert all(one["summary"] for methods in document["paths"].values() for one in methods.values())


def test_every_limit_is_there(server, document):
    limits = document["x-limits"]
    assert limits == server.get("/v1/models").json["limits"] == server.get("/v2").json["limits"]
    assert {one.name for one in fields(ServeLimits)} <= limits.keys()
    points = document["components"]["schemas"]["MaskQuestion"]["properties"]["points"]["anyOf"][0]
    assert points["maxItems"] == limits["points_per_object"] == 64


def test_options_have_the_words_and_defaults_of_their_classes(document):
    found = document["components"]["schemas"]["MaskQuestion"]["properties"]
    for one in fields(MaskQuestion):
        assert found[one.name]["default"] == one.default
        assert found[one.name]["description"] == read_help(MaskQuestion)[one.name] != ""
    assert found["format"]["enum"] == ["rle", "png", "polygons", "logits"]
    everything = document["components"]["schemas"]["EverythingQuestion"]["properties"]
    assert everything["points_per_side"]["default"] == 32 and "memory_bytes" not in everything


def test_names_of_graphs_and_what_a_picture_is_good_for(document):
    (name,) = document["paths"]["/v2/models/{model}/infer"]["post"]["parameters"][:1]
    assert name["schema"] == {"enum": ["tiny.image_encoder", "tiny.mask_decoder"]}
    links = document["paths"]["/v1/images"]["post"]["responses"]["200"]["links"]
    there = {one["operationId"] for path in document["paths"].values() for one in path.values()}
    assert {link["operationId"] for link in links.values()} == set(links) <= there


def test_a_server_says_only_what_it_has(serve):
    paths = serve().get("/openapi.json").json["paths"]
    assert set(paths) == {row.path for row in ROUTES + PAGE_ROUTES}
    # The same table is the router's.
    assert rows_of(ServeOptions(page=False)) == ROUTES


def check(document, method, path, answer):
    """Hold an answer against what the document says of its route."""
    operation = document["paths"][path][method.lower()]
    response = operation["responses"][str(answer.status)]
    if "$ref" in response:
        response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
    kind = answer.fields["content-type"].partition(";")[0]
    content = response["content"]
    assert kind in content or "*/*" in content, (path, kind, list(content))
    schema = content.get(kind, {}).get("schema")
    if schema is None or kind not in ("application/json", "application/x-ndjson"):
        return
    whole = {**schema, "components": document["components"]}
    for line in answer.body.splitlines() if kind == "application/x-ndjson" else [answer.body]:
        jsonschema.Draft202012Validator(whole).validate(json.loads(line))


def requests(image):
    """One request for each route, and some that are refused: method, path of the table, path, body."""
    masks, one = "/v1/images/{id}/masks", f"/v1/images/{image}"
    wrong = {"points": [[9999, 1]]}
    sent = {"image": base64.b64encode(PHOTOGRAPH).decode(), "pos_points": [[365, 290]], "neg_points": []}
    infer = "/v2/models/{model}/infer"
    yield "GET", "/v1/models", "/v1/models", b""
    yield "POST", "/v1/images", "/v1/images", PHOTOGRAPH
    yield "POST", "/v1/images", "/v1/images", b"no picture"
    yield "POST", "/v1/images", "/v1/images?model=none", PHOTOGRAPH
    yield "GET", "/v1/images/{id}", one, b""
    yield "GET", "/v1/images/{id}", "/v1/images/none", b""
    yield "GET", "/v1/images/{id}/picture", f"{one}/picture", b""
    yield "GET", "/v1/images/{id}/picture", "/v1/images/none/picture", b""
    for form in ("rle", "png", "polygons", "logits"):
        yield "POST", masks, f"{one}/masks", {"points": [[365, 290]], "format": form, "multimask_output": True}
    yield "POST", masks, f"{one}/masks", wrong
    yield "POST", masks, f"{one}/masks", b"{"
    yield "POST", "/v1/images/{id}/everything", f"{one}/everything", {"points_per_side": 4}
    yield "POST", "/v1/images/{id}/everything", f"{one}/everything", {"points_per_side": 0}
    yield "POST", "/v1/segment", "/v1/segment?point=365,290&format=png", PHOTOGRAPH
    yield "POST", "/v1/semantic", "/v1/semantic", PHOTOGRAPH
    yield "POST", "/setup", "/setup", {}
    yield "POST", "/predict", "/predict", question(point(365, 290))
    yield "POST", "/predict", "/predict", {}
    yield "GET", "/health", "/health", b""
    yield "POST", "/cvat/interactor", "/cvat/interactor", sent
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/openapi.json", "/v2", "/"):
        yield "GET", path, path, b""
    yield "GET", "/page/{file}", "/page/sample.jpg", b""
    yield "GET", "/page/{file}", "/page/none", b""
    yield "GET", "/v2/models/{model}", "/v2/models/tiny.mask_decoder", b""
    yield "GET", "/v2/models/{model}", "/v2/models/none", b""
    yield "GET", "/v2/models/{model}/ready", "/v2/models/tiny.mask_decoder/ready", b""
    yield "POST", infer, "/v2/models/tiny.mask_decoder/infer", {"inputs": []}
    yield "DELETE", "/v1/images/{id}", one, b""


def test_answers_are_as_the_document_says(server, document, image):
    import numpy as np

    seen = set()
    for method, path, asked, body in requests(image):
        answer = server.ask(method, asked, body)
        check(document, method, path, answer)
        seen.add((method, path))
    assert seen == {(row.method, row.path) for row in ROWS}
    side = segship.load("tiny").image_size
    body, length = message({"image": np.zeros((1, 3, side, side), np.float32)})
    answer = server.post("/v2/models/tiny.image_encoder/infer", body, Inference_Header_Content_Length=length)
    assert answer.status == 200
    check(document, "POST", "/v2/models/{model}/infer", answer)


def test_every_status_is_explained(document):
    used = {status for methods in document["paths"].values() for one in methods.values() for status in one["responses"]}
    assert used - {"200"} == {str(status) for status in STATUSES}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")
def test_no_route_answers_without_a_key_but_those_that_say_so(closed, row):
    path = row.path.replace("{id}", "a" * 32).replace("{model}", "tiny.mask_decoder").replace("{file}", "sample.jpg")
    given = {
        "none": {},
        "unknown": {"X_API_Key": "x"},
        "bearer": {"Authorization": "Bearer x"},
        "anna": {"X_API_Key": "secret"},
        "probe": {"Authorization": "Bearer other"},
    }
    statuses = {key: closed.ask(row.method, path, **named).status for key, named in given.items()}
    if row.scope is None:
        assert set(statuses.values()) == {200}
        return
    assert statuses["none"] == statuses["unknown"] == statuses["bearer"] == 401
    allowed, other = ("anna", "probe") if row.scope == "predict" else ("probe", "anna")
    assert statuses[other] == 403 and statuses[allowed] not in (401, 403)
    said = closed.get("/openapi.json").json["paths"][row.path][row.method.lower()]
    assert "security" not in said and "401" in said["responses"]
