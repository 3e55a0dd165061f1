# SPDX-License-Identifier: Apache-2.0
"""LabelMe files are read as LabelMe reads them, YOLO lines are filled by the even-odd rule."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from segship.errors import InputError
from segship.masks.polygons import Polygon, polygons_to_mask
from segship.masks.scores import boundary_f_score
from segship.promptable.everything.records import ImageRecords
from segship.writers import (
    LabelMeWriter,
    Outlines,
    Result,
    YoloWriter,
    encode_result,
    label_instances,
    write_result,
)
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
    document = labelme(records, LabelMeWriter(tolerance=0.0))
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


def test_labelme_can_be_told_to_write_polygons_alone(records: ImageRecords, record_masks: np.ndarray) -> None:
    document = labelme(records, LabelMeWriter(tolerance=0.0, shape="polygon"))
    check_labelme_fields(document)
    assert {shape["shape_type"] for shape in document["shapes"]} == {"polygon"}
    for group, mask in enumerate(record_masks):
        inside = np.zeros_like(mask)
        for shape in document["shapes"]:
            if shape["group_id"] == group:
                inside |= fill_even_odd(np.array(shape["points"]), mask.shape)
        assert np.array_equal(inside, mask)
    ring = next(shape for shape in document["shapes"] if shape["group_id"] == 0)
    filled = fill_like_labelme(ring, (60, 80))
    assert not filled[30, 40] and filled[:, 40].sum() > 20, "LabelMe leaves the hole open"


def test_labelme_polygons_have_corners_for_a_person(records: ImageRecords, record_masks: np.ndarray) -> None:
    disc, exact = (
        next(shape for shape in labelme(records, writer)["shapes"] if shape["group_id"] == 1)
        for writer in (LabelMeWriter(), LabelMeWriter(tolerance=0.0))
    )
    assert len(disc["points"]) <= 16 < 60 < len(exact["points"])
    read = polygons_to_mask([Polygon(np.array(disc["points"]))], (60, 80))
    assert (read & record_masks[1]).sum() / (read | record_masks[1]).sum() > 0.95


def test_labelme_leads_to_the_image_from_where_its_file_lies(records: ImageRecords, tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "a b" / "my photo.jpg"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (80, 60)).save(picture)
    (tmp_path / "short").symlink_to(tmp_path / "results" / "deep")
    (tmp_path / "results" / "deep").mkdir(parents=True)
    at = replace(records, name=str(picture))
    for folder in (tmp_path / "results", tmp_path / "results" / "deep", tmp_path / "short", picture.parent):
        (path,) = write_result(at, folder, ["labelme"], overwrite=True)
        document = json.loads(path.read_text())
        check_labelme_fields(document)
        # As LabelMe opens it.
        assert os.path.samefile(os.path.join(os.path.dirname(path), document["imagePath"]), picture)
        assert not os.path.isabs(document["imagePath"])
    assert document["imagePath"] == "my photo.jpg"
    (path,) = write_result(replace(records, name=str(tmp_path / "gone.jpg")), tmp_path, ["labelme"])
    assert json.loads(path.read_text())["imagePath"] == "gone.jpg"


def test_outlines_reach_every_format_that_has_them(records: ImageRecords) -> None:
    exact = encode_result(records, ["labelme", "yolo", "coco"], outlines=Outlines(tolerance=0.0, coco_polygons=True))
    rough = encode_result(records, ["labelme", "yolo", "coco"], outlines=Outlines(tolerance=1.0, coco_polygons=True))
    for name in exact:
        assert len(rough[name]) < len(exact[name])
    (masks,) = encode_result(records, ["labelme"], outlines=Outlines(labelme_shape="mask")).values()
    assert masks == LabelMeWriter(shape="mask").write(records)["my photo.labelme.json"]
    assert encode_result(records, ["coco"]) == encode_result(records, ["coco"], outlines=Outlines(tolerance=1.0))


@pytest.mark.parametrize("wrong", [{"tolerance": -1}, {"tolerance": float("nan")}, {"labelme_shape": "hole"}])
def test_outlines_that_make_no_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))) as caught:
        Outlines(**wrong)
    assert caught.value.code == "bad_option"


def test_labelme_can_be_told_to_write_masks_alone(records: ImageRecords, record_masks: np.ndarray) -> None:
    document = labelme(records, LabelMeWriter(shape="mask"))
    check_labelme_fields(document)
    assert [shape["shape_type"] for shape in document["shapes"]] == ["mask"] * 5
    for shape, mask in zip(document["shapes"], record_masks, strict=False):
        assert np.array_equal(read_mask_shape(shape, mask.shape), mask)


def test_labelme_fills_our_polygons_to_within_a_pixel_of_the_border(
    records: ImageRecords, record_masks: np.ndarray
) -> None:
    document = labelme(records, LabelMeWriter(tolerance=0.0))
    shape = next(shape for shape in document["shapes"] if shape["group_id"] == 1)
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
