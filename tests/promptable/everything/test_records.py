# SPDX-License-Identifier: Apache-2.0
"""Records hold run lengths and give any form of segmentation."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from segship.errors import InputError
from segship.masks.rle import mask_to_runs
from segship.promptable.everything.records import ImageRecords, MaskRecord

MASK = np.zeros((5, 7), bool)
MASK[1:4, 2:6] = True
MASK[2, 3] = False


def make_record(mask=MASK, **changes):
    height, width = mask.shape
    fields = {
        "runs": mask_to_runs(mask),
        "size": (height, width),
        "area": int(mask.sum()),
        "bbox": (2, 1, 3, 2),
        "predicted_iou": 0.9,
        "point_coords": ((3.5, 2.5),),
        "stability_score": 0.97,
        "crop_box": (0, 0, width, height),
    }
    return MaskRecord(**{**fields, **changes})


def test_keys_are_those_of_sa_1b_in_the_reference_order():
    keys = ["segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"]
    assert list(make_record().to_dict()) == keys


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_form_of_segmentation_is_the_same_mask():
    record = make_record()
    assert np.array_equal(record.to_dict("binary_mask")["segmentation"], MASK)
    assert np.array_equal(coco.decode(record.to_dict("coco_rle")["segmentation"]), MASK)
    plain = record.to_dict("uncompressed_rle")["segmentation"]
    assert plain["size"] == [5, 7] and plain["counts"] == record.runs.tolist()


def test_run_lengths_are_fit_for_json():
    for mode in ("coco_rle", "uncompressed_rle"):
        document = json.loads(json.dumps(make_record().to_dict(mode)))
        assert document["point_coords"] == [[3.5, 2.5]] and document["bbox"] == [2, 1, 3, 2]


def test_unknown_output_mode_is_refused_by_name():
    with pytest.raises(InputError, match="output_mode is 'polygons'; accepted are binary_mask") as caught:
        make_record().to_dict("polygons")
    assert caught.value.code == "bad_output_mode"


def test_image_records_hold_what_writers_need():
    records = ImageRecords("photo", "photo.jpg", np.zeros((5, 7, 3), np.uint8), (make_record(),))
    assert records.notes == () and records.records[0].area == 11
