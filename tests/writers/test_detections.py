# SPDX-License-Identifier: Apache-2.0
"""Detections say what supervision makes of the same masks itself."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from segship.errors import BackendUnavailable
from segship.promptable.everything.records import ImageRecords
from segship.writers import Result, label_instances, to_supervision

supervision = pytest.importorskip("supervision")


def test_records_are_detections_with_compact_masks(records: ImageRecords, record_masks: np.ndarray) -> None:
    detections = to_supervision(records)
    assert isinstance(detections, supervision.Detections) and len(detections) == 6
    assert isinstance(detections.mask, supervision.CompactMask)
    assert np.array_equal(np.asarray(detections.mask), record_masks)
    assert detections.data["area"].tolist() == record_masks.sum(axis=(1, 2)).tolist()
    assert np.array_equal(detections.confidence, np.float32([record.predicted_iou for record in records.records]))
    assert detections.data["stability_score"].tolist() == [record.stability_score for record in records.records]
    assert detections.data["class_name"].tolist() == ["object"] * 6 and not detections.class_id.any()


def test_boxes_are_those_of_supervision(records: ImageRecords, record_masks: np.ndarray) -> None:
    detections = to_supervision(records)
    # Of the records with pixels: supervision has no box for a mask without one.
    assert np.array_equal(detections.xyxy[:5], supervision.mask_to_xyxy(record_masks[:5]))
    assert detections.xyxy[5].tolist() == [0, 0, 0, 0] and not detections.mask[5].any()


def test_same_as_supervision_makes_of_the_reference_form(records: ImageRecords) -> None:
    theirs = supervision.Detections.from_sam([record.to_dict("binary_mask") for record in records.records])
    ours = to_supervision(records)
    order = np.argsort(-ours.data["area"], kind="stable")
    assert np.array_equal(ours.xyxy[order], theirs.xyxy) and np.array_equal(np.asarray(ours.mask)[order], theirs.mask)


def test_detections_can_be_filtered_and_drawn(records: ImageRecords) -> None:
    detections = to_supervision(records)
    large = detections[detections.data["area"] > 100]
    assert len(large) == 4 and large.data["class_name"].tolist() == ["object"] * 4
    scene = supervision.MaskAnnotator().annotate(records.pixels.copy(), large)
    assert (scene != records.pixels).any()


def test_prediction_gives_the_best_mask_of_every_object_with_its_category(result: Result) -> None:
    detections = to_supervision(label_instances(result, ["a", "cat", "b", "dog", "c", "d"]))
    assert np.array_equal(np.asarray(detections.mask), [result.masks[0, 1], result.masks[1, 0]])
    assert detections.data["class_name"].tolist() == ["cat", "dog"] and detections.class_id.tolist() == [1, 3]
    assert np.isnan(detections.data["stability_score"]).all()


def test_no_masks_are_no_detections(no_records: ImageRecords) -> None:
    assert to_supervision(no_records).is_empty()


def test_supervision_without_compact_masks_gets_arrays(
    records: ImageRecords, record_masks: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(supervision, "CompactMask")
    detections = to_supervision(records)
    assert isinstance(detections.mask, np.ndarray) and np.array_equal(detections.mask, record_masks)


def test_image_too_large_for_compact_masks_gets_arrays(records: ImageRecords) -> None:
    runs = np.array([5, 33_000 - 5])
    wide = replace(records.records[0], runs=np.array([*runs]), size=(1, 33_000))
    strip = replace(records, records=(wide,), pixels=np.zeros((1, 33_000, 3), np.uint8))
    detections = to_supervision(strip)
    assert isinstance(detections.mask, np.ndarray) and detections.mask.sum() == 32_995


def test_missing_supervision_is_named(records: ImageRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(BackendUnavailable, match="pip install supervision") as caught:
        to_supervision(records)
    assert caught.value.code == "supervision_missing"
