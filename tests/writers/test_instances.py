# SPDX-License-Identifier: Apache-2.0
"""Every result comes through one view, and nothing is lost in it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segship.errors import InputError
from segship.masks.spans import masks_to_boxes
from segship.promptable.everything.records import ImageRecords
from segship.writers import Result, as_instances, label_instances


def test_masks_of_a_prediction_come_in_its_order(result: Result) -> None:
    view = as_instances(result)
    assert [entry.place for entry in view.entries] == list(np.ndindex(2, 3))
    for entry in view.entries:
        assert entry.place is not None and np.array_equal(entry.mask, result.masks[entry.place])
        assert np.float32(entry.score) == result.prediction.iou_predictions[entry.place]
        assert entry.area == entry.mask.sum() and entry.box_xyxy == tuple(masks_to_boxes(entry.mask))
        assert entry.crop_box == (0, 0, 53, 37) and entry.stability_score is None
    assert view.entries[0].point_coords == ((10.1, 20.0), (30.0, 5.0))
    assert (view.stem, view.name, view.size) == ("my photo", "dir/my photo.jpg", (37, 53))
    assert view.notes == ("box_clipped", "trailing_data")


def test_best_masks_are_one_an_object_from_a_result_and_from_its_view(result: Result) -> None:
    for source in (result, as_instances(result)):
        assert [entry.place for entry in as_instances(source, best_only=True).entries] == [(0, 1), (1, 0)]


def test_records_are_kept_as_they_are(records: ImageRecords, record_masks: np.ndarray) -> None:
    view = as_instances(records)
    assert len(as_instances(records, best_only=True).entries) == 6
    assert len(as_instances(view, best_only=True).entries) == 6
    for entry, record, mask in zip(view.entries, records.records, record_masks, strict=True):
        assert np.array_equal(entry.mask, mask) and entry.place is None
        assert entry.score == record.predicted_iou and entry.stability_score == record.stability_score
        assert entry.sam_bbox == list(record.bbox) and entry.point_coords == record.point_coords


def test_boxes_are_those_of_coco_and_of_the_reference(result: Result, records: ImageRecords) -> None:
    for entry in (*as_instances(result).entries, *as_instances(records).entries):
        rle = coco_mask.encode(np.asfortranarray(entry.mask.astype(np.uint8)))
        assert entry.coco_bbox == coco_mask.toBbox(rle).tolist() and entry.area == coco_mask.area(rle)
        assert entry.rle["counts"] == rle["counts"].decode()
        y, x = np.nonzero(entry.mask)
        expected = [x.min(), y.min(), np.ptp(x), np.ptp(y)] if len(x) else [0, 0, 0, 0]
        assert entry.sam_bbox == expected


def test_records_of_an_image_of_another_size_are_refused(records: ImageRecords) -> None:
    with pytest.raises(InputError, match=r"an image of \(60, 80\) pixels, and the image has \(59, 80\)") as caught:
        as_instances(replace(records, pixels=records.pixels[1:]))
    assert caught.value.code == "bad_source"


def test_scores_that_are_no_numbers_are_none(records: ImageRecords) -> None:
    broken = replace(records.records[0], predicted_iou=float("nan"), stability_score=float("inf"))
    (entry,) = as_instances(replace(records, records=(broken,))).entries
    assert entry.score is None and entry.stability_score is None


def test_labels_become_categories_in_the_order_of_their_first_use(records: ImageRecords) -> None:
    view = label_instances(records, ["dog", "cat", "dog", "bird", "cat", "dog"])
    assert view.categories == ("dog", "cat", "bird")
    assert [entry.category for entry in view.entries] == [0, 1, 0, 2, 1, 0]


def test_categories_that_are_given_keep_their_numbers(records: ImageRecords) -> None:
    view = label_instances(records, ["cat"] * 6, categories=["dog", "cat"])
    assert view.categories == ("dog", "cat") and {entry.category for entry in view.entries} == {1}


def test_image_without_masks_keeps_a_category(no_records: ImageRecords) -> None:
    assert label_instances(no_records, []).categories == as_instances(no_records).categories == ("object",)


@pytest.mark.parametrize(
    ("labels", "categories", "message"),
    [
        (["cat"], None, "1 labels and 6 masks"),
        (["cat"] * 5 + ["cow"], ["cat", "dog"], "'cow' is no category; accepted are cat, dog"),
        (["cat"] * 6, ["cat", "dog", "cat"], "the category 'cat' stands twice; give every category once"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    records: ImageRecords, labels: list[str], categories: list[str] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        label_instances(records, labels, categories)
    assert caught.value.code == "bad_labels"
