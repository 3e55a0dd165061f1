# SPDX-License-Identifier: Apache-2.0
"""One image from its source to files."""

import json

import numpy as np

from segship.jobs import EverythingOptions, cost_of_everything, find_everything
from segship.promptable.everything.options import AmgOptions
from tests.promptable.everything.world import World

OPTIONS = EverythingOptions(amg=AmgOptions(points_per_side=8), formats=("sa1b",))


def test_files_times_and_notes_are_told(tmp_path):
    world = World((120, 180), objects=60)
    told = []
    image = find_everything(
        world.predictor(),
        world.image,
        tmp_path,
        OPTIONS,
        stem="a",
        name="dir/a.png",
        progress=lambda *call: told.append(call),
    )
    assert list(image.milliseconds) == ["read", "generate", "write"]
    assert told[-1] == (64, 64)
    document = image.to_dict()
    assert document["image"] == {"file_name": "a.png", "width": 180, "height": 120}
    assert document["masks"] == len(image.result.records) > 5
    annotations = json.loads((tmp_path / "a.sa1b.json").read_text(encoding="utf-8"))["annotations"]
    assert len(annotations) == document["masks"]
    assert json.loads(json.dumps(document)) == document


def test_cost_is_told_without_running_the_model():
    world = World((120, 180), objects=3)
    predictor = world.predictor()
    predictor.close()
    assert cost_of_everything(predictor, np.zeros((120, 180, 3), np.uint8), OPTIONS).points == 64
