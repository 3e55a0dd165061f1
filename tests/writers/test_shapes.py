# SPDX-License-Identifier: Apache-2.0
"""LabelMe files are read as LabelMe reads them, YOLO lines are filled by the even-odd rule."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from segship.masks.polygons import Polygon, polygons_to_mask
from segship.masks.scores import boundary_f_score
from segship.promptable.everything.records import ImageRecords
from segship.writers import LabelMeWriter, Result, YoloWriter, label_instances, write_result
from segship.writers.shapes import join_rings


def labelme(source: object, writer: LabelMeWriter | None = None) -> dict:
    (data,) = (writer or LabelMeWriter()).write(source).values()
    return json.loads(data)


def check_labelme_fields(document: dict) -> None:
    """What LabelMe's loader asks of a file and of every shape."""
    assert list(document) == ["version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"]
    assert document["flags"] == {} and document["imageData"] is None
    for shape in document["shapes"]:
        assert isinstance(shape["label"], str) and isinstance(shape["description"], str) and shape["flags"] == {}
        assert type(shape["group_id"]) is int and shape["shape_type"] in ("polygon", "mask")
        assert all(type(side) in (int, float) for point in shape["points"] for side in point)
        assert all(len(point) == 2 for point in shape["points"])
        assert len(shape["points"]) >= 3 if shape["shape_type"] == "polygon" else len(shape["points"]) == 2


def read_mask_shape(shape: dict, size_hw: tuple[int, int]) -> np.ndarray:
    """As labelme's shapes_to_label does it: the corners are the first and the last pixel."""
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
        part = np.asarray(image).astype(bool)
    mask = np.zeros(size_hw, bool)
    (x0, y0), (x1, y1) = shape["points"]
    mask[y0 : y1 + 1, x0 : x1 + 1] = part
    return mask


def fill_like_labelme(shape: dict, size_hw: tuple[int, int]) -> np.ndarray:
    """As labelme's shape_to_mask does it."""
    image = Image.fromarray(np.zeros(size_hw, np.uint8))
    ImageDraw.Draw(image).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
    return np.asarray(image).astype(bool)


