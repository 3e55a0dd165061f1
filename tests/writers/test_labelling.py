# SPDX-License-Identifier: Apache-2.0
"""Labelled masks in every format, and COCO panoptic against the rules of its specification."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segship.datasets.classes import ClassTable
from segship.datasets.known import CITYSCAPES, thing_classes
from segship.errors import InputError
from segship.masks.panoptic import PanopticOptions
from segship.masks.rle import mask_to_runs
from segship.masks.spans import masks_to_boxes
from segship.promptable.everything.records import ImageRecords, MaskRecord
from segship.semantic.class_map import ClassMap
from segship.writers import WRITERS, label_instances, merge_results, write_result
from segship.writers.instances import count_labels, label_records

SIZE = (60, 80)


def record_of(mask, predicted_iou):
    x0, y0, x1, y1 = map(float, masks_to_boxes(mask))
    box = (x0, y0, x1 - 1 - x0, y1 - 1 - y0)
    return MaskRecord(
        mask_to_runs(mask), SIZE, int(mask.sum()), box, predicted_iou, ((1.0, 2.0),), 0.97, (0, 0, 80, 60)
    )


@pytest.fixture
def masks():
    """Road with some of a car on it, two cars, a wheel of the first, and a scrap that is half sky, half building."""
    masks = np.zeros((5, *SIZE), bool)
    masks[0, 30:] = True
    masks[1, 25:45, 10:40] = masks[2, 25:40, 50:70] = True
    masks[3, 40:44, 14:20] = True
    masks[4, :10, 30:50] = True
    return masks


@pytest.fixture
def class_map():
    array = np.full(SIZE, 10, np.uint8)
    array[:, 40:] = 2
    array[30:] = 0
    array[25:44, 10:40] = array[26:40, 50:70] = 13
    probability = np.full(SIZE, 0.75, np.float32)
    return ClassMap(array, CITYSCAPES, (), probability)


@pytest.fixture
def records(masks):
    scores = (0.97, 0.95, 0.9, 0.85, 0.8)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return ImageRecords("a", "dir/a.jpg", pixels, tuple(map(record_of, masks, scores)), ("trailing_data",))


@pytest.fixture
def labelled(records, class_map):
    return label_records(records, class_map)


def document_of(name, labelled):
    (data,) = WRITERS["masks"][name].write(labelled).values()
    return json.loads(data)


def test_every_mask_has_its_class_and_how_sure_it_is(labelled):
    names = [labelled.categories[entry.category] for entry in labelled.entries]
    assert names == ["road", "car", "car", "car", "building"]
    assert labelled.entries[4].label_purity == 0.5 and labelled.entries[4].label_confidence == 0.375
    assert count_labels(labelled) == {"car": 3, "road": 1, "building": 1}
    # All classes, so that the numbers of several images agree.
    assert labelled.categories == CITYSCAPES.classes and labelled.notes == ("trailing_data",)


@pytest.mark.parametrize(("name", "key"), [("sa1b", "annotations"), ("json", "records"), ("coco", "annotations")])
def test_json_formats_say_class_confidence_and_purity(labelled, name, key):
    document = document_of(name, labelled)
    for written, entry in zip(document[key], labelled.entries, strict=True):
        assert written["label_confidence"] == entry.label_confidence
        assert written["label_purity"] == entry.label_purity
        if name == "coco":
            category = document["categories"][entry.category]
            assert (category["id"], category["name"]) == (written["category_id"], CITYSCAPES.classes[entry.category])
            assert category["supercategory"] == ("thing" if category["name"] in thing_classes(CITYSCAPES) else "stuff")
            assert coco_mask.area(written["segmentation"]) == entry.area
        else:
            assert written["category"] == CITYSCAPES.classes[entry.category]


def test_tables_arrays_and_polygons_say_it_too(labelled, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = write_result(labelled, tmp_path, ["parquet", "npz", "labelme", "yolo"])
    purities = [entry.label_purity for entry in labelled.entries]
    rows = parquet.read_table(paths[0]).to_pylist()
    assert [row["category"] for row in rows] == ["road", "car", "car", "car", "building"]
    assert [row["label_purity"] for row in rows] == purities
    with np.load(paths[1]) as arrays:
        assert arrays["label_purity"].tolist() == purities and arrays["categories"][arrays["category"][1]] == "car"
        assert (arrays["label_confidence"] <= arrays["label_purity"]).all()
    shapes = json.loads(paths[2].read_bytes())["shapes"]
    assert {(shape["label"], shape["label_purity"]) for shape in shapes} >= {("building", 0.5)}
    assert [line.split()[0] for line in paths[3].read_text().splitlines()] == ["0", "13", "13", "13", "2"]


def test_a_class_called_object_is_not_what_has_no_class(records):
    table = ClassTable("own", ("object", "road"), ((0, 0, 0),) * 2)
    array = np.full(SIZE, 255, np.uint8)
    array[30:] = 0
    view = label_records(records, ClassMap(array, table))
    assert view.categories == ("object", "road", "object without a class")
    assert count_labels(view) == {"object": 4, "object without a class": 1}


def test_masks_without_labels_say_nothing_of_them(records):
    for name in ("sa1b", "json", "coco"):
        assert "label_" not in json.dumps(document_of(name, records))
    renamed = label_instances(records, ["cat"] * 5)
    assert renamed.labels is None and renamed.entries[0].label_purity is None


def test_what_people_rename_is_labelled_no_more(labelled):
    renamed = label_instances(labelled, ["cat"] * 5)
    assert renamed.labels is None and "label_" not in json.dumps(document_of("coco", renamed))


def check_panoptic(files):
    """The rules of the COCO panoptic format: cocodataset.org, Data format, 4. Panoptic Segmentation."""
    document = json.loads(files["a.panoptic/panoptic.json"])
    (image,), (annotation,) = document["images"], document["annotations"]
    with Image.open(io.BytesIO(files["a.panoptic/" + annotation["file_name"]])) as picture:
        assert picture.mode == "RGB" and picture.format == "PNG"
        colours = np.asarray(picture).astype(np.int64)
    assert colours.shape[:2] == (image["height"], image["width"]) and annotation["image_id"] == image["id"]
    # "Segment ids: R+G*256+B*256^2; unlabelled pixels (void) are 0."
    ids = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
    segments = {segment["id"]: segment for segment in annotation["segments_info"]}
    assert len(segments) == len(annotation["segments_info"]), "ids are unique"
    assert set(np.unique(ids).tolist()) - {0} == set(segments), "the picture and the JSON hold the same ids"
    categories = {category["id"]: category for category in document["categories"]}
    assert len(categories) == len(document["categories"])
    for category in categories.values():
        assert set(category) == {"id", "name", "supercategory", "isthing", "color"}
        assert category["isthing"] in (0, 1) and len(category["color"]) == 3
    for number, segment in segments.items():
        rows, columns = np.nonzero(ids == number)
        assert segment["area"] == len(rows)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert segment["bbox"] == box and segment["iscrowd"] == 0
        assert segment["category_id"] in categories
    stuff = [
        segment["category_id"] for segment in segments.values() if not categories[segment["category_id"]]["isthing"]
    ]
    assert len(stuff) == len(set(stuff)), "a class of stuff is one segment"
    return ids, segments, categories


def test_panoptic_keeps_the_rules_of_its_format(labelled, masks):
    ids, segments, categories = check_panoptic(WRITERS["masks"]["panoptic"].write(labelled))
    found = [(categories[segment["category_id"]]["name"], segment["area"]) for segment in segments.values()]
    # Two cars; the wheel lies wholly in the first. Road from its mask, sky and building from the class map.
    assert [name for name, _ in found] == ["car", "car", "road", "building", "sky"]
    assert np.array_equal(ids == 1, masks[1]) and np.array_equal(ids == 2, masks[2])
    assert np.array_equal(ids == 3, masks[0] & ~masks[1] & ~masks[2])
    assert segments[1]["score"] == 0.95 and segments[1]["label_purity"] == labelled.entries[1].label_purity
    assert "score" not in segments[3] and categories[14]["color"] == [0, 0, 142]
    assert (ids == 0).sum() == 0


def test_things_and_merging_are_what_the_caller_says(records, class_map):
    few = label_records(records, class_map, things=["person"], panoptic=PanopticOptions(stuff_area=0))
    _, segments, categories = check_panoptic(WRITERS["masks"]["panoptic"].write(few))
    assert [categories[segment["category_id"]]["isthing"] for segment in segments.values()] == [0] * 4
    strict = label_records(records, class_map, panoptic=PanopticOptions(least_purity=1.0, stuff_area=0))
    _, segments, categories = check_panoptic(WRITERS["masks"]["panoptic"].write(strict))
    # The first car's mask has a row of road in it, and the second one of building and sky.
    assert [segment["area"] for segment in segments.values() if "score" in segment] == [24]
    with pytest.raises(InputError, match="'lorry' is no class of cityscapes"):
        label_records(records, class_map, things=["lorry"])


def test_panoptic_of_a_picture_without_masks_is_its_stuff(records, class_map):
    nothing = ImageRecords("a", "a.jpg", records.pixels, ())
    ids, segments, _ = check_panoptic(WRITERS["masks"]["panoptic"].write(label_records(nothing, class_map)))
    assert len(segments) == 3 and np.array_equal(ids == 0, class_map.array == 13)


@pytest.mark.parametrize("name", WRITERS["masks"])
def test_every_format_takes_labelled_masks_and_is_the_same_twice(labelled, name):
    assert WRITERS["masks"][name].write(labelled) == WRITERS["masks"][name].write(labelled)


def test_masks_on_pixels_without_a_class_are_objects(records, class_map):
    array = class_map.array.copy()
    array[:10] = 255
    labelled = label_records(records, ClassMap(array, CITYSCAPES))
    assert labelled.categories[labelled.entries[4].category] == "object" and len(labelled.categories) == 20
    assert document_of("coco", labelled)["categories"][19] == {"id": 20, "name": "object", "supercategory": "stuff"}


def test_data_set_of_labelled_images_has_things_and_stuff_as_the_files_of_each(labelled, records, tmp_path):
    names = [labelled.categories[entry.category] for entry in labelled.entries]
    plain = label_instances(replace(records, stem="b", name="b.jpg"), names[::-1])
    with merge_results(tmp_path, ["coco", "panoptic", "yolo"]) as merged:
        merged.add(labelled)
        merged.add(replace(labelled, stem="c", name="c.jpg"))
        merged.add(plain)
    document = json.loads((tmp_path / "panoptic" / "panoptic.json").read_text())
    alone = json.loads(WRITERS["masks"]["panoptic"].write(labelled)["a.panoptic/panoptic.json"])
    assert document["categories"] == alone["categories"], "names of the other image are all among them"
    for number in (0, 1):
        segments = document["annotations"][number]["segments_info"]
        assert segments == alone["annotations"][0]["segments_info"]
        picture = tmp_path / "panoptic" / "panoptic" / document["annotations"][number]["file_name"]
        assert picture.read_bytes() == WRITERS["masks"]["panoptic"].write(labelled)["a.panoptic/panoptic.png"]
    coco = json.loads((tmp_path / "coco.json").read_text())
    called = {category["id"]: category["name"] for category in coco["categories"]}
    assert [called[one["category_id"]] for one in coco["annotations"]] == [*names, *names, *names[::-1]]
    lines = (tmp_path / "yolo" / "labels" / "b.txt").read_text().splitlines()
    assert [called[int(line.split()[0]) + 1] for line in lines] == names[::-1]
