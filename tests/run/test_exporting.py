# SPDX-License-Identifier: Apache-2.0
"""What a run found, in the formats of others; and a new run of what it could not answer."""

import json

import pytest

import segship
from segship.errors import BundleError, InputError, OutputError
from segship.run.exporting import _Places, export, retry
from segship.run.plan import PlanOptions, make_plan
from segship.run.running import start
from segship.run.storage import open_folder
from tests.run.runs import AMG, OPTIONS, picture, refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).write_bytes(picture(len(name) + ord(name[0]) + ord(name[2])))
    (folder / "photos" / "bad.png").write_bytes(b"no")
    make_plan(folder / "photos", open_folder(folder / "run"), OPTIONS)
    start(folder / "run", workers=1)
    return folder


def test_coco_is_what_everything_writes(finished, tmp_path):
    assert export(finished / "run", tmp_path, ["coco"]) == 3
    document = json.loads((tmp_path / "coco.json").read_bytes())
    assert sorted(image["file_name"] for image in document["images"]) == ["a/1.png", "b/1.png", "b/2.png"]
    numbers = {image["file_name"]: image["id"] for image in document["images"]}
    with segship.load("tiny", threads=1) as predictor:
        for name, number in numbers.items():
            found = [entry for entry in document["annotations"] if entry["image_id"] == number]
            records = segship.generate_masks(predictor, finished / "photos" / name, AMG)
            assert [entry["segmentation"]["counts"] for entry in found] == [one.rle["counts"] for one in records]


def test_files_of_each_picture_lie_where_it_lay(finished, tmp_path):
    told = []
    export(finished / "run", tmp_path, ["sa1b", "labelme"], told=lambda done, of: told.append((done, of)))
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json"))
    assert files == sorted(f"{stem}.{kind}.json" for stem in ("a/1", "b/1", "b/2") for kind in ("labelme", "sa1b")), (
        files
    )
    assert told[-1] == (3, 4)
    assert refused(OutputError, export, finished / "run", tmp_path, ["sa1b"]) == "output_exists"
    assert export(finished / "run", tmp_path, ["sa1b"], overwrite=True) == 3


def test_pictures_that_differ_in_their_extension_have_files_of_their_own():
    names = ["a/x.jpg", "a/x.png", "b.png", "a/x.jpg.png", "X/b.png", "x/B.png"]
    places = _Places(lambda: iter(names))
    found = [places.of(name).as_posix() for name in names]
    assert found[:3] == ["a/x.jpg", "a/x.png", "b"] and len({place.casefold() for place in found}) == len(names)


def test_formats_that_show_pictures_read_them_again(finished, tmp_path):
    export(finished / "run", tmp_path, ["yolo", "overlay"])
    assert len(list((tmp_path / "yolo").rglob("*.txt"))) == 3
    assert len(list(tmp_path.rglob("*.overlay.jpg"))) == 3


def test_what_is_not_finished_is_not_exported(finished, tmp_path):
    make_plan(finished / "photos", open_folder(tmp_path / "run"), OPTIONS)
    assert refused(BundleError, export, tmp_path / "run", tmp_path / "out", ["coco"]) == "not_finished"
    assert not (tmp_path / "out" / "coco.json").exists()
    assert refused(BundleError, retry, tmp_path / "run", tmp_path / "again") == "not_finished"


def test_pictures_without_an_answer_are_tried_again_as_they_are_now(finished, tmp_path):
    assert refused(InputError, retry, finished / "run", tmp_path / "none", ["worker_died"]) == "nothing_found"
    bad = finished / "photos" / "bad.png"
    bad.write_bytes(picture(5))
    try:
        plan = retry(finished / "run", tmp_path / "again", ["unknown_format"])
        done = start(tmp_path / "again", workers=1)
    finally:
        bad.write_bytes(b"no")
    assert (plan.items, done.done, done.quarantined) == (1, 1, {})


def test_prompted_masks_keep_their_objects(finished, tmp_path):
    prompts = json.dumps({"objects": [{"points": [[10, 10]]}, {"boxes": [[5, 5, 40, 30]]}]}).replace('"', '""')
    (finished / "photos" / "prompts.csv").write_text(f'image,prompts\na/1.png,"{prompts}"\n')
    options = PlanOptions(task="prompts", multimask_output=True)
    make_plan(finished / "photos" / "prompts.csv", open_folder(tmp_path / "run"), options)
    (finished / "photos" / "prompts.csv").unlink()
    assert start(tmp_path / "run", workers=1).rows == 6
    export(tmp_path / "run", tmp_path / "out", ["json"])
    document = json.loads(next((tmp_path / "out").rglob("*.json")).read_bytes())
    assert document["image"] == {"file_name": "1.png", "width": 60, "height": 40}
