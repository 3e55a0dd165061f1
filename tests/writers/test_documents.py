# SPDX-License-Identifier: Apache-2.0
"""COCO and SA-1B are read back with pycocotools, JSON with a strict parser."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segship.masks.lazy import ArrayMasks
from segship.masks.rle import decode_rle
from segship.promptable.everything.records import ImageRecords
from segship.writers import WRITERS, Result, coco_document, label_instances, prediction_document, write_result

# The form of one file of SA-1B, from the description of the data set and its files.
NUMBERS = {"type": "array", "items": {"type": "number"}}
FOUR_NUMBERS = {**NUMBERS, "minItems": 4, "maxItems": 4}
SA1B_ANNOTATION = {
    "id": {"type": "integer"},
    "segmentation": {
        "type": "object",
        "properties": {"size": {"type": "array", "items": {"type": "integer"}}, "counts": {"type": "string"}},
        "required": ["size", "counts"],
    },
    "bbox": FOUR_NUMBERS,
    "area": {"type": "integer"},
    "predicted_iou": {"type": "number"},
    "stability_score": {"type": "number"},
    "crop_box": FOUR_NUMBERS,
    "point_coords": {"type": "array", "items": {**NUMBERS, "minItems": 2, "maxItems": 2}},
}
SA1B_IMAGE = {
    "image_id": {"type": "integer"},
    "width": {"type": "integer"},
    "height": {"type": "integer"},
    "file_name": {"type": "string"},
}
SA1B = {
    "properties": {
        "image": {"properties": SA1B_IMAGE, "required": list(SA1B_IMAGE), "additionalProperties": False},
        "annotations": {
            "items": {
                "properties": SA1B_ANNOTATION,
                "required": list(SA1B_ANNOTATION),
                "additionalProperties": False,
            }
        },
    },
    "required": ["image", "annotations"],
    "additionalProperties": False,
}


def strict_json(data: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(data, parse_constant=refuse)


@contextlib.contextmanager
def coco_and_numpy_2() -> Iterator[None]:
    with warnings.catch_warnings():
        # pycocotools has an __array__ of before numpy 2.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        yield


def load_coco(path: Path) -> COCO:
    # It prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def test_pycocotools_reads_every_mask_identically(result: Result, tmp_path: Path) -> None:
    (path,) = write_result(result, tmp_path, ["coco"])
    coco = load_coco(path)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    assert len(annotations) == 6
    for annotation in annotations:
        mask = result.masks[annotation["object"], annotation["mask"]]
        with coco_and_numpy_2():
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 1


def test_coco_is_a_data_set_with_one_image_and_one_category(result: Result) -> None:
    document = strict_json(WRITERS["masks"]["coco"].write(result)["my photo.coco.json"])
    assert document["images"] == [{"id": 1, "file_name": "my photo.jpg", "width": 53, "height": 37}]
    assert document["categories"] == [{"id": 1, "name": "object", "supercategory": "object"}]
    assert [entry["id"] for entry in document["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [entry["score"] for entry in document["annotations"]] == [0.5, 0.9, 0.7, 0.8, 0.1, 0.8]
    assert document["annotations"][5]["bbox"] == [0, 0, 0, 0]


def test_coco_boxes_are_x_y_width_height(result: Result) -> None:
    masks = np.zeros_like(result.masks)
    masks[0, 0, 5:9, 10:30] = True
    boxed = replace(result, prediction=replace(result.prediction, held=ArrayMasks(masks)))
    document = strict_json(WRITERS["masks"]["coco"].write(boxed)["my photo.coco.json"])
    assert document["annotations"][0]["bbox"] == [10, 5, 20, 4]


def test_json_holds_scores_masks_prompts_and_notes(result: Result) -> None:
    document = strict_json(WRITERS["masks"]["json"].write(result)["my photo.prediction.json"])
    assert document["image"] == {"file_name": "my photo.jpg", "width": 53, "height": 37}
    assert document["notes"] == ["box_clipped", "trailing_data"]
    first, second = document["objects"]
    assert first["best_mask"] == 1 and second["best_mask"] == 0
    assert first["prompts"] == {
        "points": [[10.1, 20.0], [30.0, 5.0]],
        "labels": [1, 0],
        "box": [0.0, 0.0, 53.0, 37.0],
        "mask_input": False,
    }
    assert second["prompts"]["box"] is None and second["prompts"]["mask_input"] is True
    for entry, index in np.ndindex(2, 3):
        mask = document["objects"][entry]["masks"][index]
        assert np.array_equal(decode_rle(mask["segmentation"]), result.masks[entry, index])
        assert np.float32(mask["iou_prediction"]) == result.prediction.iou_predictions[entry, index]


def test_score_that_is_no_number_is_null(result: Result) -> None:
    scores = np.full((2, 3), np.nan, np.float32)
    broken = replace(result, prediction=replace(result.prediction, iou_predictions=scores))
    document = strict_json(WRITERS["masks"]["json"].write(broken)["my photo.prediction.json"])
    assert document["objects"][0]["masks"][0]["iou_prediction"] is None


def test_names_are_kept_readable_and_made_safe(result: Result) -> None:
    odd = replace(result, name="写真\n\udcff.jpg")
    assert prediction_document(odd)["image"]["file_name"] == "写真__.jpg"
    assert "写真".encode() in WRITERS["masks"]["json"].write(odd)["my photo.prediction.json"]


def test_notes_are_said_once(result: Result) -> None:
    twice = replace(result, notes=("box_clipped", "box_clipped"))
    assert prediction_document(twice)["notes"] == ["box_clipped"]


def test_pycocotools_reads_records_identically(records: ImageRecords, record_masks: np.ndarray, tmp_path: Path) -> None:
    (path,) = write_result(records, tmp_path, ["coco"])
    coco = load_coco(path)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    for annotation, record, mask in zip(annotations, records.records, record_masks, strict=True):
        with coco_and_numpy_2():
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == coco_mask.area(annotation["segmentation"])
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert annotation["score"] == record.predicted_iou
        assert annotation["stability_score"] == record.stability_score
        assert "object" not in annotation and annotation["point_coords"] == [list(record.point_coords[0])]


def test_coco_has_the_categories_that_were_given(records: ImageRecords, tmp_path: Path) -> None:
    named = label_instances(records, ["cat", "dog", "cat", "dog", "dog", "cat"], ["bird", "cat", "dog"])
    (path,) = write_result(named, tmp_path, ["coco"])
    coco = load_coco(path)
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == ["bird", "cat", "dog"]
    assert coco.getAnnIds(catIds=coco.getCatIds(catNms=["dog"])) == [2, 4, 5]
    assert coco.getAnnIds(catIds=coco.getCatIds(catNms=["bird"])) == []


def test_supervision_reads_the_data_set_identically(
    records: ImageRecords, record_masks: np.ndarray, tmp_path: Path
) -> None:
    supervision = pytest.importorskip("supervision")
    (path,) = write_result(records, tmp_path, ["coco"])
    # The empty mask has no box, which supervision refuses.
    document = json.loads(path.read_text(encoding="utf-8"))
    document["annotations"].pop()
    path.write_text(json.dumps(document), encoding="utf-8")
    Image.fromarray(records.pixels).save(tmp_path / "my photo.jpg")
    ((_, _, read),) = supervision.DetectionDataset.from_coco(str(tmp_path), str(path), force_masks=True)
    # It leaves out a mask without pixels.
    assert np.array_equal(read.mask, record_masks[:5])


def test_sa1b_has_the_form_of_the_data_set(records: ImageRecords, record_masks: np.ndarray) -> None:
    document = strict_json(WRITERS["masks"]["sa1b"].write(records)["my photo.sa1b.json"])
    jsonschema.validate(document, SA1B)
    assert document["image"] == {"image_id": 1, "width": 80, "height": 60, "file_name": "my photo.jpg"}
    for annotation, record, mask in zip(document["annotations"], records.records, record_masks, strict=True):
        with coco_and_numpy_2():
            assert np.array_equal(coco_mask.decode(annotation["segmentation"]).astype(bool), mask)
        expected = record.to_dict("coco_rle")
        assert {key: annotation[key] for key in expected} == expected


def test_sa1b_of_a_prediction_says_null_for_what_is_not_known(result: Result) -> None:
    document = strict_json(WRITERS["masks"]["sa1b"].write(result)["my photo.sa1b.json"])
    first, *_, last = document["annotations"]
    assert first["stability_score"] is None and first["point_coords"] == [[10.1, 20.0], [30.0, 5.0]]
    assert first["predicted_iou"] == 0.5 and first["crop_box"] == [0, 0, 53, 37]
    assert last["area"] == 0 and last["bbox"] == [0, 0, 0, 0]


def test_json_of_records_has_their_keys_and_their_category(records: ImageRecords) -> None:
    document = strict_json(WRITERS["masks"]["json"].write(records)["my photo.prediction.json"])
    assert document["image"] == {"file_name": "my photo.jpg", "width": 80, "height": 60}
    assert document["notes"] == ["deadline_reached"] and "objects" not in document
    assert document["records"][0] == {**records.records[0].to_dict("coco_rle"), "category": "object"}


def test_polygons_of_coco_are_read_back_by_pycocotools_with_their_holes(
    records: ImageRecords, record_masks: np.ndarray, tmp_path: Path
) -> None:
    document = coco_document(records, polygons=True)
    path = tmp_path / "polygons.json"
    path.write_text(json.dumps(document))
    coco = COCO(path)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=1))
    assert len(annotations) == 5, "the empty mask is left out"
    for annotation, mask in zip(annotations, record_masks, strict=False):
        assert annotation["iscrowd"] == 0 and all(len(ring) >= 6 for ring in annotation["segmentation"])
        assert annotation["area"] == mask.sum()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
            read = coco.annToMask(annotation).astype(bool)
        assert np.array_equal(read, mask)
    assert [annotation.get("holes", 0) > 0 for annotation in annotations] == [True, False, False, False, True]


def test_polygons_of_coco_with_a_tolerance_have_fewer_corners(records: ImageRecords) -> None:
    exact, rough = (coco_document(records, polygons=True, tolerance=tolerance) for tolerance in (0.0, 1.0))
    corners = [sum(len(ring) for ring in one["annotations"][1]["segmentation"]) for one in (exact, rough)]
    assert corners[1] < corners[0] / 4
