# SPDX-License-Identifier: Apache-2.0
"""segship everything: what it writes, what it says, what it refuses."""

import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

import segship
from segship.cli.everything import parse_bytes
from segship.errors import InputError

# The model inside the package gives low scores of its own; these let some masks through.
LOW = ["--points-per-side", "4", "--pred-iou-thresh", "0.1", "--stability-score-thresh", "0"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_files_hold_what_python_gives(run_json, photo, tmp_path):
    code, document = run_json("everything", photo, *LOW, "-o", tmp_path / "out")
    assert code == 0
    (image,) = document["images"]
    stem = "ein süßes Foto"
    assert image["files"] == [str(tmp_path / "out" / f"{stem}.{end}") for end in ("overlay.jpg", "sa1b.json")]
    options = segship.AmgOptions(points_per_side=4, pred_iou_thresh=0.1, stability_score_thresh=0)
    records = segship.generate_masks(segship.load("tiny"), photo, options)
    annotations = json.loads((tmp_path / "out" / f"{stem}.sa1b.json").read_text(encoding="utf-8"))["annotations"]
    assert image["masks"] == len(annotations) == len(records) > 0
    for annotation, record in zip(annotations, records, strict=True):
        assert np.array_equal(coco_mask.decode(annotation["segmentation"]).astype(bool), record.mask)
    assert image["points"] == image["cost"]["points"] == 16
    assert 0 < image["coverage"] <= 1


def test_a_picture_without_survivors_is_no_failure(run_json, photo, tmp_path):
    arguments = ["--points-per-side", "2", "--pred-iou-thresh", "1"]
    formats = "overlay,sa1b,coco,instances,panoptic,npz"
    code, document = run_json("everything", photo, *arguments, "-o", tmp_path / "out", "--format", formats)
    assert code == 0 and document["images"][0]["masks"] == 0
    files = document["images"][0]["files"]
    assert len(files) == 6
    for file in files:
        if file.endswith(".json"):
            with open(file, encoding="utf-8") as text:
                assert json.load(text)["annotations"] == []


def test_thresholds_that_leave_nothing_are_told(run, run_json, photo, tmp_path):
    arguments = [
        "everything",
        photo,
        "--points-per-side",
        "2",
        "--pred-iou-thresh",
        "0.99",
        "-o",
        tmp_path,
        "--overwrite",
    ]
    code, out, _ = run(*arguments)
    assert code == 0 and "note: all_filtered" in out
    assert "no mask is left of 12: pred_iou_thresh (0.99; 0.4 suits the model) removed 12" in out
    image = run_json(*arguments)[1]["images"][0]
    assert image["removed"] == {
        "pred_iou_thresh": 12,
        "stability_score_thresh": 0,
        "crop_edge": 0,
        "refine_iou_thresh": 0,
    }


def test_a_huge_grid_is_not_begun_unless_forced(run_json, photo, model, tmp_path):
    arguments = ["everything", photo, "--points-per-side", "65", "-o", tmp_path / "out"]
    code, document = run_json(*arguments)
    assert (code, document["error"]["code"]) == (3, "over_cost") and "--force-cost" in document["error"]["message"]
    arguments = [
        "everything",
        photo,
        "--points-per-side",
        "1",
        "--crop-n-layers",
        "3",
        "--model",
        model,
        "-o",
        tmp_path / "out",
    ]
    assert run_json(*arguments)[0] == 3
    assert run_json(*arguments, "--force-cost")[0] == 0


def test_a_dry_run_of_many_names_no_folder_for_files(run, photo, tmp_path):
    shutil.copyfile(photo, tmp_path / "b.png")
    assert run("everything", tmp_path, "--dry-run")[1].endswith("2 done, 0 skipped, 0 failed\n")


def test_a_dry_run_names_the_cost_and_writes_nothing(run, run_json, photo, tmp_path):
    arguments = ["everything", photo, "--dry-run", "--crop-n-layers", "1", "-o", tmp_path / "out"]
    code, out, _ = run(*arguments)
    assert code == 0 and not (tmp_path / "out").exists()
    for words in ("5,120", "15,360", "MB", "pred_iou_thresh", "stability_score_thresh"):
        assert words in out
    _, document = run_json(*arguments)
    (cost,) = document["images"]
    assert document["dry_run"] is True and (cost["crops"], cost["points"]) == (5, 5120)
    assert cost["refused"] is None
    huge = [*arguments, "--points-per-side", "65"]
    assert "4,225 points a crop" in run_json(*huge)[1]["images"][0]["refused"]
    assert "it would be refused: the grid has 4,225 points" in run(*huge)[1]
    assert run_json(*huge, "--force-cost")[1]["images"][0]["refused"] is None


def test_text_for_people_names_masks_coverage_thresholds_and_files(run, photo, tmp_path):
    code, out, _ = run("everything", photo, *LOW, "-o", tmp_path / "out", "--partition")
    assert code == 0
    for words in ("180 x 120", "masks cover", "of 16 points", "above 0.1", "overlay.jpg", "onnxruntime"):
        assert words in out


def test_deadline_and_memory_are_passed_on(run_json, photo, tmp_path):
    arguments = ["--deadline", "0.000001", "--memory", "100MB", *LOW]
    code, document = run_json("everything", photo, *arguments, "-o", tmp_path / "out")
    (image,) = document["images"]
    assert code == 0 and image["notes"] == ["deadline_reached"] and image["points"] < 16
    assert image["cost"]["peak_bytes"] <= 100_000_000


def test_grids_come_from_a_file(run_json, photo, tmp_path):
    path = tmp_path / "grids.json"
    path.write_text("[[[0.5, 0.5], [0.25, 0.75], [0.1, 0.2]]]")
    arguments = ["--point-grids", path, "--pred-iou-thresh", "0", "-o", tmp_path / "out"]
    _, document = run_json("everything", photo, *arguments)
    assert document["images"][0]["points"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--points-per-side", "0"], "--points-per-side is 0"),
        (["--pred-iou-thresh", "nan"], "--pred-iou-thresh is nan"),
        (["--crop-n-layers", "-1"], "--crop-n-layers is -1"),
        (["--memory", "much"], "--memory is 'much'"),
        (["--memory", "1MB"], "needs at least"),
        (["--format", "jpg"], "no output format"),
    ],
)
def test_bad_parameters_are_refused_by_name(run_json, photo, tmp_path, arguments, words):
    code, document = run_json("everything", photo, *arguments, "-o", tmp_path / "out")
    assert code in (3, 6) and words in document["error"]["message"]


