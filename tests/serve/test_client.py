# SPDX-License-Identifier: Apache-2.0
"""A program's side of a server: what it gets is what Python gives, and what goes wrong has the words of Python."""

import io
import json
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

import segship
from segship import BackendUnavailable, ImageError, InputError, PromptError, Prompts
from segship.client import Client
from segship.images.comparison import draw_scene
from segship.images.reading import DEMO_POINT_XY
from segship.promptable.everything.search import iter_masks

PHOTOGRAPH = segship.demo_photograph()
POINT = [list(DEMO_POINT_XY)]


@pytest.fixture(scope="module")
def predictor():
    with segship.load("tiny") as loaded:
        yield loaded


@pytest.fixture
def connect():
    """Clients that are closed at the end."""
    with ExitStack() as stack:
        yield lambda address, *given, **named: stack.enter_context(Client(address, *given, **named))


@pytest.fixture
def client(server, connect):
    return connect(server.address)


@pytest.fixture
def image(client):
    return client.upload(PHOTOGRAPH)


def same(found, expected):
    assert found.rles == expected.rles and found.original_size == expected.original_size
    assert np.allclose(found.iou_predictions, expected.iou_predictions, atol=1e-6)
    assert np.array_equal(found.areas, expected.areas) and np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.masks, expected.masks) and found.masks.dtype == np.bool_
    assert found.notes == expected.notes


QUESTIONS = [
    {"points": POINT},
    {"points": [[365, 290], [10, 10]], "labels": [1, 0], "multimask_output": False},
    {"boxes": [[140, 80, 460, 340], [0, 0, 100, 100]], "multimask_output": "best"},
    {"points": [[[365, 290]], [[100, 100]]], "multimask_output": "auto", "edges": False},
    {"prompts": [Prompts(points=POINT), Prompts(boxes=[460, 340, 140, 80])]},
    {"points": [[700, 10]], "outside": "clip"},
    {"boxes": np.zeros((0, 4))},
]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda asked: ",".join(asked))
def test_masks_are_those_of_a_predictor(image, predictor, question):
    same(image.segment(**question), predictor.predict(PHOTOGRAPH, **question))


def test_logits_refine_as_in_a_predictor(image, predictor):
    first = predictor.predict(PHOTOGRAPH, points=POINT, multimask_output="best")
    logits = image.low_res_masks(points=POINT, multimask_output="best")
    assert np.array_equal(logits, first.low_res_masks)
    asked = {"points": POINT, "mask_input": logits, "multimask_output": False}
    same(image.segment(**asked), predictor.predict(PHOTOGRAPH, **asked))


def test_one_mask_is_made_without_the_others(image):
    found = image.segment(points=POINT)
    assert np.array_equal(found.mask(0, 2), found.masks[0, 2])
    assert "masks" not in vars(image.segment(points=POINT))


def test_pictures_come_as_files_bytes_pillow_and_arrays(client):
    scene = draw_scene((90, 120), seed=3)
    stream = io.BytesIO()
    Image.fromarray(scene).save(stream, "PNG")
    found = [client.upload(one).segment(points=[[50, 40]]).rles for one in (scene, stream.getvalue())]
    assert found[0] == found[1] == client.upload(Image.fromarray(scene)).segment(points=[[50, 40]]).rles


def test_everything_comes_record_by_record(image, predictor):
    told = []
    found = list(image.everything(points_per_side=8, progress=lambda points, of: told.append((points, of))))
    expected = list(iter_masks(predictor, PHOTOGRAPH, segship.AmgOptions(points_per_side=8)))
    assert [one.to_dict() for one in found] == [one.to_dict() for one in expected]
    assert told[-1] == (64, 64)


def test_everything_that_is_left_early_ends_at_the_server(image, server):
    records = image.everything(points_per_side=32)
    next(records)
    records.close()
    began = time.monotonic()
    assert len(list(image.everything(points_per_side=4))) > 0
    assert time.monotonic() - began < 10


