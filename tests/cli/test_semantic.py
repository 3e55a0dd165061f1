# SPDX-License-Identifier: Apache-2.0
"""segship semantic: what it writes, what it says, what it refuses."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest

import segship
from segship.datasets.folders import read_label_image


@pytest.fixture
def bundle(small_semantic_bundle):
    return small_semantic_bundle.path


@pytest.fixture
def logits_bundle(small_semantic_logits):
    return small_semantic_logits.path


def test_every_format_is_written_and_agrees_with_python(run_json, photo, bundle, tmp_path):
    out = tmp_path / "out"
    formats = "overlay,classes,label-ids,colours,json"
    code, document = run_json("semantic", photo, "--model", bundle, "-o", out, "--format", formats)
    assert code == 0
    (image,) = document["images"]
    stem = "ein süßes Foto"
    suffixes = ["semantic.jpg", "classes.png", "label_ids.png", "colours.png", "semantic.json"]
    assert image["files"] == [str(out / f"{stem}.{suffix}") for suffix in suffixes]
    class_map = segship.load_semantic(bundle).segment(photo)
    assert np.array_equal(read_label_image(out / f"{stem}.classes.png"), class_map.array)
    assert {entry["name"]: entry["pixels"] for entry in image["classes"]} == class_map.areas()
    assert image["notes"] == list(class_map.notes) == ["scaled_to_graph", "padded_to_graph", "resized_class_map"]
    assert (document["architecture"], document["backend"]) == ("custom", "onnxruntime")
    assert json.loads((out / f"{stem}.semantic.json").read_bytes())["classes"] == image["classes"]


def test_text_for_people_names_classes_shares_notes_and_files(run, photo, bundle, tmp_path):
    code, out, _ = run("semantic", photo, "--model", bundle, "-o", tmp_path / "out")
    assert code == 0
    for words in ("180 x 120", "segment", " %", "--output logits", "ein süßes Foto.semantic.jpg", "onnxruntime"):
        assert words in out
    assert any(name in out for name in ("road", "building", "sky", "car", "pole", "terrain", "wall", "person"))


def test_windows_ratios_and_mirrors_are_those_of_python(run_json, photo, logits_bundle, tmp_path):
    window = ["--window", "75,107", "--ratios", "0.1,0.05", "--flip"]
    arguments = ["--model", logits_bundle, "-o", tmp_path / "out", "--format", "classes"]
    code, document = run_json("semantic", photo, *window, *arguments)
    assert code == 0
    made = document["images"][0]["made_by"]
    assert (made["window"], made["stride"], made["ratios"], made["flip"]) == ([75, 107], [50, 71], [0.1, 0.05], True)
    options = segship.SemanticOptions(window=(75, 107), ratios=(0.1, 0.05), flip=True)
    expected = segship.load_semantic(logits_bundle).segment(photo, options).array
    assert np.array_equal(read_label_image(tmp_path / "out" / "ein süßes Foto.classes.png"), expected)


def test_a_folder_standard_input_and_a_bad_image_in_a_batch(run_json, photo, bundle, tmp_path, monkeypatch):
    album = tmp_path / "album"
    album.mkdir()
    for name in ("b.png", "c.png"):
        (album / name).write_bytes(photo.read_bytes())
    (album / "a.png").write_bytes(photo.read_bytes()[:200])
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(photo.read_bytes())))
    code, document = run_json("semantic", album, "-", "--model", bundle, "-o", tmp_path / "out", "--format", "classes")
    assert code == 3
    assert [entry["code"] for entry in document["failed"]] == ["truncated"]
    names = [file.rpartition("/")[2] for image in document["images"] for file in image["files"]]
    assert names == ["b.classes.png", "c.classes.png", "image.classes.png"]


def test_nothing_is_overwritten_unless_asked(run, photo, bundle, tmp_path):
    arguments = ["semantic", photo, "--model", bundle, "-o", tmp_path / "out"]
    assert run(*arguments)[0] == 0
    code, _, err = run(*arguments)
    assert code == 6 and "output_exists" in err
    assert run(*arguments, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["--flip"], 3, "needs_logits"),
        (["--window", "96"], 3, "bad_option"),
        (["--stride", "5,5"], 3, "bad_option"),
        (["--multi-scale", "--flip"], 3, "bad_option"),
        (["--format", "png"], 6, "unknown_format"),
        (["--max-pixels", "100"], 3, "too_many_pixels"),
        (["--model", "tiny"], 3, "other_family"),
        (["--model", "semask_s_cityscapes"], 3, "no_bundle"),
    ],
)
def test_reason_codes_are_those_of_python(run_json, photo, bundle, tmp_path, arguments, exit_code, code):
    model = [] if "--model" in arguments else ["--model", bundle]
    found, document = run_json("semantic", photo, *model, *arguments, "-o", tmp_path / "out")
    assert (found, document["error"]["code"]) == (exit_code, code)


def test_a_look_that_the_graph_cannot_answer_is_refused_once_for_all_images(run_json, photo, bundle, tmp_path):
    code, document = run_json("semantic", photo, photo, "--model", bundle, "--flip", "-o", tmp_path / "out")
    assert code == 3 and document["error"]["code"] == "needs_logits" and not (tmp_path / "out").exists()


def test_a_model_must_be_named(run, photo):
    code, _, err = run("semantic", photo)
    assert code == 2 and "--model" in err
