# SPDX-License-Identifier: Apache-2.0
"""Files of truth as class maps: all kinds say the same."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from recipes.streets.scenes import ADE20K_NAMES, write_ade20k, write_cityscapes
from recipes.streets.street import draw_street
from segship.datasets.classes import IGNORED
from segship.datasets.folders import Sample, encode_label_image, find_samples, read_truth
from segship.datasets.known import (
    ADE20K,
    CITYSCAPES,
    LABELS,
    annotation_to_classes,
    classes_to_label_ids,
    polygons_to_label_ids,
    polygons_to_train_ids,
)
from segship.errors import InputError


def drawn_slowly(document, attribute, background):
    """The official script's loop, with Pillow, one object after the other."""
    annotation = json.loads(document)
    by_name = {label.name: label for label in LABELS}
    image = Image.new("L", (annotation["imgWidth"], annotation["imgHeight"]), background)
    drawer = ImageDraw.Draw(image)
    for entry in annotation["objects"]:
        name = entry["label"]
        if name not in by_name and name.endswith("group"):
            name = name[: -len("group")]
        if by_name[name].id < 0:
            continue
        drawer.polygon([tuple(point) for point in entry["polygon"]], fill=getattr(by_name[name], attribute))
    return np.array(image)


def test_polygons_are_drawn_as_the_official_script_draws_them():
    for seed in range(3):
        document = draw_street(seed, (64, 128)).to_json()
        assert np.array_equal(polygons_to_label_ids(document), drawn_slowly(document, "id", 0))
        assert np.array_equal(polygons_to_train_ids(document), drawn_slowly(document, "train_id", IGNORED))


def test_all_kinds_of_cityscapes_truth_say_the_same(tmp_path):
    write_cityscapes(tmp_path, {"val": 2}, size_hw=(48, 96))
    kinds = ("auto", "polygons", "labelIds", "labelTrainIds")
    for samples in zip(*(find_samples("cityscapes", tmp_path, truth=kind) for kind in kinds), strict=True):
        first, *others = [read_truth(sample) for sample in samples]
        assert all(np.array_equal(first, other) for other in others)
        assert set(np.unique(first)) - {IGNORED} <= set(range(19))


def test_annotations_of_ade20k_are_one_more_than_classes_and_0_is_ignored(tmp_path):
    everything = np.arange(256, dtype=np.uint8)
    expected = [IGNORED, *range(150), *range(150, 254), IGNORED]
    assert annotation_to_classes(everything).tolist() == expected
    assert classes_to_label_ids(np.array([0, 149, 255], np.uint8), ADE20K).tolist() == [1, 150, 0]
    write_ade20k(tmp_path, {"val": 2}, size_hw=(48, 96), seed=4)
    write_cityscapes(tmp_path, {"val": 2}, size_hw=(48, 96), seed=4)
    pairs = zip(find_samples("ade20k", tmp_path), find_samples("cityscapes", tmp_path), strict=True)
    for ade20k, cityscapes in pairs:
        classes, truth = read_truth(ade20k), read_truth(cityscapes)
        for number in np.unique(truth[truth != IGNORED]).tolist():
            name = ADE20K_NAMES.get(CITYSCAPES.classes[number], CITYSCAPES.classes[number])
            found = ADE20K.classes.index(name) if name in ADE20K.classes else IGNORED
            assert (classes[truth == number] == found).all()


def test_a_missing_truth_and_damaged_polygons_are_named(tmp_path):
    with pytest.raises(InputError, match="city/stem") as caught:
        read_truth(Sample("city/stem", tmp_path, None, "labelIds"))
    assert caught.value.code == "missing_truth"
    path = tmp_path / "a_gtFine_polygons.json"
    path.write_text("{")
    with pytest.raises(InputError, match="a_gtFine_polygons") as caught:
        read_truth(Sample("a", None, path, "polygons"))
    assert caught.value.code == "bad_annotation"


def test_label_ids_are_read_as_train_ids(tmp_path):
    path = tmp_path / "ids.png"
    path.write_bytes(encode_label_image(np.array([[7, 8, 0, 33]], np.uint8)))
    assert read_truth(Sample("a", None, path, "labelIds")).tolist() == [[0, 1, 255, 18]]
