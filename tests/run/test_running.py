# SPDX-License-Identifier: Apache-2.0
"""Runs: what is asked of which pictures, and what comes out."""

import io
import json
import os
import shutil
import tarfile
import time
from dataclasses import replace

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

import segship
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.promptable.everything.options import AmgOptions
from segship.run.plan import Items, PlanOptions, make_plan, read_plan
from segship.run.running import collect_garbage, estimate, pace, read_starts, start, status, verify
from segship.run.sources import find_items
from segship.run.storage import open_folder
from segship.run.work import COLUMNS, Worker
from tests.run.runs import AMG, LIMITS, OPTIONS, bad_files, picture, refused, rows_of, tables


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


def test_bytes_do_not_depend_on_how_many_work(source, expected, tmp_path):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    done = start(tmp_path, workers=3)
    assert done.root == expected[0].root and tables(tmp_path) == expected[1]
    assert verify(tmp_path)["root"] == done.root


def test_a_run_that_is_done_is_left_as_it_is(source, undisturbed, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(undisturbed, place)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    began = time.monotonic()
    make_plan(source, open_folder(place), OPTIONS)
    start(place, workers=1)
    assert time.monotonic() - began < 5
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    changed = {place / "tmp", place / "plan"}
    assert {path: at for path, at in before.items() if path not in changed} == {
        path: at for path, at in after.items() if path not in changed
    }


def test_twelve_kinds_of_bad_files_are_told_apart_and_good_ones_are_not_touched(source, expected, tmp_path):
    there, bad = tmp_path / "source", bad_files()
    shutil.copytree(source, there)
    for name, (data, _) in bad.items():
        (there / f"{name}.png").write_bytes(data)
    os.mkfifo(there / "pipe.png")
    run = tmp_path / "run"
    plan = make_plan(there, open_folder(run), replace(OPTIONS, limits=LIMITS))
    (there / "sub0" / "0.png").write_bytes(picture(1000))
    (there / "sub1" / "1.png").unlink()
    done = start(run, workers=2)
    commits = [json.loads(path.read_bytes()) for path in (run / "commits").iterdir()]
    found = {entry["name"]: entry["code"] for commit in commits for entry in commit["quarantined"]}
    assert found == {
        **{f"{name}.png": code for name, (_, code) in bad.items()},
        **{"pipe.png": "not_a_file", "sub0/0.png": "changed_since_plan", "sub1/1.png": "vanished"},
    }
    assert len(found) == len(set(found.values())) == 12
    assert plan.items == 18 + len(bad) + 1 and done.done == 16
    assert rows_of(tables(run)) == [row for row in rows_of(expected[1]) if row["image"] not in found]
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


@pytest.mark.parametrize("damage", ["in a header", "before a header", "in a picture", "before the end", "turned"])
def test_archives_that_are_cut_or_damaged_lose_nothing_in_silence(source, tmp_path, damage):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(3):
            archive.add(source / f"sub{number}" / f"{number}.png", f"{number}.png")
        second, end = archive.getmember("2.png").offset, archive.offset
    whole = stream.getvalue()
    cut = {"in a header": second + 100, "before a header": second, "in a picture": second + 600, "before the end": end}
    data = whole[: cut[damage]] if damage in cut else whole[:second] + b"?" + whole[second + 1 :]
    (tmp_path / "a.tar").write_bytes(data)
    assert refused(InputError, lambda: list(find_items(tmp_path / "a.tar"))) == "bad_source"
    (tmp_path / "a.tar").write_bytes(whole)
    assert len(list(find_items(tmp_path / "a.tar"))) == 3


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
    [
        ("a.csv", b"x,y\n1,2\n"),
        ("b.csv", b"image,image\na,b\n"),
        ("a.parquet", b"no"),
        ("a.tar", b"no tar at all" * 100),
        ("a.zip", b"PK"),
    ],
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
    with pytest.raises(InputError, match="shard_items 4, now 5") as caught:
        make_plan(source, folder, other)
    assert caught.value.code == "other_plan"
    assert refused(InputError, PlanOptions, amg=AmgOptions(deadline_seconds=1.0)) == "bad_option"
    assert refused(BundleError, verify, tmp_path / "run") == "not_finished"
    (tmp_path / "run" / "plan.json").write_text('{"format": 2}')
    assert refused(BundleError, read_plan, folder) == "bad_plan"


def test_cells_of_a_csv_are_taken_as_they_stand(tmp_path):
    prompts = '{""points"": [[1, 2]]' + " " * 1_040_000 + "}"
    rows = [b"007,", b'"two\nlines.png",', b"\xff.png,", b"x" * 20_000 + f',"{prompts}"'.encode()]
    (tmp_path / "a.csv").write_bytes(b"image,prompts\n" + b"\n".join(rows) + b"\n")
    items = list(find_items(tmp_path / "a.csv"))
    assert [item.name for item in items] == ["007", "two\nlines.png", "\udcff.png", "x" * 20_000]
    assert [len(item.prompts) > 1_040_000 for item in items] == [False, False, False, True]


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


def test_a_table_that_is_missing_says_how_it_comes_back(undisturbed, expected, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(undisturbed, place)
    gone = json.loads((place / "commits" / "00000003.json").read_bytes())["file"]
    (place / gone).unlink()
    for function in (start, verify):
        with pytest.raises(BundleError) as caught:
            function(place)
        assert caught.value.code == "bad_commit" and f"{gone} is missing" in str(caught.value)
        assert "delete manifest.json and commits/00000003.json and start the run again" in str(caught.value)
    (place / "manifest.json").unlink()
    (place / "commits" / "00000003.json").unlink()
    assert start(place, workers=1).root == expected[0].root and tables(place) == expected[1]


def test_a_plan_that_was_changed_is_told(undisturbed, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(undisturbed, place)
    before = (place / "plan.json").read_bytes()
    (place / "plan.json").write_bytes(before.replace(b'"points_per_side": 3', b'"points_per_side": 4'))
    assert refused(BundleError, verify, place) == "bad_plan"
    (place / "plan.json").write_bytes(before)
    verify(place)
    (items,) = (place / "plan").iterdir()
    for change in (lambda: items.write_bytes(items.read_bytes()[:100]), items.unlink):
        change()
        assert refused(BundleError, verify, place) == "bad_plan"


def test_a_run_is_worked_on_with_what_it_was_planned_with(undisturbed, monkeypatch):
    folder = open_folder(undisturbed)
    plan = read_plan(folder)
    other = replace(plan, model={**plan.model, "digest": "0" * 64})
    assert refused(BundleError, Worker, folder, other) == "other_model"
    monkeypatch.setattr("segship.run.plan.versions", lambda: {**plan.versions, "onnxruntime": "1.0"})
    with pytest.raises(BackendUnavailable, match=r"onnxruntime .*, and here is 1\.0") as caught:
        Worker(folder, plan)
    assert caught.value.code == "other_versions"


def test_damaged_files_of_a_finished_run_are_named(undisturbed, expected, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(undisturbed, place)
    for folder in ("commits", "attempts", "data", "starts"):
        (place / folder / ".DS_Store").write_bytes(b"\0")
    (place / "starts" / "00000009.json").write_bytes(b"{")
    assert len(read_starts(open_folder(place))) == 1 and start(place).root == expected[0].root
    assert collect_garbage(place) == []
    manifest, commit = place / "manifest.json", place / "commits" / "00000002.json"

    def tells(name, *functions):
        for function in functions:
            with pytest.raises(BundleError, match=name) as caught:
                function(place)
            assert caught.value.code == "bad_commit" and "start the run again" in str(caught.value)

    whole = commit.read_bytes()
    commit.write_bytes(whole[:50])
    tells("commits/00000002.json", verify, status, collect_garbage)
    commit.unlink()
    tells("commits/00000002.json is missing", start, verify, collect_garbage)
    commit.write_bytes(whole)
    manifest.write_bytes(manifest.read_bytes()[:50])
    tells("manifest.json", start, verify, status)
    manifest.unlink()
    assert start(place).root == expected[0].root


def test_without_pyarrow_the_extra_is_named(source, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("segship.run.plan.has_pyarrow", lambda: False)
    for function in (start, estimate, verify):
        assert refused(BackendUnavailable, function, undisturbed) == "pyarrow_missing"
    with pytest.raises(BackendUnavailable, match=r'pip install "segship\[run\]"'):
        make_plan(source, open_folder(tmp_path), OPTIONS)


def test_the_rate_leaves_out_what_lies_between_starts():
    # Two workers, of which one ends later; a night; then one that is faster.
    spans = [(0, 100, 10), (0, 120, 10), (50_000, 50_100, 20)]
    seconds, per_hour = pace(spans)
    assert seconds == 220 and per_hour == pytest.approx(3600 * 40 / 220)
    assert pace([]) == (0.0, None)
    # Ten minutes of ten an hour, then many of a hundred an hour: the last count.
    slow = [(number * 360, (number + 1) * 360, 1) for number in range(10)]
    fast = [(3600 + number * 36, 3600 + (number + 1) * 36, 1) for number in range(40)]
    assert pace(slow + fast)[1] == pytest.approx(100)


def test_an_estimate_is_near_the_truth(source, tmp_path, stub):
    stub.setenv("SEGSHIP_STUB_SECONDS", "0.1")
    make_plan(source, open_folder(tmp_path), OPTIONS)
    found = estimate(tmp_path, workers=2, price_per_hour=3.6)
    expected, low, high = found.seconds
    assert (found.items, found.samples, found.without_answer) == (18, 10, 0)
    assert 0.9 < expected < 1.8 and 0 < low <= expected <= high < 3 * expected
    assert found.price == pytest.approx((expected / 1000, low / 1000, high / 1000))
    # Nothing was begun.
    assert not (tmp_path / "attempts").exists()
    start(tmp_path, workers=2)
    assert refused(InputError, estimate, tmp_path) == "nothing_found"


def test_shards_are_a_part_of_all(tmp_path):
    def shards(count):
        (tmp_path / "list.txt").write_text("".join(f"{number}.png\n" for number in range(count)))
        return make_plan(tmp_path / "list.txt", open_folder(tmp_path / str(count)), PlanOptions(amg=AMG)).shards

    assert [shards(count) for count in (3, 40, 1000, 20_000)] == [1, 10, 63, 79]
