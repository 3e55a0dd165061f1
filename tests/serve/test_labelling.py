# SPDX-License-Identifier: Apache-2.0
"""What Label Studio and CVAT send, and what they get; brushes against Label Studio's own converter if it is there."""

import base64
import io
import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import segship
from segship import ImageError, InputError
from segship.images.comparison import draw_scene
from segship.masks.rle import decode_rle
from segship.promptable.prompts import PromptLimits
from segship.serve import labelling
from segship.serve.errors import Refusal
from segship.serve.labelling import as_shown, brush_rle, read_cvat, read_label_studio, set_apart, upright

PHOTOGRAPH = segship.demo_photograph().read_bytes()
ADDRESS = "data:image/jpeg;base64," + base64.b64encode(PHOTOGRAPH).decode()
HEIGHT, WIDTH = 400, 600
LIMITS = PromptLimits(objects=64, points_per_object=64)
CONFIG = """<View>
  <!-- as in a project -->
  <Image name="img" value="$photo"/>
  <BrushLabels name="brush" toName="img"><Label value="Cup"/></BrushLabels>
  <KeyPointLabels name="points" toName="img" smart="true"><Label value="Cup"/></KeyPointLabels>
  <RectangleLabels name="boxes" toName="img" smart="true"><Label value="Cup"/></RectangleLabels>
</View>"""
NO_BRUSH = CONFIG.replace("BrushLabels", "PolygonLabels")


def point(x, y, positive=True, rotation=0, label="Cup"):
    shown = (WIDTH, HEIGHT) if rotation in (0, 180) else (HEIGHT, WIDTH)
    value = {"x": 100 * x / shown[0], "y": 100 * y / shown[1], "width": 0.3, "keypointlabels": [label]}
    return {
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": rotation,
        "value": value,
        "is_positive": positive,
        "id": "a",
        "from_name": "points",
        "to_name": "img",
        "type": "keypointlabels",
    }


def rectangle(x, y, width, height, turn=0):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": turn, "rectanglelabels": ["Cup"]}
    return {"image_rotation": 0, "value": value, "type": "rectanglelabels", "from_name": "boxes", "to_name": "img"}


def question(*regions, address=ADDRESS, config=CONFIG, **more):
    task = {"id": 1, "data": {"photo": address}}
    return {"tasks": [task], "label_config": config, "params": {"context": {"result": list(regions)}}, **more}


def read(document):
    return read_label_studio(document if isinstance(document, bytes) else json.dumps(document).encode(), LIMITS)


