# SPDX-License-Identifier: Apache-2.0
"""The calls of MindFormers' ten examples: their shapes, their meaning against the reference, and none of the bugs."""

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from segship import Predictor, demo_photograph
from segship.backends.session import RunOptions
from segship.errors import ImageError, InputError, PromptError
from segship.masks.rle import decode_rle
from segship.masks.scores import mask_iou
from segship.pipelines import SegmentAnythingPipeline, pipeline
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.search import generate_masks
from tests.promptable.test_predictor import EXAMPLES, IMAGE, ask_oracle
from tests.small_models import reference_predictor, small_predictor

OTHER_IMAGE = np.ascontiguousarray(IMAGE[:, ::-1])
CLICK = {"points": [[50, 40]], "labels": [1]}

# Table 2.3 of the facts, (H, W) left out: the axes before the image's own.
LEADING_AXES = {
    "1 one point": (3,),
    "2 two points, one object": (1,),
    "3 two points, two objects": (2, 1),
    "4 foreground and background": (1,),
    "5 one box": (1,),
    "6 box and background point": (1,),
    "7 boxes and points": (2, 1),
    "8 four boxes": (4, 1),
}


@pytest.fixture(scope="module")
def predictor():
    return small_predictor()


@pytest.fixture
def task(predictor):
    task = pipeline("segment_anything", model=predictor)
    task.set_image(IMAGE)
    return task


@pytest.fixture(scope="module")
def oracle():
    oracle = reference_predictor()
    oracle.set_image(IMAGE)
    return oracle


def inputs_of(example):
    points, labels, boxes, multimask = EXAMPLES[example]
    inputs = {"points": points, "labels": labels, "boxes": boxes}
    # Integers, as the examples have them.
    return {key: np.array(value) for key, value in inputs.items() if value is not None}, multimask


@pytest.mark.parametrize("example", EXAMPLES)
def test_prompt_examples_have_their_shapes_and_the_references_masks(task, oracle, example):
    inputs, multimask = inputs_of(example)
    outputs = task(inputs, multimask_output=multimask)
    axes = LEADING_AXES[example]
    assert list(outputs) == ["masks", "iou_predictions", "low_res_masks"]
    assert outputs["masks"].shape == (*axes, 120, 180) and outputs["masks"].dtype == bool
    assert outputs["iou_predictions"].shape == axes and outputs["low_res_masks"].shape == (*axes, 32, 32)

    masks, scores, low_res = ask_oracle(oracle, *EXAMPLES[example])
    assert np.abs(outputs["low_res_masks"] - low_res.reshape(*axes, 32, 32)).max() <= 1e-4 * np.abs(low_res).max()
    assert np.abs(outputs["iou_predictions"] - scores.reshape(axes)).max() <= 1e-4 * np.abs(scores).max()
    pairs = zip(outputs["masks"].reshape(-1, 120, 180), masks.reshape(-1, 120, 180), strict=True)
    assert all(mask_iou(mine, theirs) >= 0.999 for mine, theirs in pairs)


@pytest.mark.parametrize("example", ["6 box and background point", "7 boxes and points"])
def test_points_beside_boxes_count(task, example):
    inputs, multimask = inputs_of(example)
    both = task(inputs, multimask_output=multimask)["low_res_masks"]
    boxes_alone = task({"boxes": inputs["boxes"]}, multimask_output=multimask)["low_res_masks"]
    assert np.abs(both - boxes_alone).max() > 1e-3


def test_whole_numbers_and_fractions_mean_the_same(task):
    whole, fractions = np.array([[[51, 41]], [[113, 63]]]), np.array([[[51.0, 41.0]], [[113.0, 63.0]]])
    labels = np.ones((2, 1), int)
    answers = [task({"points": points, "labels": labels})["low_res_masks"] for points in (whole, fractions)]
    assert np.array_equal(*answers)


def test_last_mask_is_refined(task):
    first = task(CLICK)
    best = first["low_res_masks"][np.argmax(first["iou_predictions"])][None]
    refined = task({"points": [[50, 40], [60, 50]], "labels": [1, 0], "masks": best}, multimask_output=False)
    without = task({"points": [[50, 40], [60, 50]], "labels": [1, 0]}, multimask_output=False)
    assert refined["masks"].shape == (1, 120, 180)
    assert np.abs(refined["low_res_masks"] - without["low_res_masks"]).max() > 1e-3


def test_mask_alone_always_gives_the_same(task):
    mask = task(CLICK)["low_res_masks"][:1]
    assert np.array_equal(task({"masks": mask})["low_res_masks"], task({"masks": mask})["low_res_masks"])


