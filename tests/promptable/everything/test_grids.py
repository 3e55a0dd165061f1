# SPDX-License-Identifier: Apache-2.0
"""Grids and crops are the reference's; the way from coarse to fine visits every point once."""

import numpy as np
import pytest

from segship.errors import ImageError
from segship.masks.upscaling import Upscaler
from segship.promptable.everything.grids import SettledPoints, coarse_to_fine, crop_boxes, layer_grids, point_grid
from segship.promptable.everything.options import AmgOptions
from tests.oracle import reference


@pytest.fixture(scope="module")
def amg():
    reference()
    from segment_anything.utils import amg

    return amg


@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_grid_equals_the_reference_bit_for_bit(amg, count):
    assert np.array_equal(point_grid(count), amg.build_point_grid(count))


def test_grids_of_layers_equal_the_reference(amg):
    options = AmgOptions(points_per_side=33, crop_n_layers=2, crop_n_points_downscale_factor=3)
    for ours, theirs in zip(layer_grids(options), amg.build_all_layer_point_grids(33, 2, 3), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(1200, 1800), (400, 601), (97, 53), (1000, 77)])
@pytest.mark.parametrize("ratio", [512 / 1500, 0.0, 0.5])
def test_crops_equal_the_reference(amg, size, ratio):
    boxes, layers = amg.generate_crop_boxes(size, 3, ratio)
    crops = crop_boxes(size, 3, ratio)
    assert [list(crop.box_xyxy) for crop in crops] == boxes
    assert [crop.layer for crop in crops] == layers


def test_image_too_small_for_its_crops_is_refused():
    with pytest.raises(ImageError, match="at most 1 for crop_n_layers") as caught:
        crop_boxes((3, 2), 3, 0.0)
    assert caught.value.code == "too_small_for_crops"


@pytest.mark.parametrize("points", [point_grid(32), point_grid(3), np.random.default_rng(0).random((70, 2))])
def test_coarse_to_fine_visits_every_point_once(points):
    portions = coarse_to_fine(points)
    assert sorted(np.concatenate(portions).tolist()) == list(range(len(points)))


def test_coarse_portions_are_spread_and_small_first():
    portions = coarse_to_fine(point_grid(32))
    assert [len(portion) for portion in portions] == [16, 64, 256, 688]
    first = point_grid(32)[portions[0]]
    assert first.min() < 0.15 and first.max() > 0.85 - 0.02


def test_coarse_to_fine_begins_where_it_is_told_to():
    assert [len(portion) for portion in coarse_to_fine(point_grid(32), 4)] == [64, 256, 704]
    assert [len(portion) for portion in coarse_to_fine(np.random.default_rng(0).random((70, 2)), 4)] == [4, 13, 53]


CELLS, SIDE = 32, 8
UPSCALER = Upscaler(CELLS, 128, (128, 128), (200, 200))


def rectangle(x0, y0, x1, y1):
    """Logits (32, 32) of a rectangle of cells, and its box in pixels of the image, ends inclusive."""
    logits = np.full((CELLS, CELLS), -1.0, np.float32)
    logits[y0:y1, x0:x1] = 1
    per_cell = 200 / CELLS
    return logits, np.array([int(x0 * per_cell), int(y0 * per_cell), int(x1 * per_cell) - 1, int(y1 * per_cell) - 1])


def settled_by(found):
    """Return by its places which points of an 8 x 8 grid are settled by (point, rectangle) pairs."""
    settled = SettledPoints(point_grid(SIDE) * 200, UPSCALER)
    for point, corners in found:
        logits, box = rectangle(*corners)
        settled.add(point, box, logits)
    return np.flatnonzero(settled.mask()).tolist()


def test_points_well_inside_a_mask_that_four_points_found_are_settled():
    # Points stand in the middle of four cells; the rectangle has five columns and four rows of them.
    mask = (8, 8, 28, 24)
    inside = [SIDE * row + column for row in (3, 4) for column in (3, 4, 5)]
    assert settled_by([(point, mask) for point in (18, 20, 34, 36)]) == inside
    assert settled_by([(point, mask) for point in (18, 20, 34)]) == []


def test_masks_of_one_point_are_one_vote():
    mask = (8, 8, 28, 24)
    assert settled_by([(18, mask), (18, mask), (20, mask), (34, mask)]) == []
    assert settled_by([(18, mask), (18, mask), (20, mask), (34, mask), (36, mask)]) != []


def test_masks_that_differ_settle_nothing_and_an_edge_of_the_crop_is_no_border():
    grown = [(0, 0, 20 + 3 * step, 20) for step in range(4)]
    assert settled_by(list(enumerate(grown))) == []
    whole = [(point, (0, 0, CELLS, CELLS)) for point in range(4)]
    assert settled_by(whole) == list(range(SIDE * SIDE))
    assert settled_by([]) == []


def test_votes_are_those_of_every_pair_compared_by_itself():
    rng = np.random.default_rng(0)
    corners = [(8 + a, 8 + b, 24 + c, 24 + d) for a, b, c, d in rng.integers(0, 3, (600, 4)).tolist()]
    points = np.sort(rng.integers(0, SIDE * SIDE, len(corners))).tolist()
    settled = SettledPoints(point_grid(SIDE) * 200, UPSCALER)
    boxes, areas = [], []
    for point, place in zip(points, corners, strict=True):
        logits, box = rectangle(*place)
        settled.add(point, box, logits)
        boxes.append(box)
        areas.append((logits > 0).sum())

    def alike(first, second):
        wide, high = (
            min(boxes[first][axis + 2], boxes[second][axis + 2]) - max(boxes[first][axis], boxes[second][axis]) + 1
            for axis in (0, 1)
        )
        sizes = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (boxes[first], boxes[second])]
        iou = wide * high / (sum(sizes) - wide * high)
        return iou >= 0.9 and min(areas[first], areas[second]) >= 0.9 * max(areas[first], areas[second])

    for index in range(0, len(corners), 37):
        votes = {points[other] for other in range(len(corners)) if alike(index, other)}
        assert settled._votes()[index] == len(votes)
