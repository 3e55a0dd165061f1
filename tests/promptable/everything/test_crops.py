# SPDX-License-Identifier: Apache-2.0
"""Mode reference against the reference package on the same logits; mode fast against mode reference."""

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from segship.backends.fake import Session
from segship.errors import BackendUnavailable
from segship.masks.cleanup import MaskCleanUp
from segship.masks.spans import read_spans
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.search import generate, generate_masks
from segship.promptable.predictor import Predictor
from tests.promptable.everything.world import World

SHARP = (400, 3000)
SMALL = (0.012, 0.05)
ONE_LAYER = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
TWO_LAYERS = {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2}

# What the world is like, and the parameters of both sides.
CASES = {
    "image": ({"objects": 300}, {"points_per_side": 12}),
    "image, cleaned": ({"objects": 300}, {"points_per_side": 12, "min_mask_region_area": 60}),
    "one layer": ({"objects": 200, "n_layers": 1}, {"points_per_side": 8, **ONE_LAYER}),
    "one layer, cleaned": (
        {"objects": 200, "n_layers": 1, "seed": 1},
        {"points_per_side": 8, "min_mask_region_area": 200, **ONE_LAYER},
    ),
    "two layers": ({"objects": 300, "n_layers": 2, "seed": 2}, {"points_per_side": 8, **TWO_LAYERS}),
    "two layers, cleaned": (
        {"objects": 300, "n_layers": 2, "seed": 3, "size_hw": (301, 203)},
        {"points_per_side": 8, "min_mask_region_area": 40, **TWO_LAYERS},
    ),
    "zero is zero": (
        {"objects": 60, "seed": 4},
        {"points_per_side": 6, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0},
    ),
    "nothing is kept twice": ({"objects": 60, "seed": 4}, {"points_per_side": 6, "box_nms_thresh": 0.0}),
    "wide offset, own grid": (
        {"objects": 200, "seed": 5},
        {
            "points_per_side": None,
            "point_grids": [np.random.default_rng(0).random((90, 2))],
            "stability_score_offset": 2.5,
            "stability_score_thresh": 0.8,
        },
    ),
    "more than 300 masks": (
        {"objects": 900, "seed": 3, "size_hw": (120, 180), "radii": SMALL, "sharpness": SHARP},
        {"points_per_side": 22, "pred_iou_thresh": 0.85},
    ),
}


@cache
def make_case(name):
    """Made once, since a world remembers the logits that it has drawn."""
    world, parameters = CASES[name]
    return World(**{"size_hw": (240, 360), **world}), parameters


def matched(first, second, at_least=0.95):
    """Return how many masks of one list have a partner of their own in the other, by IoU, best pairs first."""
    ours, theirs = read_spans([r.runs for r in first]), read_spans([r.runs for r in second])
    areas = theirs.areas()
    pairs = []
    for index, area in enumerate(ours.areas()):
        shared = ours.intersections(index, theirs, np.arange(len(second)))
        iou = shared / np.maximum(area + areas - shared, 1)
        pairs += [(float(iou[other]), index, int(other)) for other in np.flatnonzero(iou >= at_least)]
    taken_first, taken_second = set(), set()
    for _, index, other in sorted(pairs, reverse=True):
        if index not in taken_first and other not in taken_second:
            taken_first.add(index)
            taken_second.add(other)
    return len(taken_first)


@pytest.mark.parametrize("name", CASES)
def test_reference_mode_gives_what_the_reference_gives(name):
    world, parameters = make_case(name)
    expected = world.reference_records(**parameters, output_mode="uncompressed_rle")
    options = AmgOptions(**parameters, mode="reference")
    records = [record.to_dict("uncompressed_rle") for record in generate_masks(world.predictor(), world.image, options)]
    assert len(records) == len(expected) >= (300 if name.startswith("more") else 5)
    for ours, theirs in zip(records, expected, strict=True):
        assert ours["segmentation"] == theirs["segmentation"]
        exact = ("area", "bbox", "point_coords", "crop_box")
        assert [ours[key] for key in exact] == [theirs[key] for key in exact]
        assert ours["predicted_iou"] == pytest.approx(theirs["predicted_iou"], abs=1e-6)
        assert ours["stability_score"] == pytest.approx(theirs["stability_score"], abs=1e-6)


