# SPDX-License-Identifier: Apache-2.0
"""One image from its source to the files of its class map."""

import json

import pytest
from PIL import Image

from segship.errors import InputError
from segship.jobs import MapOptions, map_image
from segship.semantic.views import SemanticOptions
from tests.semantic.networks import Network, picture


def test_files_times_and_how_it_was_made_are_told(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture()).save(path)
    look = SemanticOptions(window=(20, 30), ratios=(0.75,))
    options = MapOptions(look=look, formats=("overlay", "classes", "colours", "json"))
    image = map_image(Network().predictor, path, tmp_path, options, stem="a", name=str(path))
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
    options = MapOptions(look=SemanticOptions(flip=True))
    with pytest.raises(InputError, match="needs? the logits"):
        map_image(Network("class_map").predictor, picture(), tmp_path, options, stem="a", name="a")
    assert not list(tmp_path.iterdir())
