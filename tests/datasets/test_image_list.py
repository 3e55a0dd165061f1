# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import numpy as np
import pytest

from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.datasets.image_list import DOCUMENT, Listing, open_image_list, read_image_list
from segship.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return calibrate([], tmp_path_factory.mktemp("list") / "list", CalibrateOptions(limit=2, objects=2))


@pytest.fixture
def copy(made, tmp_path):
    return calibrate([made.path], tmp_path / "copy")


def test_a_list_is_read_as_it_was_written(made):
    again = read_image_list(made.path)
    assert again == made and len(again) == 2
    document = json.loads((made.path / "list.json").read_bytes())
    assert document["list_sha256"] == made.sha256 and document["seed"] == 0 and document["task"] == "promptable"
    for picture, entry in zip(again.pictures(), made.listing.images, strict=True):
        assert picture.entry == entry and picture.loaded.size_hw == entry.size_hw == picture.truth.shape


def test_a_copy_has_the_digest_of_the_list(made, copy):
    assert copy.sha256 == made.sha256 and copy.path != made.path


@pytest.mark.parametrize("place", ["list.json", "images/scene0.png", "labels/scene1.png.png"])
def test_a_changed_byte_anywhere_is_found(copy, place):
    file = copy.path / place
    data = bytearray(file.read_bytes())
    data[data.index(b"sha256") + 20 if place == "list.json" else len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="changed after it was written|SHA-256 differs") as caught:
        read_image_list(copy.path).check()
    assert caught.value.code == "changed_file"
    with pytest.raises(InputError):
        list(read_image_list(copy.path).pictures())


def test_longer_and_missing_files_are_told(copy):
    file = copy.path / "images" / "scene0.png"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(InputError) as caught:
        list(copy.pictures())
    assert caught.value.code == "changed_file"
    file.unlink()
    with pytest.raises(InputError) as caught:
        copy.check()
    assert caught.value.code == "file_missing"


def test_folder_without_a_list_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="holds no list.json; make .* `segship calibrate`") as caught:
        read_image_list(tmp_path)
    assert caught.value.code == "not_an_image_list"


def test_list_for_the_other_task_is_refused(made):
    assert open_image_list(made.path, "promptable") == made
    with pytest.raises(
        InputError, match="for promptable models, and this one is semantic; make one with task='semantic'"
    ):
        open_image_list(made, "semantic")


@pytest.mark.parametrize("name", ["../x.png", "a/b.png", ".hidden", ""])
def test_names_in_a_list_point_nowhere_else(copy, name):
    first, *others = copy.listing.images
    changed = replace(copy.listing, images=(replace(first, file=replace(first.file, name=name)), *others))
    (copy.path / "list.json").write_bytes(DOCUMENT.write(Listing, changed))
    with pytest.raises(InputError, match="list.json cannot be used: images.0.file.name"):
        read_image_list(copy.path)


def test_prompts_lie_in_their_pictures(made):
    for entry in made.listing.images:
        height, width = entry.size_hw
        assert {thing.kind for thing in entry.objects} == {"click", "clicks", "box", "refined"}
        for thing in entry.objects:
            points = np.array(thing.points).reshape(-1, 2)
            assert ((points >= 0) & (points <= (width, height))).all() and len(points) == len(thing.labels)