def test_logits_on_request(task):
    logits = task(CLICK, return_logits=True)["masks"]
    assert logits.dtype == np.float32 and np.array_equal(logits > 0, task(CLICK)["masks"])


def test_lone_point_is_one_point(task):
    expected = task(CLICK)["low_res_masks"]
    for points, labels in (([50, 40], 1), ((50, 40), [1]), (np.array([50, 40]), None)):
        assert np.array_equal(task({"points": points, "labels": labels})["low_res_masks"], expected)


@pytest.mark.parametrize("points", [[[50, 40], [60]], [50], [50, 40, 30], "50"])
def test_points_of_no_shape_are_refused(task, points):
    with pytest.raises(PromptError):
        task({"points": points})


def test_label_2_is_refused_and_0_explained(task):
    with pytest.raises(PromptError, match="value 2; accepted are 1 .* and 0 .* write 0") as caught:
        task({"points": [[50, 40], [112, 62]], "labels": [1, 2]})
    assert caught.value.code == "bad_label"


def test_image_in_a_call_leaves_the_one_that_was_set_alone(task, tmp_path):
    before, embedding = task(CLICK)["low_res_masks"], task.get_image_embedding()
    other = task({"image": OTHER_IMAGE, **CLICK})["low_res_masks"]
    assert np.abs(other - before).max() > 1e-3
    assert np.array_equal(task(CLICK)["low_res_masks"], before) and task.get_image_embedding() is embedding
    path = tmp_path / "other.png"
    Image.fromarray(OTHER_IMAGE).save(path)
    for source in (path, str(path)):
        assert np.array_equal(task({"image": source, **CLICK})["low_res_masks"], other)


def test_list_of_inputs_gives_a_list_of_results(task):
    first, second = task([CLICK, {"image": OTHER_IMAGE, "boxes": [42, 60, 70, 87]}], multimask_output=False)
    assert first["masks"].shape == second["masks"].shape == (1, 120, 180)
    assert np.array_equal(first["masks"], task(CLICK, multimask_output=False)["masks"])


def test_channel_order_and_reset(task):
    embedding = task.get_image_embedding()
    task.set_image(IMAGE[..., ::-1], image_format="BGR")
    assert np.array_equal(task.get_image_embedding(), embedding)
    for order in ("RGB", "BGR"):
        task.set_image(IMAGE[..., 0], image_format=order)
        assert np.array_equal(task.get_image_embedding(), task.predictor.encode(IMAGE[..., 0]).image_embeddings)
    with pytest.raises(InputError, match="'GRAY'; accepted are 'RGB' and 'BGR'"):
        task.set_image(IMAGE, image_format="GRAY")
    with pytest.raises(InputError, match="only arrays need it"):
        task.set_image(demo_photograph(), image_format="BGR")
    with pytest.raises(ImageError):
        task.set_image("missing.jpg")
    for ask in (task.get_image_embedding, lambda: task(CLICK)):
        with pytest.raises(InputError, match="no image is set; call set_image first") as caught:
            ask()
        assert caught.value.code == "no_image"


@pytest.mark.parametrize(
    ("inputs", "settings", "message", "code"),
    [
        ({"point": [[1, 2]]}, {}, "key 'point'; accepted is a mapping with the keys image, points", "unknown_key"),
        ("points", {}, "inputs are a str; accepted is a mapping", "bad_input"),
        ({}, {}, "there are no prompts", "no_prompts"),
        (CLICK, {"crop_n_layers": 1}, "crop_n_layers: this belongs to calls with seg_image=True", "unknown_parameter"),
        (CLICK, {"seg_image": True}, "key 'points'; accepted is a mapping with the keys image when", "unknown_key"),
        ({}, {"seg_image": True}, "the inputs have no image", "no_image"),
        ({"image": IMAGE}, {"seg_image": True, "points": 3}, "no parameter 'points'; known are", "unknown_parameter"),
        ({"image": IMAGE}, {"seg_image": True, "return_logits": True}, "calls with prompts", "unknown_parameter"),
        ({"image": IMAGE}, {"seg_image": True, "points_per_side": 0}, "points_per_side is 0", "bad_amg_option"),
    ],
)
def test_calls_that_mean_nothing_are_refused(task, inputs, settings, message, code):
    with pytest.raises(InputError, match=message) as caught:
        task(inputs, **settings)
    assert caught.value.code == code


