# SPDX-License-Identifier: Apache-2.0
"""One image from its source to its files, in steps that can be called alone."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

import segship
from segship.errors import InputError
from segship.images.reading import DEMO_POINT_XY, demo_photograph
from segship.jobs import (
    EverythingOptions,
    MapOptions,
    SegmentOptions,
    answer_classes,
    answer_everything,
    answer_prompts,
    read,
    run_job,
)
from segship.promptable.everything.cost import estimate_cost
from segship.promptable.everything.options import AmgOptions
from segship.promptable.prompts import Prompts
from segship.semantic.views import SemanticOptions
from segship.writers import encode_result
from tests.promptable.everything.world import World
from tests.semantic.networks import Network, picture

OPTIONS = EverythingOptions(amg=AmgOptions(points_per_side=8), formats=("sa1b",))


def test_everything_tells_files_times_and_notes(tmp_path):
    world = World((120, 180), objects=60)
    told = []
    answer = partial(answer_everything, world.predictor(), None, progress=lambda *call: told.append(call))
    image = run_job(answer, world.image, OPTIONS, tmp_path, stem="a", name="dir/a.png")
    assert list(image.milliseconds) == ["read", "generate", "write"]
    assert told[-1] == (64, 64)
    document = image.to_dict()
    assert document["image"] == {"file_name": "a.png", "width": 180, "height": 120}
    assert document["masks"] == len(image.answer.result.records) > 5
    annotations = json.loads((tmp_path / "a.sa1b.json").read_text(encoding="utf-8"))["annotations"]
    assert len(annotations) == document["masks"]
    assert json.loads(json.dumps(document)) == document


def test_cost_is_told_without_running_the_model():
    world = World((120, 180), objects=3)
    predictor = world.predictor()
    predictor.close()
    image = read(np.zeros((120, 180, 3), np.uint8), OPTIONS)
    assert estimate_cost(predictor, image.loaded.size_hw, OPTIONS.amg).points == 64


def test_a_class_map_tells_files_times_and_how_it_was_made(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    semantic = SemanticOptions(window=(20, 30), ratios=(0.75,))
    options = MapOptions(semantic=semantic, formats=("overlay", "classes", "colours", "json"))
    image = run_job(partial(answer_classes, Network().predictor), path, options, tmp_path, stem="a", name=str(path))
    assert list(image.milliseconds) == ["read", "segment", "write"]
    names = ["a.semantic.jpg", "a.classes.png", "a.colours.png", "a.semantic.json"]
    assert [file.name for file in image.files] == names
    document = image.to_dict()
    assert document["made_by"] == {
        "architecture": "semask_t",
        "backend": "fake",
        "precision": "fp32",
        "runs_on": "fake",
        "window": [20, 30],
        "stride": [13, 20],
        "ratios": [0.75],
        "flip": False,
    }
    assert document["image"]["file_name"] == "a.png" and json.loads(json.dumps(document)) == document
    written = json.loads((tmp_path / "a.semantic.json").read_bytes())
    assert written == {key: value for key, value in document.items() if key not in ("files", "milliseconds")}


def test_nothing_is_written_when_the_model_cannot(tmp_path):
    options = MapOptions(semantic=SemanticOptions(flip=True))
    with pytest.raises(InputError, match="needs? the logits"):
        run_job(partial(answer_classes, Network("class_map").predictor), picture(), options, tmp_path)
    assert not list(tmp_path.iterdir())


def test_jobs_without_a_directory_answer_and_write_nothing(tmp_path, monkeypatch):
    tiny = segship.load("tiny")
    monkeypatch.chdir(tmp_path)
    data = demo_photograph().read_bytes()
    prompted = run_job(partial(answer_prompts, tiny, Prompts(points=[DEMO_POINT_XY])), data, SegmentOptions())
    assert list(prompted.milliseconds) == ["read", "encode", "decode"]
    world = World((120, 180), objects=60)
    found = run_job(partial(answer_everything, world.predictor(), None), world.image, OPTIONS)
    mapped = run_job(partial(answer_classes, Network().predictor), picture(), MapOptions())
    for image in (prompted, found, mapped):
        assert image.files == () and image.to_dict()["files"] == []
    assert not list(tmp_path.iterdir())


def test_an_answer_needs_no_job():
    tiny = segship.load("tiny")
    options = SegmentOptions()
    image = read(demo_photograph().read_bytes(), options)
    answer = answer_prompts(tiny, Prompts(points=[DEMO_POINT_XY]), image, options)
    assert answer.prediction.masks.any()
    assert set(encode_result(answer, ["json"])) == {"image.prediction.json"}
    world = World((120, 180), objects=60)
    assert answer_everything(world.predictor(), None, read(world.image, OPTIONS), OPTIONS).result.records
    options = MapOptions()
    assert answer_classes(Network().predictor, read(picture(), options), options).class_map.areas()
