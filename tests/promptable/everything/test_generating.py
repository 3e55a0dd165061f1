# SPDX-License-Identifier: Apache-2.0
"""A call for everything from outside: order, iteration, notes, pictures without a mask."""

from dataclasses import replace

import numpy as np
import pytest

import segship
from segship.errors import ImageError, InputError, PromptError, SegshipWarning
from segship.images import ImageLimits
from segship.images.comparison import draw_scene
from segship.masks.scores import mask_iou
from segship.masks.upscaling import LogitsPatch
from segship.promptable.everything import cost
from segship.promptable.everything.options import AmgOptions, Thresholds
from segship.promptable.everything.search import generate, generate_masks, iter_masks
from segship.promptable.predictor import Predictor
from tests.oracle import reference
from tests.promptable.everything.world import World
from tests.small_models import reference_predictor, small_predictor


@pytest.mark.parametrize("mode", ["fast", "reference", "hierarchical"])
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
@pytest.mark.parametrize("n_layers", [0, 1])
def test_every_mask_that_is_asked_for_is_a_candidate_or_was_removed_by_one_filter(mode, n_layers):
    world = World((90, 120), objects=8, n_layers=n_layers)
    world.quality = world.quality / 2
    predictor, image = world.predictor(), world.image
    everything = AmgOptions(
        points_per_side=4, crop_n_layers=n_layers, pred_iou_thresh=0, stability_score_thresh=0, mode=mode
    )
    edges = generate(predictor, image, everything).removed
    assert (edges["pred_iou_thresh"], edges["stability_score_thresh"]) == (0, 0)
    assert (edges["crop_edge"] > 0) == (n_layers > 0)
    found = generate(predictor, image, replace(everything, pred_iou_thresh=0.45, stability_score_thresh=0.9))
    assert found.removed["pred_iou_thresh"] > 0 and found.removed["stability_score_thresh"] > 0
    assert found.records and found.what_was_filtered == "" and "all_filtered" not in found.notes
    nothing = generate(predictor, image, replace(everything, pred_iou_thresh=1))
    assert sum(nothing.removed.values()) == 3 * nothing.points == nothing.removed["pred_iou_thresh"]


@pytest.mark.parametrize(
    "ask",
    [generate_masks, lambda predictor, image, options: list(iter_masks(predictor, image, options))],
    ids=["generate_masks", "iter_masks"],
)
def test_thresholds_that_leave_nothing_are_told_with_those_of_the_model(ask):
    world = World((60, 80), objects=3)
    world.quality[:] = 0.5
    predictor = world.predictor()
    predictor.manifest = replace(predictor.manifest, amg_defaults=Thresholds(0.3, 0.4))
    words = (
        r"no mask is left of 12: pred_iou_thresh \(1; 0.3 suits the model\) removed 12, "
        r"stability_score_thresh \(0.4; 0.4 suits the model\) removed 0$"
    )
    with pytest.warns(SegshipWarning, match=words) as caught:
        assert not ask(predictor, world.image, AmgOptions(points_per_side=2, pred_iou_thresh=1))
    assert caught[0].filename == __file__


def test_an_embedding_that_was_kept_gives_what_its_image_gives():
    predictor, image = small_predictor(), draw_scene((120, 180), seed=5)
    options = AmgOptions(points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0)
    embedding = predictor.encode(image)
    expected, found = generate_masks(predictor, image, options), generate_masks(predictor, embedding, options)
    assert [record.to_dict("coco_rle") for record in found] == [record.to_dict("coco_rle") for record in expected]
    assert len(list(iter_masks(predictor, embedding, options))) == len(found) > 0
    with pytest.raises(InputError, match="crop_n_layers is 1, and an embedding has no crops") as caught:
        generate_masks(predictor, embedding, replace(options, crop_n_layers=1))
    assert caught.value.code == "needs_image"
    with pytest.raises(PromptError, match="encode the image with this predictor"):
        generate_masks(predictor, replace(embedding, encoder_sha256="1" * 64), options)


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


REFINED = AmgOptions(
    points_per_side=4,
    pred_iou_thresh=0,
    stability_score_thresh=0,
    box_nms_thresh=1,
    refine=True,
    refine_iou_thresh=0,
)


