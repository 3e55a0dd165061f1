# SPDX-License-Identifier: Apache-2.0
"""COCO is read back with pycocotools, JSON with a strict parser."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from segship.masks.rle import decode_rle
from segship.writers import Result, prediction_document, write_result
from segship.writers.documents import CocoWriter, JsonWriter


def strict_json(data: bytes) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(data, parse_constant=refuse)


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
        with warnings.catch_warnings():
            # pycocotools has an __array__ of before numpy 2.
            warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
            assert np.array_equal(coco.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 1


def test_coco_is_a_data_set_with_one_image_and_one_category(result: Result) -> None:
    document = strict_json(CocoWriter().write(result)["my photo.coco.json"])
    assert document["images"] == [{"id": 1, "file_name": "my photo.jpg", "width": 53, "height": 37}]
    assert document["categories"] == [{"id": 1, "name": "object", "supercategory": "object"}]
    assert [entry["id"] for entry in document["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [entry["score"] for entry in document["annotations"]] == [0.5, 0.9, 0.7, 0.8, 0.1, 0.8]
    assert document["annotations"][5]["bbox"] == [0, 0, 0, 0]


def test_coco_boxes_are_x_y_width_height(result: Result) -> None:
    masks = np.zeros_like(result.masks)
    masks[0, 0, 5:9, 10:30] = True
    boxed = replace(result, prediction=replace(result.prediction, masks=masks))
    assert strict_json(CocoWriter().write(boxed)["my photo.coco.json"])["annotations"][0]["bbox"] == [10, 5, 20, 4]


def test_json_holds_scores_masks_prompts_and_notes(result: Result) -> None:
    document = strict_json(JsonWriter().write(result)["my photo.prediction.json"])
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
    document = strict_json(JsonWriter().write(broken)["my photo.prediction.json"])
    assert document["objects"][0]["masks"][0]["iou_prediction"] is None


def test_names_are_kept_readable_and_made_safe(result: Result) -> None:
    odd = replace(result, name="写真\n\udcff.jpg")
    assert prediction_document(odd)["image"]["file_name"] == "写真__.jpg"
    assert "写真".encode() in JsonWriter().write(odd)["my photo.prediction.json"]


def test_notes_are_said_once(result: Result) -> None:
    twice = replace(result, notes=("box_clipped", "box_clipped"))
    assert prediction_document(twice)["notes"] == ["box_clipped"]