def decode_brush(rle):
    """The format as its own page has it, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def take(count):
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    found = []
    while len(found) < count:
        is_run, length = take(1), take(sizes[take(2)]) + 1
        found += [take(word)] * length if is_run else [take(word) for _ in range(length)]
    assert len(found) == count and set(bits[place:]) <= {"0"}
    return np.array(found, np.uint8)


MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: st.lists(st.booleans(), min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
        lambda bits: np.array(bits).reshape(size)
    )
)


@given(MASKS)
def test_a_brush_is_the_mask_in_all_four_channels(mask):
    assert np.array_equal(decode_brush(brush_rle(mask)).reshape(*mask.shape, 4) > 0, np.repeat(mask[..., None], 4, 2))


@pytest.mark.parametrize("pixels", [1, 2, 63, 64, 65, 16_383, 16_384, 16_385, 40_000])
def test_lengths_at_the_borders_of_their_kinds(pixels):
    mask = np.zeros((1, 50_000), bool)
    mask[0, 7 : 7 + pixels] = True
    assert np.array_equal(decode_brush(brush_rle(mask)).reshape(1, -1, 4)[..., 3] > 0, mask)


def test_dust_is_no_brush(monkeypatch):
    monkeypatch.setattr(labelling, "_MOST_RUNS", 9)
    with pytest.raises(InputError) as caught:
        brush_rle(np.arange(10).reshape(2, 5) % 2 > 0)
    assert caught.value.code == "answer_too_large"
    brush_rle(np.arange(9)[None] % 2 > 0)


def test_label_studios_own_converter_reads_our_brushes():
    converter = pytest.importorskip("label_studio_sdk.converter.brush")
    rng = np.random.default_rng(0)
    for mask in (draw_scene((97, 131), seed=2)[..., 0] > 120, rng.random((40, 50)) > 0.5, np.zeros((3, 2), bool)):
        rgba = np.reshape(converter.decode_rle(brush_rle(mask)), (*mask.shape, 4))
        assert np.array_equal(rgba[..., 3] > 0, mask)
        # Which may end with a byte of nothing.
        assert converter.mask2rle(mask * 255)[: len(brush_rle(mask))] == brush_rle(mask)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_places_in_a_turned_picture(rotation):
    """A pixel of a picture that numpy has turned is where the same number is in the upright one."""
    upright_picture = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    turned = np.rot90(upright_picture, -rotation // 90)
    x, y = 123, 45
    percent = np.array([[(x + 0.5) / turned.shape[1], (y + 0.5) / turned.shape[0]]]) * 100
    ((found_x, found_y),) = upright(percent, rotation, (HEIGHT, WIDTH))
    assert upright_picture[int(found_y), int(found_x)] == turned[y, x]
    assert np.allclose(as_shown(np.array([[found_x, found_y]]), rotation, (HEIGHT, WIDTH)), percent)


def test_a_drawing_becomes_prompts():
    drawing = read(question(point(300, 100), point(10, 20, False), rectangle(10, 20, 30, 40)))
    assert json.loads(drawing.prompts((HEIGHT, WIDTH))) == {
        "points": [[300, 100], [10, 20]],
        "labels": [1, 0],
        "boxes": [[60, 80, 240, 240]],
        "multimask_output": "auto",
        "clip": True,
    }
    assert (drawing.to_name, drawing.brush, drawing.rectangle, drawing.label) == ("img", "brush", "boxes", "Cup")
    assert drawing.picture == PHOTOGRAPH


def test_a_rectangle_that_is_turned_is_the_box_around_it():
    drawing = read(question(rectangle(50, 50, 10, 20, turn=90)))
    box = json.loads(drawing.prompts((100, 100)))["boxes"][0]
    assert np.allclose(box, [30, 50, 50, 60])


def test_before_anybody_has_drawn_there_is_nothing():
    tasks = [{"data": {"photo": "/data/upload/1/a.jpg"}}] * 3
    assert read({"tasks": tasks, "label_config": CONFIG, "params": {}}) == 3
    assert read({"tasks": tasks, "params": {"context": {"result": []}}}) == 3
    assert read({"tasks": []}) == 0


SPOILED = {
    "no JSON": (b"{", "bad_json"),
    "no tasks": ({}, "bad_request"),
    "tasks of numbers": ({"tasks": [1]}, "bad_request"),
    "parameters that are a list": ({"tasks": [{}], "params": [1]}, "bad_request"),
    "regions that are text": ({"tasks": [{}], "params": {"context": {"result": "a"}}}, "bad_request"),
    "regions of numbers": (question(1), "bad_request"),
    "two tasks": (question(point(1, 1), tasks=[{"data": {"photo": ADDRESS}}] * 2), "bad_request"),
    "no project": (question(point(1, 1), config=None), "bad_request"),
    "no XML": (question(point(1, 1), config="<View>"), "bad_request"),
    "a declaration": (question(point(1, 1), config='<!DOCTYPE a [<!ENTITY b "c">]>' + CONFIG), "bad_request"),
    "a declaration behind a comment": (question(point(1, 1), config="<!<!--!--DOCTYPE a><View/>"), "bad_request"),
    "no picture": (question(point(1, 1), config="<View/>"), "bad_request"),
    "another value": (question(point(1, 1), config=CONFIG.replace("$photo", "$other")), "bad_request"),
    "an address that is a number": (question(point(1, 1), address=3), "bad_request"),
    "data that is none": (question(point(1, 1), address="data:image/png;base64,%%%"), "bad_base64"),
    "data that is not in base64": (question(point(1, 1), address="data:image/svg+xml,<svg/>"), "bad_base64"),
    "long data that is none": (question(point(1, 1), address="data:image/png;base64," + "A" * 2001), "bad_base64"),
    "a place that is text": (question({**point(1, 1), "value": {"x": "1", "y": 2}}), "bad_request"),
    "a place that is missing": (question({**point(1, 1), "value": {"x": 1}}), "bad_request"),
    "a place that is infinite": (question({**point(1, 1), "value": {"x": float("inf"), "y": 2}}), "bad_request"),
    "a place that is true": (question({**point(1, 1), "value": {"x": True, "y": 2}}), "bad_request"),
    "a part of a turn": (question({**point(1, 1), "image_rotation": 45}), "bad_request"),
    "a turn that is text": (question({**point(1, 1), "image_rotation": "90"}), "bad_request"),
    "a value that is a list": (question({**point(1, 1), "value": [1]}), "bad_request"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_not_as_label_studio_sends_it(name):
    document, code = SPOILED[name]
    with pytest.raises(InputError) as caught:
        read(document)
    assert caught.value.code == code, caught.value


def test_only_the_rest_of_json_has_its_limit():
    body = json.dumps({"image": base64.b64encode(bytes(3_000_000)).decode(), "x": "y" * 900}).encode()
    text, apart = set_apart(body, 2_000)
    assert len(apart) == 1 and base64.b64decode(apart[0]) == bytes(3_000_000)
    with pytest.raises(Refusal) as caught:
        set_apart(body, 900)
    assert caught.value.status == 413
    escaped = b'{"image": "' + base64.b64encode(b"\xff" * 3_000).replace(b"/", b"\\/") + b'"}'
    assert read_cvat(escaped, LIMITS)[0] == b"\xff" * 3_000


@pytest.mark.parametrize("number", ["base64:1", "base64:-1", "base64:999999999999", "base64:x", "base64:"])
def test_numbers_of_pictures_that_were_not_sent(number):
    with pytest.raises(ImageError):
        read_cvat(json.dumps({"image": number, "pos_points": [[1, 2]]}).encode(), LIMITS)


# A real server.


@pytest.fixture(scope="module")
def predictor():
    with segship.load("tiny") as loaded:
        yield loaded


def test_label_studio_sets_up_and_looks_after_the_server(server):
    assert server.get("/health").json == {"status": "UP", "model_class": "segship"}
    answer = server.post("/setup", {"project": "1.2", "schema": CONFIG, "hostname": "", "access_token": ""})
    assert answer.status == 200 and answer.json["model_version"].startswith("tiny:")


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_click_in_label_studio_gives_the_mask_of_python(server, predictor, rotation):
    places = {0: (365, 290), 90: (HEIGHT - 290, 365), 180: (WIDTH - 365, HEIGHT - 290), 270: (290, WIDTH - 365)}
    answer = server.post("/predict", question(point(*places[rotation], rotation=rotation)))
    (result,) = answer.json["results"][0]["result"]
    expected = predictor.predict(PHOTOGRAPH, points=[[365, 290]], multimask_output="auto")
    brush = decode_brush(result["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0
    assert np.array_equal(brush, expected.masks[0, 0])
    assert result["type"] == "brushlabels" and result["value"]["brushlabels"] == ["Cup"]
    assert (result["from_name"], result["to_name"], result["image_rotation"]) == ("brush", "img", rotation)
    assert (result["original_width"], result["original_height"]) == (WIDTH, HEIGHT)
    assert answer.json["model_version"] == answer.json["results"][0]["model_version"]


def test_a_project_without_a_brush_gets_a_rectangle(server, predictor):
    answer = server.post("/predict", question(rectangle(20, 20, 60, 60), config=NO_BRUSH))
    (result,) = answer.json["results"][0]["result"]
    expected = predictor.predict(PHOTOGRAPH, boxes=[120, 80, 480, 320], multimask_output=False).boxes[0, 0]
    value = result["value"]
    found = np.array([value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]])
    assert np.allclose(found / 100 * [WIDTH, HEIGHT, WIDTH, HEIGHT], expected)
    assert result["type"] == "rectanglelabels" and value["rotation"] == 0 and value["rectanglelabels"] == ["Cup"]


def test_tasks_nobody_has_drawn_in_get_empty_answers(server):
    answer = server.post("/predict", {"tasks": [{"data": {}}] * 2, "label_config": CONFIG})
    assert [one["result"] for one in answer.json["results"]] == [[], []]


def test_addresses_are_not_fetched_unless_asked_for(server):
    for address in ("http://127.0.0.1:1/a.jpg", "/data/upload/1/a.jpg", "file:///etc/passwd", ""):
        answer = server.post("/predict", question(point(365, 290), address=address))
        assert (answer.status, answer.code) == (422, "no_fetching")


def cvat(**more):
    return {"image": base64.b64encode(PHOTOGRAPH).decode(), **more}


@pytest.mark.parametrize(
    ("asked", "prompts"),
    [
        ({"pos_points": [[365, 290]], "neg_points": [], "obj_bbox": None}, {"points": [[365, 290]]}),
        (
            {"pos_points": [[365, 290]], "neg_points": [[10, 10]], "threshold": 0.5},
            {"points": [[365, 290], [10, 10]], "labels": [1, 0]},
        ),
        ({"pos_points": [], "neg_points": [], "obj_bbox": [[140, 80], [460, 340]]}, {"boxes": [140, 80, 460, 340]}),
        ({"obj_bbox": [140, 80, 460, 340]}, {"boxes": [140, 80, 460, 340]}),
    ],
)
def test_cvat_gets_the_mask_of_python(server, predictor, asked, prompts):
    answer = server.post("/cvat/interactor", cvat(**asked))
    expected = predictor.predict(PHOTOGRAPH, **prompts, multimask_output="auto").masks[0, 0]
    assert np.array_equal(np.array(answer.json["mask"], bool), expected)
    painted = np.zeros(expected.shape, np.uint8)
    cv2.fillPoly(painted, [np.round(answer.json["points"]).astype(np.int32)], 1)
    assert (painted.astype(bool) & expected).sum() > 0.7 * expected.sum()


@pytest.mark.parametrize("body", [dict, bytes])
def test_the_function_for_cvat_asks_the_server(server, predictor, monkeypatch, body):
    """Of `deploy/cvat`, with the two names that Nuclio gives it."""
    path = Path(__file__).parents[2] / "deploy" / "cvat" / "main.py"
    function = runpy.run_path(str(path))
    monkeypatch.setenv("SEGSHIP_ADDRESS", server.address)
    context = SimpleNamespace(Response=SimpleNamespace)
    asked = cvat(pos_points=[[365, 290]], neg_points=[], obj_bbox=None)
    event = SimpleNamespace(body=asked if body is dict else json.dumps(asked).encode())
    found = function["handler"](context, event)
    expected = predictor.predict(PHOTOGRAPH, points=[[365, 290]], multimask_output="auto").masks[0, 0]
    assert found.status_code == 200 and np.array_equal(np.array(json.loads(found.body)["mask"], bool), expected)
    refused = function["handler"](context, SimpleNamespace(body={"image": "%"}))
    assert refused.status_code == 422 and json.loads(refused.body)["error"]["code"] == "bad_base64"


def test_a_small_picture_and_its_rows(server):
    stream = io.BytesIO()
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(stream, "PNG")
    sent = {"image": base64.b64encode(stream.getvalue()).decode(), "pos_points": [[1, 1]]}
    assert np.array(server.post("/cvat/interactor", sent).json["mask"]).shape == (2, 3)


@pytest.mark.parametrize(
    ("spoiled", "code"),
    [
        ({"image": 3}, "bad_request"),
        ({"image": "%"}, "bad_base64"),
        ({"image": "AAAA", "pos_points": [[1, 2]]}, "unknown_format"),
        ({**cvat(), "pos_points": 3}, "bad_request"),
        ({**cvat(), "pos_points": [[1, "2"]]}, "bad_shape"),
        ({**cvat(), "pos_points": []}, "no_prompts"),
        ({**cvat(), "obj_bbox": [[1], [2]]}, "bad_shape"),
        ({**cvat(), "obj_bbox": {"a": 1}}, "bad_shape"),
    ],
)
def test_what_is_not_as_cvat_sends_it(server, spoiled, code):
    answer = server.post("/cvat/interactor", spoiled)
    assert (answer.status, answer.code) == (422, code)


def test_keys_come_as_passwords_too(closed):
    asked = {"tasks": []}
    for user, status in (
        ("any:secret", 200),
        ("secret:", 401),
        ("secret", 401),
        ("any:another", 401),
        ("any:other", 403),
    ):
        field = "Basic " + base64.b64encode(user.encode()).decode()
        assert closed.post("/predict", asked, Authorization=field).status == status
    assert closed.post("/predict", asked, Authorization="Basic %%").status == 401


def test_masks_are_read_back_as_they_were():
    mask = np.random.default_rng(4).random((30, 40)) > 0.5
    answer = {
        "height": 30,
        "width": 40,
        "objects": [{"masks": [{"segmentation": segship_rle(mask), "predicted_iou": 0.5}]}],
    }
    text = labelling.cvat_answer(json.dumps(answer).encode(), 2 * 30 * 40)
    assert np.array_equal(np.array(json.loads(text)["mask"], bool), mask)
    with pytest.raises(InputError) as caught:
        labelling.cvat_answer(json.dumps(answer).encode(), 2 * 30 * 40 - 1)
    assert caught.value.code == "answer_too_large"


def segship_rle(mask):
    from segship.masks.rle import encode_rle

    found = encode_rle(mask)
    assert np.array_equal(decode_rle(found), mask)
    return found
