# SPDX-License-Identifier: Apache-2.0
"""Pictures are read back with Pillow."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from segship.draw import draw_masks, draw_overlay
from segship.errors import OutputError
from segship.masks.lazy import ArrayMasks
from segship.promptable.everything.records import ImageRecords
from segship.writers import WRITERS, Result
from segship.writers.pictures import FolderWriter, PngWriter


def read(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_png_masks_are_exactly_the_masks(result: Result) -> None:
    files = PngWriter().write(result)
    assert len(files) == 6
    for entry, index in np.ndindex(2, 3):
        pixels = read(files[f"my photo.object{entry}.mask{index}.png"])
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, result.masks[entry, index] * 255)


def test_overlay_shows_the_best_masks_and_the_prompts_in_rgb(result: Result) -> None:
    masks = np.zeros((2, 3, 370, 530), bool)
    masks[0, 1, :, 400:], masks[1, 0, 260:, :400], masks[:, 2] = True, True, True
    large = replace(
        result,
        pixels=np.full((370, 530, 3), (200, 40, 90), np.uint8),
        prediction=replace(result.prediction, held=ArrayMasks(masks), original_size=(370, 530)),
    )
    overlay = read(WRITERS["masks"]["overlay"].write(large)["my photo.overlay.jpg"])
    expected = draw_overlay(large.pixels, np.stack([masks[0, 1], masks[1, 0]]), objects=large.objects)
    difference = np.abs(overlay.astype(int) - expected)
    # Edges lose by JPEG's coarse color, areas do not; masks or channels that were mixed up would differ everywhere.
    assert np.median(difference) <= 2 and difference.mean() < 2


def test_of_equal_scores_the_first_mask_is_the_best(result: Result) -> None:
    assert result.best_masks.tolist() == [1, 0]


def test_image_too_large_for_jpeg_is_refused(result: Result, capfd: pytest.CaptureFixture[str]) -> None:
    masks = np.zeros((1, 1, 66_000, 1), bool)
    long = replace(
        result,
        pixels=np.zeros((66_000, 1, 3), np.uint8),
        prediction=replace(result.prediction, held=ArrayMasks(masks), iou_predictions=np.ones((1, 1), np.float32)),
        objects=(),
    )
    with pytest.raises(OutputError, match="66000 x 1 pixels cannot be encoded as .jpg") as caught:
        WRITERS["masks"]["overlay"].write(long)
    assert caught.value.code == "cannot_encode"
    # OpenCV says so on its own, too.
    capfd.readouterr()


def test_png_masks_of_records_are_exactly_the_masks(records: ImageRecords, record_masks: np.ndarray) -> None:
    files = PngWriter().write(records)
    assert list(files) == [f"my photo.mask{index}.png" for index in range(6)]
    for data, mask in zip(files.values(), record_masks, strict=True):
        assert np.array_equal(read(data), mask * 255)


def test_overlay_of_records_shows_all_masks(records: ImageRecords, record_masks: np.ndarray) -> None:
    overlay = read(WRITERS["masks"]["overlay"].write(records)["my photo.overlay.jpg"])
    expected = draw_masks(records.pixels, record_masks)
    # The pixels are noise, which JPEG keeps badly; another seed would differ by far more.
    assert np.abs(overlay.astype(int) - expected).mean() < np.abs(draw_masks(records.pixels, []) - expected).mean()


def test_folder_is_that_of_the_reference(records: ImageRecords, record_masks: np.ndarray) -> None:
    files = FolderWriter().write(records)
    assert list(files) == [*(f"my photo.masks/{index}.png" for index in range(6)), "my photo.masks/metadata.csv"]
    for index, mask in enumerate(record_masks):
        pixels = read(files[f"my photo.masks/{index}.png"])
        assert pixels.dtype == np.uint8 and np.array_equal(pixels, mask * 255)
    text = files["my photo.masks/metadata.csv"].decode()
    # The first line of the reference's file, word for word, since programs look for it.
    assert text.splitlines()[0] == (
        "id,area,bbox_x0,bbox_y0,bbox_w,bbox_h,point_input_x,point_input_y,"
        "predicted_iou,stability_score,crop_box_x0,crop_box_y0,crop_box_w,crop_box_h"
    )
    for index, (row, record) in enumerate(zip(csv.DictReader(io.StringIO(text)), records.records, strict=True)):
        assert int(row["id"]) == index and int(row["area"]) == record.area
        assert tuple(int(row[f"bbox_{side}"]) for side in ("x0", "y0", "w", "h")) == record.bbox
        assert tuple(int(row[f"crop_box_{side}"]) for side in ("x0", "y0", "w", "h")) == record.crop_box
        assert (float(row["point_input_x"]), float(row["point_input_y"])) == record.point_coords[0]
        assert float(row["predicted_iou"]) == record.predicted_iou
        assert float(row["stability_score"]) == record.stability_score


def test_folder_of_a_prediction_leaves_cells_empty_for_what_is_not_known(result: Result) -> None:
    text = FolderWriter().write(replace(result, objects=()))["my photo.masks/metadata.csv"].decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 6
    assert {row["stability_score"] for row in rows} == {row["point_input_x"] for row in rows} == {""}
    assert [float(row["predicted_iou"]) for row in rows] == pytest.approx([0.5, 0.9, 0.7, 0.8, 0.1, 0.8])
