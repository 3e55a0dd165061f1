# SPDX-License-Identifier: Apache-2.0
"""Options mean what they say, and bad ones are refused by name."""

import numpy as np
import pytest

from segship.errors import InputError
from segship.promptable.everything.options import AmgOptions, Thresholds, thresholds_for
from tests.small_bundle import small_manifest

NAN = float("nan")


def test_defaults_are_those_of_the_reference():
    options = AmgOptions()
    reference = {
        "points_per_side": 32,
        "points_per_batch": 64,
        "stability_score_offset": 1.0,
        "crop_n_layers": 0,
        "crop_nms_thresh": 0.7,
        "crop_overlap_ratio": 512 / 1500,
        "crop_n_points_downscale_factor": 1,
        "point_grids": None,
        "min_mask_region_area": 0,
        "output_mode": "binary_mask",
    }
    assert {name: getattr(options, name) for name in reference} == reference


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points_per_side", 0),
        ("points_per_side", -3),
        ("points_per_side", 2.5),
        ("points_per_side", True),
        ("points_per_side", 100_000),
        ("points_per_batch", 0),
        ("pred_iou_thresh", 1.5),
        ("pred_iou_thresh", -0.1),
        ("pred_iou_thresh", NAN),
        ("pred_iou_thresh", "0.5"),
        ("stability_score_thresh", NAN),
        ("stability_score_offset", -1.0),
        ("stability_score_offset", float("inf")),
        ("box_nms_thresh", 1.01),
        ("crop_n_layers", -1),
        ("crop_n_layers", 6),
        ("crop_nms_thresh", NAN),
        ("crop_overlap_ratio", -0.5),
        ("crop_n_points_downscale_factor", 0),
        ("min_mask_region_area", -1),
        ("min_mask_region_area", NAN),
        ("mode", "exact"),
        ("nms", "boxes"),
        ("partition", 1),
        ("deadline_seconds", 0),
        ("deadline_seconds", -1.0),
        ("deadline_seconds", NAN),
        ("memory_bytes", 0),
        ("memory_bytes", 1e9),
    ],
)
def test_bad_value_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=name) as caught:
        AmgOptions(**{name: value})
    assert caught.value.code == "bad_amg_option"
    assert "accepted is" in str(caught.value)


def test_output_mode_is_checked_before_any_work():
    with pytest.raises(InputError, match="output_mode is 'rle'"):
        AmgOptions(output_mode="rle")


@pytest.mark.parametrize("grids", [None, [np.full((4, 2), 0.5)]])
def test_points_and_grids_are_given_exactly_one_of_the_two(grids):
    points = None if grids is None else 32
    with pytest.raises(InputError, match="exactly one of the two"):
        AmgOptions(points_per_side=points, point_grids=grids)


@pytest.mark.parametrize(
    ("grids", "found"),
    [
        ([np.array([[0.5, -0.1]])], "outside"),
        ([np.array([[0.5, NAN]])], "outside"),
        ([np.zeros((0, 2))], r"shape \(0, 2\)"),
        ([np.zeros((3, 3))], r"shape \(3, 3\)"),
        ([[[0.5], [0.5, 0.5]]], "ragged"),
        ([["a", "b"]], "array of"),
        ([], "0 grids"),
        ("grid", "str"),
    ],
)
def test_bad_grids_are_refused(grids, found):
    with pytest.raises(InputError, match=found) as caught:
        AmgOptions(points_per_side=None, point_grids=grids)
    assert "point_grids" in str(caught.value)


def test_every_layer_needs_a_grid_and_a_point():
    with pytest.raises(InputError, match="1 grids"):
        AmgOptions(points_per_side=None, point_grids=[np.full((1, 2), 0.5)], crop_n_layers=1)
    with pytest.raises(InputError, match="crop_n_points_downscale_factor"):
        AmgOptions(points_per_side=4, crop_n_layers=3, crop_n_points_downscale_factor=2)


@pytest.mark.parametrize("name", ["edges", "refine"])
def test_reference_mode_has_the_references_masks(name):
    with pytest.raises(InputError, match=f"{name} is True; accepted is False in mode 'reference'") as caught:
        AmgOptions(mode="reference", **{name: True})
    assert str(caught.value.on_command_line).startswith(f"--{name}")


@pytest.mark.parametrize("mode", ["reference", "hierarchical"])
def test_only_mode_fast_has_a_deadline(mode):
    with pytest.raises(InputError, match=f"deadline_seconds is 3.0; accepted is None in mode '{mode}', which"):
        AmgOptions(mode=mode, deadline_seconds=3.0)


class Model:
    def __init__(self, **changes):
        self.manifest = small_manifest(**changes)


def test_zero_is_zero_and_the_model_fills_what_is_left_out():
    own = Thresholds(pred_iou_thresh=0.4, stability_score_thresh=0.6)
    left_out = AmgOptions()
    assert vars_of(thresholds_for(Model(), left_out)) == (0.88, 0.95)
    assert vars_of(thresholds_for(Model(amg_defaults=own), left_out)) == (0.4, 0.6)
    zero = AmgOptions(pred_iou_thresh=0, stability_score_thresh=0)
    assert vars_of(thresholds_for(Model(amg_defaults=own), zero)) == (0.0, 0.0)


def test_the_model_says_how_duplicates_are_found_but_not_in_the_references_mode():
    own = Thresholds(0.4, 0.6, box_nms_thresh=0.5, nms="mask", edges=True, refine=True, refine_iou_thresh=0.7)
    assert thresholds_for(Model(amg_defaults=own), AmgOptions()) == own
    options = AmgOptions(box_nms_thresh=0, nms="box", edges=False, refine=False, refine_iou_thresh=0)
    asked = thresholds_for(Model(amg_defaults=own), options)
    assert asked == Thresholds(0.4, 0.6, box_nms_thresh=0.0, refine_iou_thresh=0.0)
    assert thresholds_for(Model(amg_defaults=own), AmgOptions(mode="reference")) == Thresholds(0.4, 0.6)
    assert thresholds_for(Model(), AmgOptions()) == Thresholds(0.88, 0.95, 0.7, "box", False, False, 0.88)


def vars_of(thresholds):
    return thresholds.pred_iou_thresh, thresholds.stability_score_thresh
