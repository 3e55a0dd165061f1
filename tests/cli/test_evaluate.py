# SPDX-License-Identifier: Apache-2.0
"""segship evaluate and segship train-ids: what they print, write and refuse."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.streets.scenes import write_ade20k, write_cityscapes
from segship.cli.semantic import make_options, parse_numbers, parse_pair
from segship.errors import InputError
from segship.semantic.views import MULTI_SCALE_RATIOS, SemanticOptions

SIZE = (48, 96)


@pytest.fixture
def cities(tmp_path):
    write_cityscapes(tmp_path / "cities", {"val": 3}, size_hw=SIZE)
    return tmp_path / "cities"


def arguments(cities, tmp_path, *more, data_set="cityscapes"):
    given = ["evaluate", data_set, "--data", cities, "--workers", "0", "-o", tmp_path / "out"]
    return [*given, "--predictions", cities / ("gtFine" if data_set == "cityscapes" else "annotations"), *more]


def test_people_get_a_table_with_two_decimals_and_the_file(run, cities, tmp_path):
    code, out, _ = run(*arguments(cities, tmp_path))
    assert code == 0
    for words in ("class", "traffic light", "100.00", "aAcc 100.00  mIoU 100.00  mAcc 100.00", "3 of 3 pictures"):
        assert words in out
    assert "cityscapes.val.gtFine.evaluation.json" in out.replace("\n", "")


def test_programs_get_one_document_and_the_file_holds_the_same(run_json, cities, tmp_path):
    code, document = run_json(*arguments(cities, tmp_path, "--ids", "label"))
    assert code == 0 and document["mIoU"] == 100.0 and document["ids"] == "label"
    with open(document.pop("file"), encoding="utf-8") as file:
        written = json.load(file)
    assert np.array(written.pop("confusion")).shape == (19, 20) and written == document


def test_ade20k_is_scored(run_json, tmp_path):
    write_ade20k(tmp_path / "ade", {"val": 2}, size_hw=SIZE)
    code, document = run_json(*arguments(tmp_path / "ade", tmp_path, "--ids", "label", data_set="ade20k"))
    assert code == 0 and document["mIoU"] == 100.0 and len(document["classes"]) == 150


def test_a_missing_file_is_told_and_fatal_only_if_asked(run, run_json, cities, tmp_path):
    next((cities / "gtFine").rglob("*000001*_labelTrainIds.png")).unlink()
    code, out, err = run(*arguments(cities, tmp_path, "--truth", "polygons"))
    assert code == 3 and "2 of 3 pictures" in out and "1 could not be used" in out and "missing_prediction" in err
    assert "of a part of the split" in out and "gtFine" in err
    code, document = run_json(*arguments(cities, tmp_path, "--strict", "--overwrite", "--truth", "polygons"))
    assert code == 3 and document["error"]["code"] == "missing_prediction"


def test_a_limit_is_told_and_no_failure(run, run_json, cities, tmp_path):
    code, out, _ = run(*arguments(cities, tmp_path, "--limit", "2"))
    assert code == 0 and "of a part of the split" in out and "--limit left 2 of 3" in out
    code, document = run_json(*arguments(cities, tmp_path, "--limit", "2", "--overwrite"))
    assert document["complete"] is False and document["scored"] == 2
    assert run_json(*arguments(cities, tmp_path, "--overwrite"))[1]["complete"] is True


@pytest.mark.parametrize(
    ("more", "code", "error"),
    [
        (["--bundle", "x"], 3, "bad_option"),
        (["--batch", "2"], 3, "bad_option"),
        (["--split", "test"], 3, "missing_folder"),
        (["--raw-type", "int7"], 2, "usage"),
        (["--window", "3"], 3, "bad_option"),
        (["--limit", "0"], 3, "bad_option"),
    ],
)
def test_what_makes_no_sense_is_refused(run_json, cities, tmp_path, more, code, error):
    answer, document = run_json(*arguments(cities, tmp_path, *more))
    assert (answer, document["error"]["code"]) == (code, error)


def test_messages_are_in_the_words_of_the_command_line(run, run_json, cities, tmp_path):
    _, document = run_json("evaluate", "cityscapes", "--data", cities)
    assert "neither was given: name either a bundle to run, with --bundle, or " in document["error"]["message"]
    assert document["error"]["message"].endswith("to score, with --predictions")
    _, document = run_json(*arguments(cities, tmp_path, "--batch", "2"))
    assert "--batch, --window, --stride, --ratios and --flip belong to a bundle" in document["error"]["message"]
    # A file of the data set's own numbers, for which there is --ids.
    (tmp_path / "maps").mkdir()
    for number, path in enumerate(sorted((cities / "leftImg8bit").rglob("*.png"))):
        Image.fromarray(np.full(SIZE, 0 if number else 33, np.uint8)).save(tmp_path / "maps" / path.name)
    more = ["--predictions", tmp_path / "maps"]
    code, document = run_json(*arguments(cities, tmp_path)[:-2], *more)
    (failed,) = document["failed"]
    assert code == 3 and set(failed) == {"name", "code", "message"} and "--ids label" in failed["message"]
    err = run(*arguments(cities, tmp_path)[:-2], *more, "--overwrite", "--fresh")[2]
    assert "--ids label" in err and "ids=label" not in err
    code, document = run_json(*arguments(cities, tmp_path)[:-2], *more, "--overwrite", "--fresh", "--strict")
    assert code == 3 and "--ids label" in document["error"]["message"]


def test_a_result_is_not_overwritten_unasked(run_json, cities, tmp_path):
    assert run_json(*arguments(cities, tmp_path))[0] == 0
    code, document = run_json(*arguments(cities, tmp_path))
    assert code == 6 and document["error"]["code"] == "output_exists"


def test_looking_is_parsed():
    assert parse_pair("--window", "512,1024") == (512, 1024)
    assert make_options(multi_scale=True) == SemanticOptions(ratios=MULTI_SCALE_RATIOS, flip=True)
    for text in ("a,b", "1,2,3"):
        with pytest.raises(InputError, match=f"--window is '{text}'"):
            parse_pair("--window", text)
    with pytest.raises(InputError, match="--ratios is '1;2'"):
        parse_numbers("--ratios", float, "1;2")
    for given in ({"ratios": (1.0,)}, {"flip": True}):
        with pytest.raises(InputError, match="which it contains"):
            make_options(multi_scale=True, **given)


def test_train_ids_are_written_beside_the_polygons(run, run_json, tmp_path):
    write_cityscapes(tmp_path, {"train": 1, "val": 2}, size_hw=SIZE, truths=("polygons",))
    code, out, _ = run("train-ids", "--data", tmp_path, "--workers", "0", "--split", "val")
    assert code == 0 and "2 written, 0 were there, 0 failed" in out
    next((tmp_path / "gtFine" / "train").rglob("*.json")).write_text("{}")
    code, document = run_json("train-ids", "--data", tmp_path, "--workers", "0")
    assert code == 3 and (document["written"], document["kept"]) == (0, 2)
    assert document["failed"][0]["code"] == "bad_annotation"
    with Image.open(next(tmp_path.rglob("*_labelTrainIds.png"))) as image:
        assert image.mode == "L" and image.size == SIZE[::-1]