@pytest.mark.parametrize(("boxes", "count"), [([], 0), (np.zeros((0, 4)), 0), ([[1, 2, 30, 40]] * 100, 100)])
def test_any_number_of_boxes_has_as_many_masks(task, boxes, count):
    task.set_image(IMAGE)
    outputs = task({"boxes": boxes}, multimask_output=False)
    assert [len(outputs[name]) for name in outputs] == [count] * 3 and outputs["masks"].shape[1:] == (
        1,
        *IMAGE.shape[:2],
    )


def test_task_and_model_by_name(predictor):
    with pytest.raises(InputError, match="no task 'panoptic'; known are segment_anything"):
        pipeline("panoptic", model=predictor)
    made = pipeline("segment_anything", model="tiny")
    assert isinstance(made, SegmentAnythingPipeline) and isinstance(made.predictor, Predictor)


@pytest.mark.parametrize("size", "blh")
def test_names_of_mindformers_mean_ours(monkeypatch, predictor, size):
    asked = []
    monkeypatch.setattr(
        "segship.pipelines.load_promptable", lambda name, **options: asked.append((name, options)) or predictor
    )
    pipeline("segment_anything", model=f"sam_vit_{size}", device="cuda", threads=2)
    assert asked == [(f"vit_{size}", asdict(RunOptions(device="cuda", threads=2)))]


def test_unknown_keyword_is_refused_beside_a_predictor_too(predictor):
    with pytest.raises(TypeError, match="unexpected keyword argument 'thread'"):
        pipeline("segment_anything", model=predictor, thread=2)


KEYS = ["segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"]
# The small model's scores mean nothing, and its masks are noise.
KEEP = {"pred_iou_thresh": 0, "stability_score_thresh": 0}


def test_whole_image_examples(task, predictor):
    embedding = task.get_image_embedding()
    records = task({"image": IMAGE}, seg_image=True, points_per_side=4, **KEEP)
    assert records and all(list(record) == KEYS for record in records)
    assert all(record["segmentation"].shape == (120, 180) for record in records)
    tuning = {"points_per_side": 8, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2, **KEEP}
    tuning["min_mask_region_area"] = 10
    tuned = task({"image": IMAGE}, seg_image=True, **tuning)
    for found, options in ((records, AmgOptions(points_per_side=4, **KEEP)), (tuned, AmgOptions(**tuning))):
        expected = generate_masks(predictor, IMAGE, options)
        assert [record["area"] for record in found] == [record.area for record in expected]
    assert task.get_image_embedding() is embedding, "a whole-image call leaves the image that was set alone"


def test_parameters_belong_to_a_call_and_zero_means_zero(task):
    def count(**parameters):
        return len(task({"image": IMAGE}, seg_image=True, points_per_side=4, **parameters))

    many = count(**KEEP)
    with pytest.warns(UserWarning, match="stability_score_thresh"):
        assert many > count(pred_iou_thresh=0, stability_score_thresh=1)
    assert count(**KEEP) == many


def test_point_grids_stand_in_for_points_per_side(task):
    grids = [np.array([[0.3, 0.4]])]
    records = task({"image": IMAGE}, seg_image=True, point_grids=grids, **KEEP)
    assert {tuple(record["point_coords"][0]) for record in records} == {(54.0, 48.0)}


@pytest.mark.parametrize("mode", ["uncompressed_rle", "coco_rle"])
def test_output_modes(task, mode):
    settings = {"seg_image": True, "points_per_side": 2, **KEEP}
    masks = [record["segmentation"] for record in task({"image": IMAGE}, **settings)]
    coded = [record["segmentation"] for record in task({"image": IMAGE}, output_mode=mode, **settings)]
    assert masks and all(np.array_equal(decode_rle(rle), mask) for rle, mask in zip(coded, masks, strict=True))
    assert isinstance(coded[0]["counts"], str) == (mode == "coco_rle")


def test_nothing_found_is_an_empty_list(task):
    black = {"image": np.zeros((64, 64, 3), np.uint8)}
    with pytest.warns(UserWarning, match=r"pred_iou_thresh \(1; 0.88 suits the model\) removed 11, stability"):
        assert task(black, seg_image=True, points_per_side=2, pred_iou_thresh=1) == []


def test_boxes_that_were_changed_are_told(task):
    task.set_image(IMAGE)
    with pytest.warns(UserWarning) as caught:
        task({"boxes": [70, 87, 42, 600]})
    assert [str(warning.message).split(",")[0] for warning in caught] == [
        "a box was cut at the edge of the image",
        "the corners of a box were put in order",
    ]
    assert all(warning.filename == __file__ for warning in caught)