def fill_even_odd(ring: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """A pixel is inside if a ray from its centre to the left crosses the ring an odd number of times."""
    inside = np.zeros(size_hw, bool)
    x, y = np.arange(size_hw[1]) + 0.5, np.arange(size_hw[0]) + 0.5
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        rows = (y0 > y) != (y1 > y)
        crossing = x0 + (y[rows] - y0) / (y1 - y0 or 1) * (x1 - x0)
        inside[rows] ^= x > crossing[:, None]
    return inside


def read_yolo(data: bytes, size_hw: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
    height, width = size_hw
    lines = [line.split(" ") for line in data.decode("ascii").splitlines()]
    return [(int(first), np.array(rest, float).reshape(-1, 2) * (width, height)) for first, *rest in lines]


def test_labelme_keeps_every_mask_exactly(records: ImageRecords, record_masks: np.ndarray) -> None:
    document = labelme(records)
    check_labelme_fields(document)
    assert (document["imagePath"], document["imageHeight"], document["imageWidth"]) == ("my photo.jpg", 60, 80)
    for group, mask in enumerate(record_masks):
        shapes = [shape for shape in document["shapes"] if shape["group_id"] == group]
        read = np.zeros_like(mask)
        for shape in shapes:
            if shape["shape_type"] == "mask":
                read |= read_mask_shape(shape, mask.shape)
            else:
                read |= polygons_to_mask([Polygon(np.array(shape["points"]))], mask.shape)
        assert np.array_equal(read, mask)


def test_labelme_has_polygons_for_parts_and_a_mask_for_holes(records: ImageRecords) -> None:
    kinds = [(shape["group_id"], shape["shape_type"]) for shape in labelme(records)["shapes"]]
    # Ring, disc, two parts, one pixel, noise; the empty mask has no shape.
    assert kinds == [(0, "mask"), (1, "polygon"), (2, "polygon"), (2, "polygon"), (3, "polygon"), (4, "mask")]


def test_labelme_can_be_told_to_write_masks_alone(records: ImageRecords, record_masks: np.ndarray) -> None:
    document = labelme(records, LabelMeWriter(shape="mask"))
    check_labelme_fields(document)
    assert [shape["shape_type"] for shape in document["shapes"]] == ["mask"] * 5
    for shape, mask in zip(document["shapes"], record_masks, strict=False):
        assert np.array_equal(read_mask_shape(shape, mask.shape), mask)


def test_labelme_fills_our_polygons_to_within_a_pixel_of_the_border(
    records: ImageRecords, record_masks: np.ndarray
) -> None:
    shape = next(shape for shape in labelme(records)["shapes"] if shape["group_id"] == 1)
    filled = fill_like_labelme(shape, (60, 80))
    assert (filled & record_masks[1]).sum() == record_masks[1].sum()
    assert boundary_f_score(filled, record_masks[1], tolerance_px=1.5) == 1


def test_labelme_has_the_best_masks_labels_and_scores(result: Result) -> None:
    named = label_instances(result, ["a", "cat", "b", "dog", "c", "d"])
    document = labelme(named)
    check_labelme_fields(document)
    assert {shape["label"] for shape in document["shapes"]} == {"cat", "dog"}
    assert {shape["score"] for shape in document["shapes"]} == {0.9, 0.8}


def test_tolerance_saves_corners_and_costs_accuracy(records: ImageRecords, record_masks: np.ndarray) -> None:
    exact, rough = (labelme(records, LabelMeWriter(tolerance=tolerance)) for tolerance in (0.0, 1.0))
    of_disc = [[shape for shape in document["shapes"] if shape["group_id"] == 1] for document in (exact, rough)]
    assert len(of_disc[1][0]["points"]) < len(of_disc[0][0]["points"]) / 2
    read = polygons_to_mask([Polygon(np.array(of_disc[1][0]["points"]))], (60, 80))
    assert boundary_f_score(read, record_masks[1], tolerance_px=1.5) == 1


def test_yolo_lines_filled_even_odd_are_exactly_the_masks(records: ImageRecords, record_masks: np.ndarray) -> None:
    lines = read_yolo(YoloWriter().write(records)["my photo.txt"], (60, 80))
    assert len(lines) == 5, "the empty mask has no line"
    for (category, ring), mask in zip(lines, record_masks, strict=False):
        assert category == 0 and np.array_equal(fill_even_odd(ring, mask.shape), mask)
        x, y = ring.T
        assert x.min() >= 0 and x.max() <= 80 and y.min() >= 0 and y.max() <= 60


def test_yolo_numbers_are_parts_of_one_without_exponents(result: Result) -> None:
    text = YoloWriter().write(label_instances(result, list("abcdef")))["my photo.txt"].decode()
    numbers = text.split()
    assert "e" not in text and all(0 <= float(number) <= 1 for line in text.splitlines() for number in line.split()[1:])
    assert [line.split()[0] for line in text.splitlines()] == ["1", "3"] and max(map(len, numbers)) <= 9


def test_yolo_boxes_of_rings_are_the_boxes_of_the_masks(records: ImageRecords, record_masks: np.ndarray) -> None:
    for (_, ring), mask in zip(
        read_yolo(YoloWriter().write(records)["my photo.txt"], (60, 80)), record_masks, strict=False
    ):
        y, x = np.nonzero(mask)
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert [*ring.min(axis=0), *ring.max(axis=0)] == pytest.approx(expected, abs=1e-4)


def test_supervision_reads_yolo_labels_with_their_holes(
    records: ImageRecords, record_masks: np.ndarray, tmp_path: Path
) -> None:
    supervision = pytest.importorskip("supervision")
    named = label_instances(records, ["cat", "dog", "cat", "dog", "dog", "cat"])
    (tmp_path / "data.yaml").write_text("nc: 2\nnames: [cat, dog]\n")
    Image.fromarray(records.pixels).save(tmp_path / "my photo.png")
    write_result(named, tmp_path, ["yolo"])
    ((_, _, read),) = supervision.DetectionDataset.from_yolo(
        str(tmp_path), str(tmp_path), str(tmp_path / "data.yaml"), force_masks=True
    )
    assert read.class_id.tolist() == [0, 1, 0, 1, 1]
    for mask, expected in list(zip(read.mask, record_masks, strict=False))[:2]:
        # OpenCV draws the border of what it fills: nothing is missing, and what is more lies on the border.
        assert not (expected & ~mask).any()
        assert boundary_f_score(mask, expected, tolerance_px=1.5) == 1
    assert not read.mask[0][30, 40], "the middle of the ring"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_joined_rings_enclose_what_they_enclose_alone(count: int) -> None:
    rng = np.random.default_rng(count)
    rings = [rng.random((rng.integers(3, 9), 2)) * (30, 20) for _ in range(count)]
    alone = np.zeros((20, 30), bool)
    for ring in rings:
        alone ^= fill_even_odd(ring, (20, 30))
    assert np.array_equal(fill_even_odd(join_rings(rings), (20, 30)), alone)
