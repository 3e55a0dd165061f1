# SPDX-License-Identifier: Apache-2.0
"""Label maps are read back with Pillow and compared with masks painted one by one."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segship.errors import OutputError
from segship.promptable.everything.records import ImageRecords
from segship.writers import WRITERS, Result, label_instances, pictures
from segship.writers.pictures import PanopticWriter


def read(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def paint(masks: list[np.ndarray]) -> np.ndarray:
    """The overlap rule, slowly: the largest first, of equal areas the earlier first."""
    labels = np.zeros(masks[0].shape, np.int64)
    order = sorted(range(len(masks)), key=lambda index: (-int(masks[index].sum()), index))
    for index in order:
        labels[masks[index]] = index + 1
    return labels


def ids_of(rgb: np.ndarray) -> np.ndarray:
    """As panopticapi's rgb2id has it."""
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    return red + 256 * green + 256**2 * blue


def panoptic(source: Result | ImageRecords) -> tuple[dict, np.ndarray]:
    files = PanopticWriter().write(source)
    assert set(files) == {"my photo.panoptic/panoptic.png", "my photo.panoptic/panoptic.json"}
    document = json.loads(files["my photo.panoptic/panoptic.json"])
    (annotation,) = document["annotations"]
    return document, ids_of(read(files["my photo.panoptic/" + annotation["file_name"]]))


def test_instance_ids_are_16_bit_and_small_masks_are_on_top(records: ImageRecords, record_masks: np.ndarray) -> None:
    labels = read(WRITERS["masks"]["instances"].write(records)["my photo.instances.png"])
    assert labels.dtype == np.uint16 and labels.shape == (60, 80)
    assert np.array_equal(labels, paint(list(record_masks)))
    disc = record_masks[1] & ~record_masks[3] & ~record_masks[2]
    assert (labels[disc] == 2).all(), "the disc lies on the larger ring"


def test_of_a_prediction_the_best_mask_of_every_object_is_painted(result: Result) -> None:
    labels = read(WRITERS["masks"]["instances"].write(result)["my photo.instances.png"])
    assert np.array_equal(labels, paint([result.masks[0, 1], result.masks[1, 0]]))


def test_of_equal_areas_the_later_is_on_top(records: ImageRecords) -> None:
    twins = replace(records, records=(records.records[0], records.records[0]))
    labels = read(WRITERS["masks"]["instances"].write(twins)["my photo.instances.png"])
    assert set(np.unique(labels)) == {0, 2}


def test_masks_that_do_not_overlap_come_back_exactly(records: ImageRecords, record_masks: np.ndarray) -> None:
    apart = replace(records, records=(records.records[0], records.records[2], records.records[3]))
    _, ids = panoptic(apart)
    labels = read(WRITERS["masks"]["instances"].write(apart)["my photo.instances.png"])
    alone = record_masks[2] & ~record_masks[3]
    for number, mask in ((1, record_masks[0]), (2, alone), (3, record_masks[3])):
        assert np.array_equal(labels == number, mask) and np.array_equal(ids == number, mask)


def test_panoptic_json_and_png_agree_as_panopticapi_demands(records: ImageRecords, record_masks: np.ndarray) -> None:
    document, ids = panoptic(records)
    (image,), (annotation,) = document["images"], document["annotations"]
    assert image == {"id": 1, "file_name": "my photo.jpg", "width": 80, "height": 60}
    assert annotation["image_id"] == image["id"]
    assert np.array_equal(ids, paint(list(record_masks)))
    # Every id in the picture but 0 is described, and every segment that is described is in the picture.
    segments = annotation["segments_info"]
    assert [segment["id"] for segment in segments] == sorted(set(np.unique(ids).tolist()) - {0}) == [1, 2, 3, 4, 5]
    categories = {category["id"]: category for category in document["categories"]}
    for segment in segments:
        y, x = np.nonzero(ids == segment["id"])
        assert segment["area"] == len(x) and segment["iscrowd"] == 0
        assert segment["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
        assert categories[segment["category_id"]]["isthing"] == 1


def test_panoptic_ids_beyond_a_byte_use_the_other_channels(records: ImageRecords) -> None:
    # 70,000 masks without pixels in front, so that the last ones have ids of three bytes.
    empty = records.records[5]
    many = replace(records, records=(*[empty] * 70_000, records.records[0], records.records[3]))
    document, ids = panoptic(many)
    assert set(np.unique(ids)) == {0, 70_001, 70_002}
    assert [segment["id"] for segment in document["annotations"][0]["segments_info"]] == [70_001, 70_002]


def test_panoptic_categories_are_those_that_were_given(records: ImageRecords) -> None:
    named = label_instances(records, ["cat", "dog", "cat", "dog", "dog", "cat"])
    document, _ = panoptic(named)
    assert [category["name"] for category in document["categories"]] == ["cat", "dog"]
    segments = document["annotations"][0]["segments_info"]
    assert [segment["category_id"] for segment in segments] == [1, 2, 1, 2, 2]


def test_picture_without_masks_is_all_zero(no_records: ImageRecords) -> None:
    document, ids = panoptic(no_records)
    assert not ids.any() and document["annotations"][0]["segments_info"] == []
    assert not read(WRITERS["masks"]["instances"].write(no_records)["my photo.instances.png"]).any()


def test_more_masks_than_ids_are_refused(records: ImageRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pictures.LARGEST_16_BIT == 65_535 and pictures.LARGEST_PANOPTIC == 16_777_215
    many = replace(records, records=records.records[:1] * 65_536)
    with pytest.raises(OutputError, match="65536 masks, and this format holds 65535") as caught:
        WRITERS["masks"]["instances"].write(many)
    assert caught.value.code == "too_many_masks"