def test_options_of_everything_are_refused_here(image):
    with pytest.raises(InputError) as caught:
        image.everything(points_per_side=0)
    assert caught.value.code == "bad_amg_option"
    with pytest.raises(TypeError, match="did you mean points_per_side"):
        image.everything(points_per_sid=3)


@pytest.mark.parametrize(
    ("kind", "code", "asked"),
    [
        (PromptError, "point_outside", {"points": [[700, 10]]}),
        (PromptError, "empty_box", {"boxes": [10, 10, 10, 20]}),
        (PromptError, "no_prompts", {}),
        (PromptError, "too_many_points", {"points": np.ones((65, 2))}),
        (PromptError, "bad_mask_input", {"mask_input": np.zeros((7, 7))}),
        (PromptError, "bad_label", {"points": POINT, "labels": [2]}),
        (InputError, "bad_option", {"points": POINT, "outside": "ignore"}),
        (PromptError, "bad_multimask_output", {"points": POINT, "multimask_output": "three"}),
    ],
)
def test_errors_are_those_of_python(image, kind, code, asked):
    with pytest.raises(InputError) as caught:
        image.segment(**asked)
    assert type(caught.value) is kind and caught.value.code == code


def test_what_is_no_picture_is_an_image_error(client):
    with pytest.raises(ImageError) as caught:
        client.upload(b"no picture")
    assert caught.value.code == "unknown_format"


def test_a_body_that_is_too_large_is_refused_and_the_next_is_answered(client, image):
    with pytest.raises(InputError) as caught:
        client.upload(bytes(33 * 2**20))
    assert caught.value.code == "body_too_large"
    assert image.segment(points=POINT).areas.all()


def test_a_picture_that_was_forgotten_is_sent_again(client, image, predictor):
    before = image.id
    client._line.ask("DELETE", f"/v1/images/{before}")
    same(image.segment(points=POINT), predictor.predict(PHOTOGRAPH, points=POINT))
    assert image.id != before
    client._line.ask("DELETE", f"/v1/images/{image.id}")
    assert len(list(image.everything(points_per_side=4))) > 0


def test_a_picture_that_was_deleted_stays_away(image):
    image.delete()
    with pytest.raises(InputError) as caught:
        image.segment(points=POINT)
    assert caught.value.code == "unknown_image"


def test_unknown_models_and_tasks(client):
    for asked, code in (({"model": "none"}, "unknown_model"), ({"model": "tiny"}, "other_family")):
        with pytest.raises(InputError) as caught:
            client.semantic(PHOTOGRAPH, **asked)
        assert caught.value.code == code


def test_class_maps_are_those_of_a_predictor(serve, small_semantic_bundle, connect):
    client = connect(serve("--tensors", "--bundle", "tiny", "--bundle", f"street={small_semantic_bundle.path}").address)
    scene = draw_scene((64, 96), seed=1)
    with segship.load_semantic(small_semantic_bundle.path) as predictor:
        expected = predictor.segment(scene)
    found = client.semantic(scene, model="street")
    assert np.array_equal(found.array, expected.array) and found.areas() == expected.areas()
    assert found.palette == expected.palette and found.notes == expected.notes


def test_many_threads_share_a_client(client, image, predictor):
    expected = predictor.predict(PHOTOGRAPH, points=POINT).rles
    found = []
    work = [threading.Thread(target=lambda: found.append(image.segment(points=POINT).rles)) for _ in range(8)]
    for one in work:
        one.start()
    for one in work:
        one.join()
    assert found == [expected] * 8


def test_keys_are_sent(closed, connect):
    address = closed.address
    assert connect(address, key="secret").models()["models"][0]["name"] == "tiny"
    for key, code in ((None, "missing_key"), ("another", "unknown_key"), ("other", "forbidden_scope")):
        with pytest.raises(BackendUnavailable) as caught:
            connect(address, key=key).models()
        assert caught.value.code == code


