# SPDX-License-Identifier: Apache-2.0
"""A call for everything from outside: order, iteration, notes, pictures without a mask."""

import numpy as np
import pytest

import segship
from segship.errors import ImageError, InputError
from segship.images import ImageLimits
from segship.images.comparison import draw_scene
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.search import generate, generate_masks, iter_masks
from tests.oracle import reference
from tests.promptable.everything.world import World
from tests.small_models import reference_predictor, small_predictor


@pytest.mark.parametrize("mode", ["fast", "reference"])
@pytest.mark.parametrize("nms", ["box", "mask"])
def test_iterating_gives_the_same_masks_in_the_same_order(mode, nms):
    world = World((240, 360), objects=200, n_layers=2)
    options = AmgOptions(points_per_side=8, crop_n_layers=2, crop_n_points_downscale_factor=2, mode=mode, nms=nms)
    at_once = generate_masks(world.predictor(), world.image, options)
    one_by_one = list(iter_masks(world.predictor(), world.image, options))
    assert len(at_once) > 20
    assert [record.to_dict() for record in one_by_one] == [record.to_dict() for record in at_once]


def test_iterating_looks_at_one_crop_at_a_time():
    world = World((240, 360), objects=200, n_layers=1)
    options = AmgOptions(points_per_side=8, crop_n_layers=1)
    asked = []
    masks = iter_masks(world.predictor(), world.image, options, progress=lambda done, total: asked.append(done))
    next(masks)
    assert asked[-1] <= 2 * 64
    list(masks)
    assert asked[-1] == 5 * 64


@pytest.mark.parametrize("changes", [{"partition": True}, {"deadline_seconds": 5.0}])
def test_what_needs_the_whole_image_cannot_be_iterated(changes):
    with pytest.raises(InputError, match=next(iter(changes))) as caught:
        iter_masks(World((24, 36), objects=3).predictor(), np.zeros((24, 36, 3), np.uint8), AmgOptions(**changes))
    assert caught.value.code == "needs_whole_image"


def test_a_picture_without_survivors_gives_an_empty_list():
    world = World((120, 180), objects=30)
    result = generate(world.predictor(), world.image, AmgOptions(points_per_side=4, pred_iou_thresh=1.0))
    assert result.records == () and result.coverage == 0 and result.points == 16


@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_masks_without_a_pixel_do_no_harm(mode):
    world = World((120, 180), objects=30)
    world.answer = lambda crop, coords: (
        np.ones((len(coords), 4), np.float32),
        np.full((len(coords), 4, 128, 128), -3, np.float32),
    )
    options = AmgOptions(points_per_side=3, stability_score_thresh=0, mode=mode, min_mask_region_area=5)
    records = generate_masks(world.predictor(), world.image, options)
    assert all(record.area == 0 and record.bbox == (0, 0, 0, 0) for record in records)
    assert (len(records) == 0) == (mode == "fast")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 60)])
@pytest.mark.parametrize("mode", ["fast", "reference"])
def test_very_small_pictures_have_masks_too(size, mode):
    options = AmgOptions(points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0, mode=mode, partition=True)
    result = generate(small_predictor(), np.full((*size, 3), 90, np.uint8), options)
    assert all(record.mask.shape == size for record in result.records)


def test_partition_and_coverage():
    world = World((120, 180), objects=60)
    result = generate(world.predictor(), world.image, AmgOptions(points_per_side=10, partition=True))
    total = sum(record.mask.astype(int) for record in result.records)
    assert total.max() == 1 and result.coverage == (total > 0).mean() > 0.2


def test_progress_counts_points_to_the_end():
    world = World((120, 180), objects=30)
    calls = []
    generate(world.predictor(), world.image, AmgOptions(points_per_side=5), progress=lambda *call: calls.append(call))
    assert calls == [(8, 25), (16, 25), (24, 25), (25, 25)]


def test_notes_of_the_image_are_passed_on(tmp_path):
    from PIL import Image

    path = tmp_path / "clear.png"
    Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(path)
    result = generate(small_predictor(), path, AmgOptions(points_per_side=2))
    assert result.notes == ("transparency_composited",)


def test_limits_hold_for_the_image():
    with pytest.raises(ImageError, match="pixels"):
        generate_masks(small_predictor(), np.zeros((40, 50, 3), np.uint8), limits=ImageLimits(pixels=100))


def test_a_real_model_answers_as_the_reference_does():
    reference()
    from segment_anything.automatic_mask_generator import SamAutomaticMaskGenerator

    image = draw_scene((120, 180), seed=5)
    # Masks of random weights are all over the image, so none of them is taken for a duplicate here.
    parameters = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "crop_n_layers": 1}
    parameters.update(box_nms_thresh=1.0, crop_nms_thresh=1.0)
    expected = SamAutomaticMaskGenerator(reference_predictor().model, **parameters).generate(image)
    records = segship.generate_masks(small_predictor(), image, AmgOptions(**parameters, mode="reference"))
    assert len(records) == len(expected) > 10
    for ours, theirs in zip(records, expected, strict=True):
        assert np.count_nonzero(ours.mask ^ theirs["segmentation"]) <= 0.001 * ours.mask.size
        assert ours.predicted_iou == pytest.approx(theirs["predicted_iou"], abs=1e-3)
