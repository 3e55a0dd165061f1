# SPDX-License-Identifier: Apache-2.0
"""Several processes behind one port: every request finds its picture, whichever of them it comes to."""

import base64
import json
import os
import signal
import threading
import time

import numpy as np
import pytest

import segship
from segship.serve.shards import Shard
from tests.serve.serving import serving
from tests.serve.test_labelling import point, question
from tests.serve.test_server import PHOTOGRAPH, POINT, picture, rles


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving("--processes", "2", log=tmp_path_factory.mktemp("shards") / "log") as running:
        # Each answers for itself.
        for _ in range(30):
            running.wait_until_ready()
        yield running


def total(server, name):
    lines = server.get("/metrics").body.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def test_pictures_are_shared_out_and_found_from_everywhere(server):
    sent = [server.post("/v1/images", picture(seed=number)).json for number in range(8)]
    assert {one["id"][:2] for one in sent} == {"00", "01"}
    # Each request is a connection of its own, which the system deals out.
    for one in sent:
        for _ in range(4):
            assert server.get(f"/v1/images/{one['id']}").json["id"] == one["id"]
            assert server.post(f"/v1/images/{one['id']}/masks", {"points": [[3, 3]]}).status == 200
    assert server.ask("DELETE", f"/v1/images/{sent[0]['id']}").status == 200
    assert {server.get(f"/v1/images/{sent[0]['id']}").code for _ in range(6)} == {"unknown_image"}
    assert {server.get(f"/v1/images/{'f' * 32}").code for _ in range(4)} == {"unknown_image"}


def test_answers_that_were_passed_on_are_the_same(server):
    sent = server.post("/v1/images", PHOTOGRAPH).json
    with segship.load("tiny") as predictor:
        expected = predictor.predict(PHOTOGRAPH, points=[POINT], multimask_output="auto").rles
    for _ in range(6):
        assert rles(server.post(f"/v1/images/{sent['id']}/masks", {"points": [POINT]})) == expected
        x, y = POINT
        assert rles(server.post(f"/v1/segment?point={x},{y}", PHOTOGRAPH)) == expected
        refused = server.post(f"/v1/images/{sent['id']}/masks", {"points": [[9999, 0]]})
        assert (refused.status, refused.code) == (422, "point_outside")
        lines = server.post(f"/v1/images/{sent['id']}/everything", {"points_per_side": 2}).body.splitlines()
        assert json.loads(lines[-1])["type"] == "end"


def test_one_picture_is_one_encode_of_all_processes(server):
    data, answers = picture((900, 700), seed=7), []
    before = encodes(server)
    threads = [threading.Thread(target=lambda: answers.append(server.post("/v1/images", data).json)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one["id"] for one in answers}) == 1 and encodes(server) == before + 1


def encodes(server):
    lines = server.get("/metrics").body.decode().splitlines()
    jobs = [line for line in lines if line.startswith("segship_jobs_total") and 'lane="encode"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in jobs)


def test_programs_that_people_label_with_find_their_picture_too(server):
    data = picture((600, 400), seed=8)
    before, inside = encodes(server), base64.b64encode(data).decode()
    drawn = question(point(300, 200), address=f"data:image/png;base64,{inside}")
    for _ in range(5):
        found = server.post("/cvat/interactor", {"image": inside, "pos_points": [[300, 200]], "neg_points": []})
        assert found.status == 200 and np.shape(found.json["mask"]) == (400, 600)
        assert server.post("/predict", drawn).json["results"][0]["result"]
        # What is nobody's picture is refused by whoever gets it.
        assert server.post("/cvat/interactor", {"image": "?"}).status == 422
        assert server.post("/predict", {"tasks": []}).status == 200
    assert server.post("/v1/images", data).json["cached"] and encodes(server) == before + 1


def test_metrics_are_those_of_all_processes(server):
    text = server.get("/metrics").body.decode()
    assert 'segship_cache_entries{process="0"}' in text and 'segship_cache_entries{process="1"}' in text
    assert text.count("# TYPE segship_cache_bytes gauge") == 1


def test_what_another_process_says_it_was_cannot_be_pretended(server):
    sent = server.post("/v1/images", PHOTOGRAPH).json
    answers = {server.get(f"/v1/images/{sent['id']}", Segship_Passed_On="x").status for _ in range(8)}
    assert answers == {200}


def test_a_process_that_is_killed_comes_back(server):
    victim = server.children()[0]
    os.kill(victim, signal.SIGKILL)
    ends = time.monotonic() + 20
    while victim in server.children() or len(server.children()) < 2:
        assert time.monotonic() < ends
        time.sleep(0.1)
    good = 0
    while good < 12:
        assert time.monotonic() < ends
        try:
            good = good + 1 if server.post("/v1/segment?point=3,3", picture(seed=good)).status == 200 else 0
        except OSError:
            good = 0
        time.sleep(0.05)


def test_the_end_of_all_is_gentle(server):
    workers = [child for process in server.children() for child in children_of(process)]
    assert len(workers) == 6
    assert server.stop() == 0
    assert not any(os.path.exists(f"/proc/{worker}") for worker in workers)


def children_of(process):
    import subprocess

    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def test_handles_name_their_process():
    shard = Shard(3, 5)
    handle = shard.new_handle()
    assert len(handle) == 32 and handle[:2] == "03" and shard.of_handle(handle) == 3
    assert shard.of_handle("04" + "0" * 30) == 4 and shard.of_handle("05" + "0" * 30) == 3
    assert shard.of_handle("zz") == shard.of_handle("") == shard.of_handle("-1") == 3
    assert {shard.of_digest(f"{number:08x}") for number in range(20)} == set(range(5))
