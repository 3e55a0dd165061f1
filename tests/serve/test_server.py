# SPDX-License-Identifier: Apache-2.0
"""A real server: what it answers is what Python answers, and what it survives."""

import base64
import http.client
import io
import itertools
import os
import random
import shutil
import signal
import socket
import threading
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import segship
from segship.catalog import find_model
from segship.images.reading import DEMO_POINT_XY
from segship.masks.rle import decode_rle
from segship.promptable.everything.search import generate
from tests.images.test_file_bytes import ALL_FORMATS, encoded, png_chunk
from tests.images.test_pixel_modes import plain_tiff
from tests.images.test_reading import declared
from tests.serve.serving import serving

PHOTOGRAPH = segship.demo_photograph().read_bytes()
POINT = list(DEMO_POINT_XY)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving("--log", "json", log=tmp_path_factory.mktemp("serve") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def predictor():
    with segship.load("tiny") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def embedding(predictor):
    return predictor.encode(segship.demo_photograph())


@pytest.fixture(scope="module")
def image(server):
    return server.post("/v1/images", PHOTOGRAPH).json["id"]


def picture(size=(60, 40), kind="PNG", seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def rles(answer):
    return [[mask["segmentation"] for mask in entry["masks"]] for entry in answer.json["objects"]]


QUESTIONS = [
    ({"points": [POINT]}, {}),
    ({"points": [POINT, [10, 10]], "labels": [1, 0]}, {"multimask_output": True}),
    ({"boxes": [[140, 80, 460, 340]]}, {"multimask_output": False}),
    ({"objects": [{"points": [POINT]}, {"boxes": [0, 0, 900, 300]}]}, {"multimask_output": "best"}),
    ({"points": [[-5, 900]]}, {"clip": True}),
    ({"points": [POINT]}, {"edges": False}),
    ({"objects": []}, {}),
]


@pytest.mark.parametrize("given, options", QUESTIONS)
def test_masks_are_those_of_python(server, image, predictor, embedding, given, options):
    answer = server.post(f"/v1/images/{image}/masks", {**given, **options})
    entries = given.get("objects", [given])
    asked = {"multimask_output": options.get("multimask_output", "auto"), "edges": options.get("edges")}
    asked["outside"] = "clip" if options.get("clip") else "error"
    expected = predictor.decode(embedding, [segship.Prompts(**entry) for entry in entries], **asked)
    assert answer.status == 200 and rles(answer) == expected.rles
    assert answer.json["notes"] == list(expected.notes)
    scores = [[mask["predicted_iou"] for mask in entry["masks"]] for entry in answer.json["objects"]]
    assert np.allclose(scores, expected.iou_predictions, atol=1e-6)
    assert set(answer.json["milliseconds"]) == {"queue", "decode"}


def test_forms_of_a_mask_are_one_mask(server, image):
    path = f"/v1/images/{image}/masks"
    mask = decode_rle(rles(server.post(path, {"points": [POINT]}))[0][0])
    found = server.post(path, {"points": [POINT], "format": "png"}).json["objects"][0]["masks"][0]
    png = cv2.imdecode(np.frombuffer(base64.b64decode(found["png"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(png, mask * np.uint8(255)) and found["area"] == mask.sum()
    x, y, width, height = found["bbox"]
    assert mask[y : y + height, x : x + width].sum() == mask.sum()
    polygons = server.post(path, {"points": [POINT], "format": "polygons"}).json["objects"][0]["masks"][0]["polygons"]
    from segship.masks.polygons import Polygon, polygons_to_mask

    shapes = [Polygon(np.array(one["outer"]), tuple(map(np.array, one["holes"]))) for one in polygons]
    assert np.array_equal(polygons_to_mask(shapes, mask.shape), mask)


def test_logits_are_taken_back_as_a_mask_input(server, image, predictor, embedding):
    path = f"/v1/images/{image}/masks"
    given = {"points": [POINT], "multimask_output": False}
    logits = server.post(path, {**given, "format": "logits"}).json["objects"][0]["masks"][0]["low_res_logits"]
    answer = server.post(path, {**given, "mask_input": logits})
    first = predictor.decode(embedding, segship.Prompts(points=[POINT]), multimask_output=False)
    prompts = segship.Prompts(points=[POINT], mask_input=first.low_res_masks[0])
    assert rles(answer) == predictor.decode(embedding, prompts, multimask_output=False).rles
    for change in ({"dtype": "float64"}, {"shape": [96, 95]}, {"shape": [-96, -96]}, {"data": "!!"}, {"more": 1}):
        bad = server.post(path, {**given, "mask_input": {**logits, **change}})
        assert (bad.status, bad.code) == (422, "bad_mask_input")


def test_a_picture_and_its_prompts_may_come_together(server, image):
    alone = server.post(f"/v1/images/{image}/masks", {"points": [POINT, [10, 10]], "labels": [1, 0]})
    x, y = POINT
    together = server.post(f"/v1/segment?point={x},{y}&point=10,10,0", PHOTOGRAPH)
    assert rles(together) == rles(alone) and together.json["id"] == image
    boxes = server.post("/v1/segment?box=140,80,460,340&box=0,0,300,300&multimask_output=false", PHOTOGRAPH)
    assert len(boxes.json["objects"]) == 2
    asked = server.post('/v1/segment?prompts={"points":[[365,290]]}'.replace('"', "%22"), PHOTOGRAPH)
    assert len(asked.json["objects"]) == 1


def test_everything_is_that_of_python_and_comes_in_lines(server, image, predictor):
    import json

    options = segship.AmgOptions(points_per_side=8)
    expected = [
        record.to_dict("coco_rle") for record in generate(predictor, segship.demo_photograph(), options).records
    ]
    answer = server.post(f"/v1/images/{image}/everything", {"points_per_side": 8})
    lines = [json.loads(line) for line in answer.body.splitlines()]
    records = [line for line in lines if line["type"] == "record"]
    assert [{key: record[key] for key in expected[0]} for record in records] == json.loads(json.dumps(expected))
    assert [line["index"] for line in records] == list(range(len(expected)))
    assert lines[0] == {"type": "progress", "points": lines[0]["points"], "of": 64}
    assert lines[-1]["type"] == "end" and lines[-1]["records"] == len(expected)
    events = server.post(f"/v1/images/{image}/everything", {"points_per_side": 4}, Accept="text/event-stream")
    assert events.fields["content-type"].startswith("text/event-stream")
    assert all(part.startswith(b"data: {") for part in events.body.strip().split(b"\n\n"))


def test_crops_look_at_the_picture_itself(server, image, predictor):
    import json

    options = segship.AmgOptions(points_per_side=4, crop_n_layers=1)
    expected = [record.to_dict("coco_rle") for record in segship.generate_masks(predictor, PHOTOGRAPH, options)]
    answer = server.post(f"/v1/images/{image}/everything", {"points_per_side": 4, "crop_n_layers": 1})
    records = [line for line in map(json.loads, answer.body.splitlines()) if line["type"] == "record"]
    assert [record["segmentation"] for record in records] == [entry["segmentation"] for entry in expected]


REFUSED = [
    ({"points": [[601, 0]]}, "point_outside"),
    ({"points": [[float("nan"), 0]]}, "non_finite"),
    ({"points": [[1, 2, 3]]}, "bad_shape"),
    ({"points": [POINT], "labels": [2]}, "bad_label"),
    ({"boxes": [[5, 5, 5, 9]]}, "empty_box"),
    ({}, "no_prompts"),
    ({"points": [POINT], "what": 1}, "unknown_key"),
    ({"points": [POINT], "format": "gif"}, "bad_option"),
    ({"points": [POINT], "multimask_output": 3}, "bad_multimask_output"),
    ({"points": [POINT] * 65}, "too_many_points"),
    ({"objects": [{"points": [POINT]}] * 65}, "too_many_objects"),
    ({"points": "x"}, "bad_shape"),
    (b"{", "bad_json"),
    (b"", "bad_json"),
    (b"[" * 100, "json_too_deep"),
    (b'{"points": [[1,2]], "points": [[1,2]]}', "duplicate_key"),
]


@pytest.mark.parametrize("body, code", REFUSED)
def test_bad_prompts_are_refused_by_the_codes_of_python(server, image, body, code):
    answer = server.post(f"/v1/images/{image}/masks", body)
    assert (answer.status, answer.code) == (422, code)
    error = answer.json["error"]
    assert error["retryable"] is False and error["request_id"] == answer.fields["x-request-id"]
    assert "--" not in error["message"] and "outside='clip'" not in error["message"]


@pytest.mark.parametrize(
    "data, code",
    [
        (b"", "empty_file"),
        (b"hello", "unknown_format"),
        (PHOTOGRAPH[:5000], "truncated"),
        (b"%PDF-1.4", "format_not_allowed"),
    ]
    + [(picture((1, 800)), "aspect_ratio")],
)
def test_bad_pictures_are_refused_by_the_codes_of_python(server, data, code):
    for path in ("/v1/images", "/v1/segment?point=1,1"):
        answer = server.post(path, data)
        assert (answer.status, answer.code) == (422, code)


def hostile_pictures():
    """What tests of images are about that no server should fall for: bombs, cuts, damage, lies, and other formats."""
    huge = {"png": 2**31 - 1, "jpeg": 65_500, "gif": 65_535, "bmp": 10**6, "webp": 16_383}
    yield from (declared(name, side, side) for name, side in huge.items())
    yield from (picture(size) for size in ((1, 800), (800, 1)))
    jpeg, png = encoded("jpeg"), encoded("png")
    scan = jpeg[jpeg.index(b"\xff\xda") : -2]
    yield jpeg[:2] + b"\xff\xfe\x00\x02" * 6000 + jpeg[2:]
    yield jpeg[:-2] + scan * 600 + jpeg[-2:]
    yield png[:33] + png_chunk(b"tEXt", b"k\0v") * 6000 + png[33:]
    # Text and a profile that are a thousand times as long as they look.
    for kind in (b"zTXt", b"iCCP"):
        yield png[:33] + png_chunk(kind, b"k\0\0" + zlib.compress(bytes(2**26))) + png[33:]
    yield b"RIFF\x18\0\0\0WEBPALPH" + bytes(16)
    starts = (b"%!PS-Adobe-3.0 EPSF-3.0", b"%PDF-1.7", b"8BPS\0\1", b"<?xml version='1.0'?><svg/>", b"SIMPLE  =")
    yield from (start + bytes(64) for start in (*starts, b"\0\0\0\x18ftypheic", b"\0\0\0\x0cjP  \r\n", b"<html>"))
    yield from (encoded("jpeg", exif=block) for block in (b"Exif\0\0", b"Exif\0\0II*\0" + b"\xff" * 60))
    for order, kind in itertools.product("<>", ("i1", "u2", "u4", "f2", "f4", "f8")):
        yield plain_tiff(np.arange(48).reshape(6, 8, 1).astype(kind), order)
    yield plain_tiff(np.full((6, 8, 1), np.nan, np.float32))
    generator = random.Random(18)
    for name in ALL_FORMATS:
        whole = encoded(name)
        yield whole + b"junk behind"
        yield from (whole[: generator.randrange(8, len(whole))] for _ in range(6))
        for _ in range(8):
            damaged = bytearray(whole)
            for _ in range(generator.randint(1, 6)):
                damaged[generator.randrange(min(len(damaged), generator.choice((60, 10_000))))] = generator.randrange(
                    256
                )
            yield bytes(damaged)


def what_python_says(data, limits):
    try:
        height, width = segship.read_image(data, limits=limits).size_hw
    except segship.ImageError as error:
        return (422, error.code, None)
    return (200, None, (width, height))


def memory_of(pid):
    """Bytes that a process has held at most, and holds."""
    found = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return [1024 * int(found[name].split()[0]) for name in ("VmHWM", "VmRSS")]


def test_hostile_pictures_get_the_codes_of_python_and_leave_nothing(server):
    workers, limits = server.children(), segship.ImageLimits(bytes=32 * 2**20, aspect_ratio=768)
    before, found = [memory_of(pid) for pid in (server.process.pid, workers[0])], Counter()
    for data in hostile_pictures():
        # The tests make errors of what Pillow only warns of.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = what_python_says(data, limits)
        answer = server.post("/v1/images", data)
        size = (answer.json["width"], answer.json["height"]) if answer.status == 200 else None
        assert (answer.status, None if size else answer.code, size) == expected
        found[expected[1]] += 1
    assert server.children() == workers and server.get("/v2/health/ready").status == 200
    codes = {
        "too_many_pixels",
        "aspect_ratio",
        "too_complex",
        "truncated",
        "corrupt",
        "format_not_allowed",
        "unknown_format",
    }
    assert codes <= set(found) and found.total() > 120
    assert "arning" not in Path(server.log).read_text()
    after = [memory_of(pid) for pid in (server.process.pid, workers[0])]
    growth = [[(a - b) / 2**20 for a, b in zip(*pair, strict=True)] for pair in zip(after, before, strict=True)]
    assert all(most < 64 for pair in growth for most in pair), growth


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_are_in_the_upright_frame(server, orientation):
    upright = Image.open(io.BytesIO(PHOTOGRAPH)).resize((90, 60))
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    inverse = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
    stored = upright if orientation == 1 else upright.transpose(turns[inverse[orientation]])
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored.save(stream, "PNG", exif=exif)
    answer = server.post("/v1/images", stream.getvalue()).json
    assert (answer["width"], answer["height"]) == (90, 60)
    mask = rles(server.post(f"/v1/images/{answer['id']}/masks", {"points": [[45, 30]]}))
    plain = io.BytesIO()
    upright.save(plain, "PNG")
    other = server.post("/v1/images", plain.getvalue()).json
    assert mask == rles(server.post(f"/v1/images/{other['id']}/masks", {"points": [[45, 30]]}))


def test_the_smallest_picture_works(server):
    answer = server.post("/v1/segment?point=0,0&multimask_output=true", picture((1, 1)))
    assert answer.status == 200 and (answer.json["width"], answer.json["height"]) == (1, 1)


def test_what_is_known_of_a_picture_can_be_asked_and_forgotten(server):
    sent = server.post("/v1/images?model=tiny", picture(seed=5)).json
    assert sent["cached"] is False and sent["milliseconds"]["encode"] > 0
    assert server.post("/v1/images", picture(seed=5)).json["cached"] is True
    known = server.get(f"/v1/images/{sent['id']}").json
    assert known == {key: sent[key] for key in known}
    assert server.ask("DELETE", f"/v1/images/{sent['id']}").json == {"deleted": True}
    for answer in (server.get(f"/v1/images/{sent['id']}"), server.post(f"/v1/images/{sent['id']}/masks", {})):
        assert (answer.status, answer.code) == (404, "unknown_image")


def test_a_picture_is_shown_to_whoever_has_sent_it(server):
    exif = Image.Exif()
    exif[0x0112] = 8
    for size, kind in (((90, 60), "png"), ((2500, 1700), "jpeg")):
        stream = io.BytesIO()
        Image.open(io.BytesIO(PHOTOGRAPH)).resize(size).save(stream, "TIFF", exif=exif)
        sent = server.post("/v1/images", stream.getvalue()).json
        answer = server.get(f"/v1/images/{sent['id']}/picture")
        assert (answer.status, answer.fields["content-type"]) == (200, f"image/{kind}")
        assert answer.fields["x-content-type-options"] == "nosniff" and answer.fields["cache-control"] == "no-store"
        pixels = np.asarray(Image.open(io.BytesIO(answer.body)))
        assert pixels.shape == (sent["height"], sent["width"], 3) == (*size, 3)
        off = np.abs(pixels.astype(int) - segship.read_image(stream.getvalue()).pixels).mean()
        assert off == 0 if kind == "png" else off < 3
        assert server.ask("DELETE", f"/v1/images/{sent['id']}").status == 200
        assert server.get(f"/v1/images/{sent['id']}/picture").code == "unknown_image"


def test_models_and_limits_are_told(server):
    told = server.get("/v1/models").json
    (model,) = told["models"]
    assert (model["name"], model["task"], model["ready"], model["image_size"]) == ("tiny", "promptable", True, 384)
    assert told["limits"]["body_bytes"] == 32 * 2**20 and told["limits"]["aspect_ratio"] == 768


def test_other_names_and_tasks_are_refused(server):
    assert server.post("/v1/images?model=vit_h", PHOTOGRAPH).code == "unknown_model"
    assert server.post("/v1/semantic", PHOTOGRAPH).code == "unknown_model"
    assert server.post("/v1/semantic?model=tiny", PHOTOGRAPH).code == "other_family"
    assert (server.get("/v1/nothing").status, server.ask("PUT", "/v1/images").status) == (404, 405)


def test_many_uploads_of_one_picture_are_one_run_of_the_encoder(server):
    data = picture((900, 700), seed=77)
    before = server.metric('segship_jobs_total{lane="encode",model="tiny"}')
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(server.post("/v1/images", data).json)) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer["id"] for answer in answers}) == 1 and len(answers) == 50
    assert server.metric('segship_jobs_total{lane="encode",model="tiny"}') == before + 1


def test_a_deadline_that_has_passed_is_told(server, image):
    answer = server.post(f"/v1/images/{image}/masks", {"points": [POINT]}, Segship_Deadline="0.0001")
    assert (answer.status, answer.code) == (504, "deadline_exceeded") and answer.json["error"]["retryable"]
    for text in ("0", "-1", "nan", "soon", "601"):
        answer = server.post(f"/v1/images/{image}/masks", {"points": [POINT]}, Segship_Deadline=text)
        assert (answer.status, answer.code) == (400, "bad_deadline")


def test_metrics_count_what_was_asked(server, image):
    name = 'segship_requests_total{route="image",status="200"}'
    before = server.metric(name)
    for _ in range(7):
        server.get(f"/v1/images/{image}")
    assert server.metric(name) == before + 7
    assert 0 < server.metric("segship_cache_bytes") < 512 * 2**20


def test_the_log_says_no_name_and_no_secret(server, image):
    server.get("/v1/nothing?secret=hunter2", Authorization="Bearer hunter3", X_File="/etc/passwd")
    time.sleep(0.1)
    log = Path(server.log).read_text()
    assert '"route": "masks"' in log
    assert not any(word in log for word in ("hunter", "passwd", "Traceback", "/v1/", image))


@pytest.mark.parametrize("worker", range(3))
def test_a_worker_that_is_killed_comes_back(server, image, worker):
    victim = sorted(server.children())[worker]
    os.kill(victim, signal.SIGKILL)
    ends = time.monotonic() + 15
    while time.monotonic() < ends:
        answers = [server.post("/v1/segment?point=30,20", picture(seed=int(1e3 * time.monotonic())))]
        answers.append(server.post(f"/v1/images/{image}/masks", {"points": [POINT]}))
        assert {answer.status for answer in answers} <= {200, 503}
        if all(answer.status == 200 for answer in answers) and victim not in server.children():
            break
        time.sleep(0.05)
    else:
        raise AssertionError("it did not come back")
    server.wait_until_ready()


def test_the_end_is_gentle(tmp_path):
    with serving(log=tmp_path / "log") as running:
        sent = running.post("/v1/images", PHOTOGRAPH).json
        answers = []

        def find():
            answers.append(running.post(f"/v1/images/{sent['id']}/everything", {"points_per_side": 32}))

        thread = threading.Thread(target=find)
        thread.start()
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        late = running.get("/v1/models")
        assert (late.status, late.code, late.fields["connection"]) == (503, "draining", "close")
        assert running.get("/v2/health/ready").status == 503 and running.get("/v2/health/live").status == 200
        thread.join()
        assert b'"type": "end"' in answers[0].body
        folder = [name for name in os.listdir("/dev/shm") if name.startswith(f"segship-serve-{running.process.pid}-")]
        assert running.process.wait(20) == 0
        assert not any(os.path.exists(f"/dev/shm/{name}") for name in folder)


def folder_of(running):
    (found,) = [name for name in os.listdir("/dev/shm") if name.startswith(f"segship-serve-{running.process.pid}-")]
    return Path("/dev/shm") / found


def test_nothing_is_kept_of_pictures_that_were_abandoned(server):
    time.sleep(0.5)
    before = sorted(folder_of(server).iterdir())
    for number in range(30):
        # Small to send and long to read.
        stream = io.BytesIO()
        Image.new("RGB", (2500, 2000), (number, 1, 2)).save(stream, "PNG")
        data = stream.getvalue()
        head = f"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.sendall(head + data)
            time.sleep(0.01 + number / 500)
    ends = time.monotonic() + 10
    # Some may have been done in time, and are kept.
    while time.monotonic() < ends:
        entries = server.metric("segship_cache_entries")
        if len(found := sorted(folder_of(server).iterdir())) == 2 * entries:
            break
        time.sleep(0.1)
    assert len(found) == 2 * entries and set(before) <= set(found)


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGKILL])
def test_no_end_leaves_pictures_in_memory(tmp_path, how):
    with serving(log=tmp_path / "log") as running:
        folder, workers = folder_of(running), running.children()
        assert running.post("/v1/images", PHOTOGRAPH).status == 200 and len(workers) == 3
        assert running.stop(how) == (0 if how == signal.SIGHUP else -signal.SIGKILL)
        ends = time.monotonic() + 5
        while folder.exists() and time.monotonic() < ends:
            time.sleep(0.05)
        assert not folder.exists()


def test_a_bundle_that_is_damaged_is_told_in_the_log_and_hinders_no_other(tmp_path):
    damaged, log = tmp_path / "damaged", tmp_path / "log"
    shutil.copytree(find_model("tiny"), damaged)
    graph = damaged / "mask_decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with serving("--bundle", str(damaged), "--bundle", "tiny", log=log, ready=False) as running:
        ends = time.monotonic() + 30
        while time.monotonic() < ends:
            ready = running.get("/v2/health/ready")
            is_there = running.post("/v1/segment?model=tiny&point=300,200", PHOTOGRAPH).status == 200
            if is_there and ready.json["failures"]:
                break
            time.sleep(0.1)
        assert is_there and ready.status == 503
        (failure,) = ready.json["failures"]
        refused = running.post("/v1/segment?point=300,200", PHOTOGRAPH)
        assert failure.startswith("damaged cannot be loaded") and refused.json["error"]["message"] == failure
        assert str(tmp_path) not in failure and "mask_decoder.onnx" in log.read_text()
        assert [model["failure"] for model in running.get("/v1/models").json["models"]] == [failure, None]


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_server_whose_only_bundle_is_damaged_ends_with_an_error(tmp_path, processes):
    damaged, log = tmp_path / "damaged", tmp_path / "log"
    shutil.copytree(find_model("tiny"), damaged)
    graph = damaged / "mask_decoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with serving("--bundle", str(damaged), "--processes", processes, log=log, ready=False) as running:
        assert running.process.wait(60) == 4
    assert "there is nothing left to serve" in log.read_text()


def test_answers_are_not_held_back_for_the_clients_word(server):
    """Head and body are two writes: without TCP_NODELAY the second waits for an acknowledgement, 40 ms."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        connection.request("GET", "/v1/models")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - began)
    connection.close()
    assert sorted(seconds)[4] < 0.03, seconds
