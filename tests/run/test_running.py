# SPDX-License-Identifier: Apache-2.0
"""Runs: each picture once, whatever ends a worker or a driver, and the same bytes however it was done."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

import segship
from segship.errors import BundleError, InputError, OutputError
from segship.promptable.everything.options import AmgOptions
from segship.run.local import LocalExecutor
from segship.run.plan import Items, PlanOptions, make_plan, read_plan
from segship.run.running import collect_garbage, start, status, verify
from segship.run.sources import find_items
from segship.run.storage import open_folder
from segship.run.work import COLUMNS

AMG = AmgOptions(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0)
OPTIONS = PlanOptions(amg=AMG, shard_items=4)


def picture(seed, size=(60, 40)):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number in range(18):
        (folder / f"sub{number % 3}").mkdir(exist_ok=True)
        (folder / f"sub{number % 3}" / f"{number}.png").write_bytes(picture(number))
    return folder


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """An undisturbed run: its status and the bytes of its tables."""
    place = tmp_path_factory.mktemp("expected") / "run"
    make_plan(source, open_folder(place), OPTIONS)
    done = start(place, workers=1)
    return done, tables(place)


def tables(place):
    return {path.name: path.read_bytes() for path in sorted((Path(place) / "data").iterdir())}


def refused(kind, function, *arguments, **named):
    with pytest.raises(kind) as caught:
        function(*arguments, **named)
    return caught.value.code


def test_rows_are_what_everything_gives(source, expected, tmp_path):
    done, data = expected
    assert (done.items, done.done, done.quarantined, done.sealed) == (18, 18, {}, True) and done.shards == 5
    rows = pyarrow.concat_tables(pyarrow.parquet.read_table(io.BytesIO(table)) for table in data.values()).to_pylist()
    assert tuple(rows[0]) == COLUMNS and len(rows) == done.rows
    with segship.load("tiny", threads=1) as predictor:
        for name in ("sub0/3.png", "sub1/7.png"):
            found = [row for row in rows if row["image"] == name]
            records = segship.generate_masks(predictor, source / name, AMG)
            assert [row["counts"] for row in found] == [record.rle["counts"] for record in records]
            assert [row["predicted_iou"] for row in found] == [record.predicted_iou for record in records]
            assert [row["bbox"] for row in found] == [list(record.bbox) for record in records]
            assert [row["index"] for row in found] == list(range(len(records)))


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_do_not_depend_on_how_many_work(source, expected, tmp_path, workers):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    done = start(tmp_path, workers=workers)
    assert done.root == expected[0].root and tables(tmp_path) == expected[1]
    assert verify(tmp_path)["root"] == done.root


def test_bytes_do_not_depend_on_the_order_of_shards(source, expected, tmp_path):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    shards = list(range(5))
    random.Random(3).shuffle(shards)
    LocalExecutor(1).run(str(tmp_path), shards, lambda shard: None)
    assert start(tmp_path).root == expected[0].root and tables(tmp_path) == expected[1]


def test_a_run_that_is_done_is_left_as_it_is(source, tmp_path):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    start(tmp_path, workers=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    began = time.monotonic()
    make_plan(source, open_folder(tmp_path), OPTIONS)
    start(tmp_path, workers=1)
    assert time.monotonic() - began < 5
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != "tmp"}
    assert {path: at for path, at in before.items() if path.name != "tmp" and path != tmp_path / "plan"} == {
        path: at for path, at in after.items() if path != tmp_path / "plan"
    }


DRIVER = "import sys; from segship.run.running import start; start(sys.argv[1], workers=2)"


def drive(place, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(place)], start_new_session=True, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("seed", range(3))
def test_kills_of_anything_at_any_time(source, expected, tmp_path, seed):
    draw = random.Random(seed)
    make_plan(source, open_folder(tmp_path), OPTIONS)
    for _ in range(3):
        driver = drive(tmp_path)
        time.sleep(draw.uniform(0.3, 2.5))
        victim = draw.choice(["driver", "worker", "all"])
        workers = subprocess.run(["pgrep", "-P", str(driver.pid)], capture_output=True, text=True).stdout.split()
        if victim == "worker" and workers:
            os.kill(int(draw.choice(workers)), signal.SIGKILL)
            time.sleep(0.2)
        if victim == "driver":
            driver.kill()
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    done = start(tmp_path, workers=2)
    assert (done.done, done.quarantined) == (18, {})
    assert done.root == expected[0].root and tables(tmp_path) == expected[1]
    verify(tmp_path)


def test_two_drivers_at_once_make_one_set_of_commits(source, expected, tmp_path):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    drivers = [drive(tmp_path) for _ in range(2)]
    assert [driver.wait(120) for driver in drivers] == [0, 0]
    assert verify(tmp_path)["root"] == expected[0].root and tables(tmp_path) == expected[1]
    assert collect_garbage(tmp_path) == []


def test_a_picture_that_kills_its_worker_is_left_out_alone(source, tmp_path, monkeypatch):
    there = tmp_path / "source"
    shutil.copytree(source, there)
    (there / "z.png").write_bytes(picture(99) + b"deadly")
    monkeypatch.setenv(
        "PYTHONPATH", f"{Path(__file__).parent / 'deadly'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    make_plan(there, open_folder(tmp_path / "run"), OPTIONS)
    done = start(tmp_path / "run", workers=2)
    assert (done.done, done.quarantined) == (18, {"worker_died": 1})
    assert len(list((tmp_path / "run" / "deaths").iterdir())) == 2
    verify(tmp_path / "run")
    commits = [json.loads(path.read_bytes()) for path in (tmp_path / "run" / "commits").iterdir()]
    (lost,) = [entry for commit in commits for entry in commit["quarantined"]]
    assert (lost["name"], lost["attempts"]) == ("z.png", 2) and "SIGSEGV" in lost["message"]


def test_bad_files_are_told_apart_and_good_ones_are_not_touched(source, expected, tmp_path):
    there, good = tmp_path / "source", picture(3)
    shutil.copytree(source, there)
    bad = {
        "empty": (b"", "empty_file"),
        "text": (b"hello", "unknown_format"),
        "short": (good[:60], "truncated"),
        "pdf": (b"%PDF-1.4 ", "format_not_allowed"),
        "thin": (picture(1, (8, 16_000)), "aspect_ratio"),
        "damaged": (good[:60] + bytes(8) + good[68:], "corrupt"),
    }
    for name, (data, _) in bad.items():
        (there / f"{name}.png").write_bytes(data)
    os.mkfifo(there / "pipe.png")
    run = tmp_path / "run"
    plan = make_plan(there, open_folder(run), OPTIONS)
    (there / "sub0" / "0.png").write_bytes(picture(1000))
    (there / "sub1" / "1.png").unlink()
    done = start(run, workers=2)
    reasons = {"not_a_file": 1, "changed_since_plan": 1, "vanished": 1}
    for _, code in bad.values():
        reasons[code] = reasons.get(code, 0) + 1
    commits = [json.loads(path.read_bytes()) for path in (run / "commits").iterdir()]
    found = {entry["name"]: entry["code"] for commit in commits for entry in commit["quarantined"]}
    assert done.quarantined == reasons, found
    assert plan.items == 18 + len(bad) + 1 and done.done == 16
    verify(run)


def test_prompts_come_from_a_table(source, tmp_path):
    rows = {"image": ["sub0/0.png", "sub1/1.png", "sub2/2.png"], "x": [10, 20, None], "y": [11, 21, None]}
    pyarrow.csv.write_csv(pyarrow.table(rows), source / "points.csv")
    try:
        make_plan(source / "points.csv", open_folder(tmp_path), PlanOptions(task="prompts"))
        done = start(tmp_path, workers=1)
    finally:
        (source / "points.csv").unlink()
    assert (done.done, done.quarantined, done.rows) == (2, {"no_prompts": 1}, 2)
    rows = pyarrow.parquet.read_table(tmp_path / "data").to_pylist()
    with segship.load("tiny", threads=1) as predictor:
        for row in rows:
            prompts = json.loads(row["prompt"])
            found = predictor.predict(source / row["image"], points=prompts["points"], multimask_output="auto")
            assert row["counts"] == found.rles[0][0]["counts"] and row["area"] == int(found.areas[0, 0])


def test_classes_are_rows_too(source, tmp_path, small_semantic_export):
    bundle = str(small_semantic_export[0].path)
    make_plan(source / "sub0", open_folder(tmp_path), PlanOptions(task="semantic", bundle=bundle))
    done = start(tmp_path, workers=1)
    assert done.done == 6
    rows = pyarrow.parquet.read_table(tmp_path / "data").to_pylist()
    areas = {}
    for row in rows:
        areas[row["image"]] = areas.get(row["image"], 0) + row["area"]
    assert set(areas.values()) == {60 * 40} and all(row["category"] for row in rows)


def test_archives_are_read_in_place(source, expected, tmp_path):
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w") as archive:
        for number in (0, 3):
            archive.add(source / f"sub{number % 3}" / f"{number}.png", f"{number}.png")
        archive.add(source / "sub0", "folder", recursive=False)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("notes.json"))
    items = list(find_items(tmp_path / "shards"))
    assert sorted(item.name for item in items) == ["a.tar/0.png", "a.tar/3.png"]
    make_plan(tmp_path / "shards", open_folder(tmp_path / "run"), OPTIONS)
    assert start(tmp_path / "run", workers=1).done == 2
    rows = pyarrow.parquet.read_table(tmp_path / "run" / "data").to_pylist()
    own = [row for table in expected[1].values() for row in pyarrow.parquet.read_table(io.BytesIO(table)).to_pylist()]
    assert [row["counts"] for row in rows if row["image"] == "a.tar/0.png"] == [
        row["counts"] for row in own if row["image"] == "sub0/0.png"
    ]
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == ["a.tar"]


def test_lists_name_paths_beside_them(source, tmp_path):
    (source / "list.txt").write_bytes(b"sub0/0.png\r\n# no\n\nsub1/1.png\nnot-there.png\n")
    try:
        names = {item.name: item.bytes for item in find_items(source / "list.txt")}
    finally:
        (source / "list.txt").unlink()
    assert set(names) == {"sub0/0.png", "sub1/1.png", "not-there.png"} and names["not-there.png"] == -1


def test_names_that_are_no_text_are_read(tmp_path):
    there = tmp_path / "source"
    there.mkdir()
    for name in (b"\xff\xfe.png", "\n\u202e.png".encode(), b"-rf.png", b"a'b;c.png"):
        with open(os.path.join(os.fsencode(there), name), "wb") as file:
            file.write(picture(1))
    make_plan(there, open_folder(tmp_path / "run"), OPTIONS)
    assert start(tmp_path / "run", workers=1).done == 4


@pytest.mark.parametrize(
    "name, data",
    [("a.csv", b"x,y\n1,2\n"), ("a.parquet", b"no"), ("a.tar", b"no tar at all" * 100), ("a.zip", b"PK")],
)
def test_what_is_no_source_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert refused(InputError, lambda: list(find_items(tmp_path / name))) == "bad_source"


def test_plans_that_cannot_be_are_refused(source, tmp_path):
    folder = open_folder(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert refused(InputError, make_plan, tmp_path / "empty", folder, OPTIONS) == "nothing_found"
    assert refused(InputError, make_plan, tmp_path / "nowhere", folder, OPTIONS) == "no_source"
    assert refused(InputError, make_plan, source, folder, PlanOptions(task="semantic")) == "other_family"
    assert refused(InputError, make_plan, source, folder, PlanOptions(task="prompts")) == "no_prompts"
    assert refused(BundleError, read_plan, folder) == "no_plan"
    (source / "twice.txt").write_text("sub0/0.png\nsub0/0.png\n")
    try:
        assert refused(InputError, make_plan, source / "twice.txt", folder, OPTIONS) == "same_name"
    finally:
        (source / "twice.txt").unlink()
    make_plan(source, folder, OPTIONS)
    other = PlanOptions(amg=AMG, shard_items=5)
    assert refused(InputError, make_plan, source, folder, other) == "other_plan"
    assert refused(InputError, PlanOptions, amg=AmgOptions(deadline_seconds=1.0)) == "bad_option"
    assert refused(BundleError, verify, tmp_path / "run") == "not_finished"
    (tmp_path / "run" / "plan.json").write_text('{"format": 2}')
    assert refused(BundleError, read_plan, folder) == "bad_plan"


@pytest.mark.parametrize("rows", [",3,4", "a.png,abc,4", "a.png,3,inf"], ids=["no image", "words", "infinity"])
def test_rows_that_cannot_be_asked_are_refused_before_the_run(tmp_path, rows):
    (tmp_path / "points.csv").write_text(f"image,x,y\nb.png,1,2\n{rows}\n")
    assert refused(InputError, list, find_items(tmp_path / "points.csv")) == "bad_source"


def test_looking_for_a_run_leaves_nothing_behind(tmp_path):
    for function in (status, verify, start):
        assert refused(BundleError, function, tmp_path / "nowhere") == "no_plan"
    assert refused(InputError, make_plan, tmp_path / "none", open_folder(tmp_path / "nowhere"), OPTIONS) == "no_source"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, -1, 100_000])
def test_workers_that_cannot_be_are_refused(tmp_path, workers):
    assert refused(InputError, start, tmp_path, workers=workers) == "bad_option"


def test_plans_are_in_the_order_of_ids_and_know_their_options(source, tmp_path):
    plan = make_plan(source, open_folder(tmp_path), OPTIONS)
    items = Items(open_folder(tmp_path), plan)
    shards = [items.of(shard) for shard in range(plan.shards)]
    ids = [item.id for shard in shards for item in shard]
    assert ids == sorted(ids) and len(set(ids)) == 18 and max(map(len, shards)) == 4
    assert read_plan(open_folder(tmp_path)).to_bytes() == plan.to_bytes()
    small = PlanOptions(amg=AMG, shard_bytes=2_500)
    assert make_plan(source, open_folder(tmp_path / "small"), small).shards > 5


def test_a_full_disk_stops_a_run_that_goes_on_later(source, expected, tmp_path, monkeypatch):
    from segship.run import storage

    make_plan(source, open_folder(tmp_path), OPTIONS)
    folder = open_folder(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage.RealDisk, "sync", full)
        assert refused(OutputError, start, tmp_path, workers=1) == "no_space"
    assert folder.names("commits") == [] and folder.names("tmp") == []
    assert start(tmp_path, workers=2).root == expected[0].root
    assert status(tmp_path).to_dict()["seconds_left"] == 0
