# SPDX-License-Identifier: Apache-2.0
"""A user's own classes."""

import json

import numpy as np
import pytest

from segship.datasets.classes import make_palette, read_class_file
from segship.errors import InputError


def written(tmp_path, document):
    path = tmp_path / "classes.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def test_a_list_of_names_gets_colors(tmp_path):
    table = read_class_file(written(tmp_path, ["road", "Bäume"]))
    assert (table.name, table.classes, table.palette) == ("own", ("road", "Bäume"), make_palette(2))


def test_colors_may_be_given(tmp_path):
    document = {"classes": ["road", "tree"], "palette": [[128, 64, 128], [0, 255, 0]]}
    assert read_class_file(written(tmp_path, document)).palette == ((128, 64, 128), (0, 255, 0))


def test_made_colors_are_all_different():
    colors = np.array(make_palette(255), int)
    distance = np.abs(colors[:, None] - colors[None]).max(axis=2) + 999 * np.eye(255, dtype=int)
    assert distance.min() >= 2 and colors.min() >= 0 and colors.max() <= 255


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ([], "no list of 1 to 255 names"),
        ([f"c{index}" for index in range(256)], "no list of 1 to 255 names"),
        ({"names": ["a"]}, "no list of 1 to 255 names"),
        (["a", 7], "'7' is no name"),
        (["a", "b\x07"], "is no name"),
        (["a", "b", "a"], "'a' stands twice"),
        ({"classes": ["a", "b"], "palette": [[1, 2, 3]]}, "2 classes and 1 colors"),
        ({"classes": ["a"], "palette": "red"}, "1 classes and no colors"),
        ({"classes": ["a"], "palette": [[1, 2, 300]]}, r"\[1, 2, 300\] is no color"),
    ],
)  # fmt: skip
def test_other_files_are_refused_with_what_is_accepted(tmp_path, document, words):
    with pytest.raises(InputError, match=words) as caught:
        read_class_file(written(tmp_path, document))
    assert caught.value.code == "bad_classes" and '"palette"' in str(caught.value)
