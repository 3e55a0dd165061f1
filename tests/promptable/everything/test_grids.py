# SPDX-License-Identifier: Apache-2.0
"""Grids and crops are the reference's; the way from coarse to fine visits every point once."""

import numpy as np
import pytest

from segship.errors import ImageError
from segship.promptable.everything.grids import coarse_to_fine, crop_boxes, layer_grids, point_grid
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