@pytest.mark.parametrize("output_mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_every_output_mode_is_the_reference_s(output_mode):
    world = World((120, 180), objects=60)
    expected = world.reference_records(points_per_side=6, output_mode=output_mode)
    options = AmgOptions(points_per_side=6, mode="reference", output_mode=output_mode)
    records = generate_masks(world.predictor(), world.image, options)
    assert len(records) == len(expected) > 5
    for ours, theirs in zip(records, expected, strict=True):
        segmentation = ours.to_dict(options.output_mode)["segmentation"]
        if output_mode == "binary_mask":
            assert np.array_equal(segmentation, theirs["segmentation"])
        else:
            assert segmentation == theirs["segmentation"]


def test_fast_mode_finds_what_reference_mode_finds():
    found = both = one = 0
    for name in CASES:
        world, parameters = make_case(name)
        exact = generate_masks(world.predictor(), world.image, AmgOptions(**parameters, mode="reference"))
        fast = generate_masks(world.predictor(), world.image, AmgOptions(**parameters, mode="fast"))
        pairs = matched(exact, fast)
        found, both, one = found + pairs, both + len(exact) + len(fast), one + len(exact)
        assert pairs >= 0.97 * max(len(exact), len(fast)), name
    print(f"\nfast mode: {found} of {one} records of reference mode at IoU >= 0.95; {2 * found / both:.4f} of both")


# Few objects and large: many points of a grid find each of them.
LARGE = {"objects": 6, "radii": (0.15, 0.3)}


def test_hierarchical_mode_leaves_points_out_and_finds_what_fast_mode_finds():
    world = World((240, 360), **LARGE)
    told = []
    fast = generate(world.predictor(), world.image, AmgOptions(points_per_side=16))
    few = generate(
        world.predictor(),
        world.image,
        AmgOptions(points_per_side=16, mode="hierarchical"),
        progress=lambda done, total: told.append((done, total)),
    )
    assert fast.points == few.cost.points == 256 and few.points < 0.85 * 256
    assert len(fast.records) >= 4
    assert matched(fast.records, few.records) == len(fast.records) == len(few.records)
    # Points that need not be asked are done as well.
    assert told[-1] == (256, 256) and told == sorted(told)


def test_hierarchical_mode_asks_everything_where_no_mask_is_found_four_times():
    world = World((240, 360), objects=300, radii=(0.005, 0.02))
    answers = [
        generate(world.predictor(), world.image, AmgOptions(points_per_side=16, mode=mode, box_nms_thresh=0.3))
        for mode in ("fast", "hierarchical")
    ]
    assert answers[1].points == 256 and len(answers[0].records) > 10
    first, second = (sorted(record.runs.tolist() for record in answer.records) for answer in answers)
    assert first == second


@pytest.mark.parametrize("n_layers", [0, 1])
def test_hierarchical_mode_does_not_depend_on_the_size_of_a_batch(n_layers):
    world = World((240, 360), **LARGE, n_layers=n_layers)

    def ask(batch, **grids):
        options = AmgOptions(
            **grids or {"points_per_side": 16}, points_per_batch=batch, crop_n_layers=n_layers, mode="hierarchical"
        )
        return generate(world.predictor(), world.image, options)

    scattered = {
        "points_per_side": None,
        "point_grids": [np.random.default_rng(layer).random((200, 2)) for layer in range(n_layers + 1)],
    }
    for grids in ({}, scattered):
        first, again = ask(64, **grids), ask(3, **grids)
        assert first.points == again.points < first.cost.points
        assert [record.to_dict() for record in first.records] == [record.to_dict() for record in again.records]


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_results_do_not_depend_on_the_size_of_a_batch(mode):
    world = World((120, 180), objects=60)

    def ask(batch):
        options = AmgOptions(points_per_side=7, points_per_batch=batch, mode=mode)
        return generate_masks(world.predictor(), world.image, options)

    first = ask(64)
    for batch in (1, 3, 49):
        again = ask(batch)
        assert [record.runs.tolist() for record in again] == [record.runs.tolist() for record in first]


@pytest.mark.parametrize("mode", ["fast", "reference"])
@pytest.mark.parametrize("n_layers", [0, 1])
def test_no_two_masks_overlap_more_than_mask_nms_allows(mode, n_layers):
    world = World((120, 180), objects=60, n_layers=n_layers)
    options = AmgOptions(
        points_per_side=10, nms="mask", box_nms_thresh=0.5, crop_nms_thresh=0.5, crop_n_layers=n_layers, mode=mode
    )
    records = generate_masks(world.predictor(), world.image, options)
    assert len(records) > 10
    # Mode fast compares the cells of low-resolution masks, so a pair may lie a little above.
    limit = 0.5 if mode == "reference" else 0.53
    spans = read_spans([record.runs for record in records])
    areas = spans.areas()
    for index in range(len(records) - 1):
        others = np.arange(index + 1, len(records))
        shared = spans.intersections(index, spans, others)
        assert (shared / (areas[index] + areas[others] - shared)).max() <= limit


def test_mask_nms_keeps_what_only_boxes_take_for_duplicates():
    world = World((240, 360), objects=300)
    counts = [
        len(generate_masks(world.predictor(), world.image, AmgOptions(points_per_side=12, box_nms_thresh=0.3, nms=nms)))
        for nms in ("box", "mask")
    ]
    assert counts[1] > counts[0]


def test_logits_beyond_the_memory_for_them_are_encoded_early_and_change_nothing():
    world = World((120, 180), objects=60)
    roomy = generate(world.predictor(), world.image, AmgOptions(points_per_side=8))
    least = roomy.cost.peak_bytes - roomy.cost.held_bytes + 2**20
    tight = generate(world.predictor(), world.image, AmgOptions(points_per_side=8, memory_bytes=least))
    assert tight.cost.held_bytes < roomy.cost.held_bytes
    assert [r.runs.tolist() for r in tight.records] == [r.runs.tolist() for r in roomy.records]


def test_a_model_that_wants_its_masks_cleaned_gets_them_cleaned_in_fast_mode_alone():
    world = World((240, 360), objects=300)
    plain = world.predictor()
    clean_up = MaskCleanUp(keep_clicked_piece=True, smallest_piece=0.0, smallest_hole=0.0, box_margin=None)
    manifest = replace(plain.manifest, mask_clean_up=clean_up)
    wanting = Predictor(manifest, plain._sessions, encoder_sha256="0" * 64, backend="fake")

    def scattered(predictor, mode):
        options = AmgOptions(points_per_side=12, mode=mode)
        records = generate_masks(predictor, world.image, options)
        clicked = [r.mask[int(r.point_coords[0][1]), int(r.point_coords[0][0])] for r in records]
        # One label is what is no piece.
        labels = [cv2.connectedComponents(record.mask.view(np.uint8))[0] for record in records]
        return sum(count > 2 for count, hit in zip(labels, clicked, strict=True) if hit)

    assert scattered(plain, "fast") == scattered(wanting, "reference") > 0
    assert scattered(wanting, "fast") == 0


def test_logits_that_are_not_finite_are_refused():
    world = World((120, 180), objects=60)
    good = world.predictor()

    def decode(inputs):
        ious, masks = world.answer(0, inputs["point_coords"][:, 0])
        masks[0, 1:, 3, 4] = np.nan
        return {"iou_predictions": np.ones_like(ious), "low_res_masks": masks}

    decoder = Session(good._sessions["mask_decoder"].spec, decode)
    bad = Predictor(good.manifest, {**good._sessions, "mask_decoder": decoder}, encoder_sha256="0" * 64, backend="fake")
    with pytest.raises(BackendUnavailable, match="not finite") as caught:
        generate_masks(bad, world.image, AmgOptions(points_per_side=2))
    assert caught.value.code == "nonfinite_output"


def test_records_follow_the_picture_on_request_whatever_is_held():
    world = World((120, 180), objects=60)
    options = [AmgOptions(points_per_side=8, edges=edges) for edges in (False, True)]
    plain, asked = (generate(world.predictor(), world.image, one) for one in options)
    pairs = list(zip(plain.records, asked.records, strict=True))
    assert any(one.runs.tolist() != other.runs.tolist() for one, other in pairs)
    assert [one.predicted_iou for one, _ in pairs] == [other.predicted_iou for _, other in pairs]
    assert all(int(other.mask.sum()) == other.area for _, other in pairs)
    for _, record in pairs:
        x, y, width, height = record.bbox
        rows, columns = np.nonzero(record.mask)
        assert (columns.min(), rows.min(), np.ptp(columns), np.ptp(rows)) == (x, y, width, height)
    least = asked.cost.peak_bytes - asked.cost.held_bytes + 2**20
    tight = generate(world.predictor(), world.image, AmgOptions(points_per_side=8, memory_bytes=least, edges=True))
    assert tight.cost.held_bytes < asked.cost.held_bytes
    assert [r.runs.tolist() for r in tight.records] == [r.runs.tolist() for r in asked.records]


def test_records_of_crops_follow_the_crops_pixels():
    world = World((120, 180), objects=60, n_layers=1)
    options = AmgOptions(points_per_side=4, crop_n_layers=1, edges=True)
    records = generate_masks(world.predictor(), world.image, options)
    for record in records:
        x, y, width, height = record.crop_box
        outside = record.mask.copy()
        outside[y : y + height, x : x + width] = False
        assert record.area and not outside.any()