def test_refined_masks_are_what_the_decoder_answers_to_the_box_of_each_mask_and_the_mask_itself(monkeypatch):
    predictor, image = small_predictor(), draw_scene((120, 180), seed=5)
    plain = generate(predictor, image, replace(REFINED, refine=False)).records
    asked, answered = [], []

    def decode(embedding, prompts):
        asked.append(prompts)
        answered.append(Predictor.decode_low_res(predictor, embedding, prompts))
        return answered[-1]

    monkeypatch.setattr(predictor, "decode_low_res", decode)
    records = generate(predictor, image, REFINED).records
    boxes, masks = (np.concatenate([getattr(prompts, name) for prompts in asked]) for name in ("boxes", "mask_input"))
    ious, logits = (np.concatenate(parts)[:, 0] for parts in zip(*answered, strict=True))
    assert len(plain) == len(boxes) > 20
    upscaler = predictor.upscaler(predictor.encode(image))
    height, width = upscaler.valid_cells
    for record, box, mask in zip(plain, boxes, masks, strict=True):
        x, y, w, h = record.bbox
        # Boxes are estimated on cells of a pixel or two.
        np.testing.assert_allclose(box, [x, y, x + w + 1, y + h + 1], atol=2)
        np.testing.assert_array_equal(upscaler.enlarge(LogitsPatch(mask[0])) > 0, record.mask)
    known = sorted(zip(ious.tolist(), ((logits[:, :height, :width] > 0).any((1, 2))).tolist(), strict=True))
    assert [iou for iou, is_some in known if is_some] == sorted(record.predicted_iou for record in records)


def test_what_is_not_held_as_logits_is_refined_alike(monkeypatch):
    # What an unstable mask becomes depends on how exactly the mask that is asked about is known.
    options = AmgOptions(
        points_per_side=12, pred_iou_thresh=0.2, stability_score_thresh=0.4, refine=True, refine_iou_thresh=0
    )
    with segship.load("tiny") as predictor:
        embedding = predictor.encode(segship.demo_photograph())
        held = generate_masks(predictor, embedding, options)
        monkeypatch.setattr(cost, "_HELD_BYTES", 1)
        records = generate_masks(predictor, embedding, options)
    best = [max(mask_iou(one.mask, other.mask) for other in held) for one in records]
    assert len(records) > 10 and abs(len(records) - len(held)) <= 2
    assert np.median(best) > 0.95 and np.mean(best) > 0.9


def test_crops_are_refined_each_by_itself():
    options = AmgOptions(points_per_side=4, crop_n_layers=1, refine=True, refine_iou_thresh=0.5)
    with segship.load("tiny") as predictor:
        at_once = generate_masks(predictor, segship.demo_photograph(), options)
        one_by_one = list(iter_masks(predictor, segship.demo_photograph(), options))
    assert [one.to_dict() for one in one_by_one] == [one.to_dict() for one in at_once]
    assert {one.crop_box for one in at_once} > {(0, 0, 600, 400)}


def test_a_threshold_that_no_refined_mask_passes_is_told():
    predictor, image = small_predictor(), draw_scene((120, 180), seed=5)
    words = r"refine_iou_thresh \(1; 0.88 suits the model\) removed [1-9]"
    with pytest.warns(SegshipWarning, match=words):
        assert not generate_masks(predictor, image, replace(REFINED, refine_iou_thresh=1))


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
    assert result.notes == ("transparency_composited", "all_filtered")


def test_many_records_show_themselves_in_a_line():
    world = World((90, 120), objects=8)
    records = generate_masks(world.predictor(), world.image, AmgOptions(points_per_side=4, pred_iou_thresh=0))
    assert repr(records) == f"MaskRecords({len(records)} masks, size=(90, 120), notes=())" and len(records) > 1
    assert "array" not in repr(records[0]) and len(repr(records[0])) < 250


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


@pytest.mark.parametrize("find", [segship.generate_masks, segship.iter_masks])
def test_options_are_given_as_one(find):
    picture = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(TypeError, match="no parameter 'mode'; give options as one: AmgOptions.mode=...."):
        find(segship.load("tiny"), picture, mode="reference")
    with pytest.raises(TypeError, match="options is a dict; give options as one: AmgOptions.points_per_side="):
        find(segship.load("tiny"), picture, {"points_per_side": 8})
