# SPDX-License-Identifier: Apache-2.0
"""Which pictures words mean."""

import pytest

from segship.cli.output import STANDARD_INPUT
from segship.cli.pictures import expand_pictures
from segship.errors import InputError


@pytest.fixture
def album(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "day1/c.jpeg", "day2/d.png", "[odd].png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_folders_are_the_pictures_in_them_by_name(album):
    assert expand_pictures([str(album)]) == [str(album / name) for name in ("[odd].png", "a.jpg", "b.PNG")]


def test_patterns_that_no_shell_expanded_are_expanded(album):
    assert expand_pictures([f"{album}/day*/*"]) == [str(album / "day1/c.jpeg"), str(album / "day2/d.png")]
    assert expand_pictures([f"{album}/**/?.png"]) == [str(album / "day2/d.png")]
    assert expand_pictures([f"{album}/day?/*.p?g"]) == [str(album / "day2/d.png")]


def test_files_stay_as_they_are_whatever_their_names(album):
    words = [str(album / "[odd].png"), str(album / "notes.txt"), "missing.png", STANDARD_INPUT]
    assert expand_pictures(words) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "no image was given"), (["{}/*.gif"], "no picture fits"), (["{}/folder.png"], "holds no picture")],
)
def test_what_means_nothing_is_refused(album, words, message):
    with pytest.raises(InputError, match=message) as caught:
        expand_pictures([word.format(album) for word in words])
    assert caught.value.code == "no_images"
