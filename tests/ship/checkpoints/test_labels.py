# SPDX-License-Identifier: Apache-2.0
"""Names of classes beside the weights: found, mended where that is harmless, and never made up."""

import pytest

from segship.ship.checkpoints.survey import Labels, find_labels

NAMES, COLOURS = ("road", "tree"), ((1, 2, 3), (4, 5, 255))


def test_names_and_colours_of_mmcv_are_found():
    meta = {"CLASSES": NAMES, "PALETTE": [list(colour) for colour in COLOURS], "config": "model = dict()"}
    assert find_labels({"meta": meta, "state_dict": {}}) == Labels(NAMES, COLOURS)


@pytest.mark.parametrize(
    "palette", [None, [[1, 2, 3]], [[1, 2, 3], [4, 5, 256]], [[1, 2], [3, 4]], [[1, 2, 3], [True] * 3]]
)
def test_colours_that_are_none_are_left_alone(palette):
    assert find_labels({"meta": {"CLASSES": list(NAMES), "PALETTE": palette}}) == Labels(NAMES, None)


@pytest.mark.parametrize(
    "contents",
    [
        {"meta": {"dataset_meta": {"classes": NAMES, "palette": COLOURS}}},
        {"meta": {"classes": list(NAMES), "PALETTE": COLOURS}},
        {"dataset_meta": {"CLASSES": NAMES, "palette": COLOURS}},
        {"CLASSES": NAMES, "PALETTE": COLOURS, "meta": {"CLASSES": None}},
    ],
)
def test_names_are_found_where_programs_write_them(contents):
    assert find_labels(contents) == Labels(NAMES, COLOURS)


@pytest.mark.parametrize(
    ("classes", "mended"),
    [
        (["road", ""], ("road", "class 1")),
        (["road", 7], ("road", "class 1")),
        (["  road ", "a\n b"], ("road", "a b")),
        (["a\x1b[2J", "\ud800"], ("a [2J", "class 1")),
        (["x" * 129, "y"], ("x" * 128, "y")),
        (["a"] * 3, ("a", "a 2", "a 3")),
        (["a ", "a", "a 2"], ("a 3", "a", "a 2")),
        (["class 1", None], ("class 1", "class 1 2")),
        (["x" * 200, "x" * 200], ("x" * 128, "x" * 124 + " 2")),
    ],
)
def test_names_are_mended_where_that_is_harmless_and_it_is_noted(classes, mended):
    labels = find_labels({"meta": {"CLASSES": classes}})
    assert labels is not None and labels.classes == mended and labels.palette is None
    (note,) = labels.notes
    assert note.startswith("names of classes mended: ") and note.isascii() and len(note) < 2000


def test_a_long_list_is_cut_beyond_what_any_model_has():
    labels = find_labels({"meta": {"CLASSES": [f"part {index}" for index in range(10**5)]}})
    assert labels is not None and len(labels.classes) == 256


@pytest.mark.parametrize("classes", ["road", {"road": 1}, 7, {"a", "b"}])
def test_names_in_another_form_are_told(classes):
    labels = find_labels({"meta": {"CLASSES": classes}})
    assert labels is not None and labels.classes == () and "and a list is read" in labels.notes[0]


@pytest.mark.parametrize("classes", [None, [], ()])
def test_no_names_are_none(classes):
    assert find_labels({"meta": {"CLASSES": classes}}) is None


@pytest.mark.parametrize("contents", [None, [], {"meta": "road"}, {"state_dict": {}}])
def test_files_without_them_have_none(contents):
    assert find_labels(contents) is None