@contextmanager
def answering(*answers):
    """A server that gives these answers, one a request: status, fields and body; it counts and keeps what was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append((self.path, dict(self.headers), self.client_address))
            status, fields, body = answers[min(len(asked), len(answers)) - 1]
            if status is None:
                time.sleep(body)
                status, body = 200, b"{}"
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **fields}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = do_GET

        def log_message(self, *_):
            pass

    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.daemon_threads = True
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{one.server_address[1]}", asked
    finally:
        one.shutdown()
        thread.join()
        one.server_close()


def refusal(code, kind=None):
    return json.dumps({"error": {"code": code, "message": "no", "kind": kind}}).encode()


def test_a_server_without_room_is_asked_again_after_the_time_it_names(connect):
    no = (503, {"Retry-After": "1"}, refusal("overloaded"))
    with answering(no, no, (200, {}, b'{"models": []}')) as (address, asked):
        began = time.monotonic()
        assert connect(address).models() == {"models": []}
        assert len(asked) == 3 and 1.9 < time.monotonic() - began < 4
        assert len({port for _, _, port in asked}) == 1, "the connection was not kept"


@pytest.mark.parametrize(("timeout", "retries", "times"), [(60, 1, 2), (60, 0, 1), (0.9, 3, 1)])
def test_it_is_asked_no_more_often_than_said_and_never_past_the_deadline(timeout, retries, times, connect):
    with answering((429, {"Retry-After": "1"}, refusal("rate_limited"))) as (address, asked):
        with pytest.raises(BackendUnavailable) as caught:
            connect(address, timeout=timeout, retries=retries).models()
        assert caught.value.code == "rate_limited" and len(asked) == times


def test_the_deadline_is_passed_on_and_kept(connect):
    with answering((None, {}, 30)) as (address, asked):
        began = time.monotonic()
        with pytest.raises(BackendUnavailable) as caught:
            connect(address, timeout=0.5).upload(PHOTOGRAPH)
        assert caught.value.code == "deadline_exceeded" and time.monotonic() - began < 5
        assert 0.3 < float(asked[0][1]["Segship-Deadline"]) <= 0.5


def test_nobody_there(connect):
    with answering() as (address, _):
        pass
    with pytest.raises(BackendUnavailable) as caught:
        connect(address).models()
    assert caught.value.code == "no_server" and not connect(address).ready


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"models": 3, "id": 4}', b""])
def test_another_program_at_the_address_is_told_from_segship(body, connect):
    with answering((200, {}, body)) as (address, _), pytest.raises(BackendUnavailable) as caught:
        connect(address).upload(PHOTOGRAPH)
    assert caught.value.code == "bad_answer"


@pytest.mark.parametrize("status", [404, 500, 502])
def test_errors_that_are_not_segships(status, connect):
    with answering((status, {}, b"<html>")) as (address, _), pytest.raises(BackendUnavailable) as caught:
        connect(address).models()
    assert caught.value.code == "bad_answer" and str(status) in str(caught.value)


def test_a_stream_without_an_end_is_an_error(connect):
    picture = {"id": "a", "model": "m", "width": 3, "height": 2, "notes": [], "milliseconds": {}}
    cut = (200, {"Connection": "close"}, b'{"type": "progress", "points": 1, "of": 2}\n')
    with answering((200, {}, json.dumps(picture).encode()), cut) as (address, _):
        records = connect(address).upload(b"x").everything()
        with pytest.raises(BackendUnavailable) as caught:
            list(records)
    assert caught.value.code == "cut_off"


@pytest.mark.parametrize("address", ["ftp://a", "http://", "http://a?b=c", "http://[", "", "http://a:99999"])
def test_addresses_that_are_none(address):
    with pytest.raises(InputError) as caught:
        Client(address)
    assert caught.value.code == "bad_option"