def test_grids_beside_points_and_broken_grids_are_refused(run_json, photo, tmp_path):
    path = tmp_path / "grids.json"
    for text, more, words in (
        ("[[[0.5, 0.5]]]", ["--points-per-side", "8"], "exactly one"),
        ("[[", [], "not JSON"),
        ('{"a": 1}', [], "holds a dict"),
        ("[[[2, 2]]]", [], "point_grids[0]"),
    ):
        path.write_text(text)
        code, document = run_json("everything", photo, "--point-grids", path, *more)
        assert code == 3 and words in document["error"]["message"]


def test_a_reduced_image_gives_masks_of_its_size(run_json, photo, tmp_path):
    _, document = run_json("everything", photo, *LOW, "--reduce", "2", "-o", tmp_path / "out")
    (image,) = document["images"]
    assert (image["image"]["width"], image["image"]["height"]) == (90, 60) and image["notes"] == ["reduced_2"]


@pytest.mark.parametrize(("formats", "more"), [("labelme,overlay", ()), ("coco", ()), ("coco,panoptic", ["--merge"])])
def test_a_reduced_image_is_not_written_beside_the_name_of_the_whole(run_json, photo, tmp_path, formats, more):
    out = tmp_path / "out"
    code, document = run_json("everything", photo, *LOW, "--reduce", "2", "--format", formats, *more, "-o", out)
    assert code == 3 and document["error"]["code"] == "bad_option" and not out.exists()
    assert "read it without --reduce, or make the file smaller" in document["error"]["message"]


def test_one_bad_image_does_not_stop_the_others(run_json, photo, tmp_path):
    code, document = run_json("everything", tmp_path / "none.png", photo, *LOW, "-o", tmp_path / "out")
    assert code == 3
    assert [entry["code"] for entry in document["failed"]] == ["missing_file"]
    assert len(document["images"]) == 1
    code, document = run_json("everything", tmp_path / "none.png", photo, "--dry-run")
    assert code == 3 and len(document["failed"]) == len(document["images"]) == 1


def test_standard_input_is_an_image(run_json, photo, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(photo.read_bytes())))
    code, document = run_json("everything", "-", *LOW, "-o", tmp_path / "out")
    assert code == 0 and document["images"][0]["files"][0].endswith("image.overlay.jpg")


def test_no_image_is_refused(run_json):
    code, document = run_json("everything")
    assert code == 3 and document["error"]["code"] == "no_images"


@pytest.mark.parametrize(
    ("text", "expected"), [("1000", 1000), ("2kb", 2000), ("1.5 GB", 1_500_000_000), ("1GiB", 2**30), ("3M", 3_000_000)]
)
def test_bytes_are_read_with_their_units(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1e9", "1 PB", "0x10"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(InputError, match="--memory"):
        parse_bytes(text)
