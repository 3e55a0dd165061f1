# SPDX-License-Identifier: Apache-2.0
"""Prompts in, masks out, against the reference's own predictor on the same weights."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from segship.backends.fake import Session as FakeSession
from segship.errors import BackendUnavailable, ImageError, InputError, OutputError, PromptError
from segship.images import ImageLimits
from segship.images.comparison import draw_scene
from segship.masks.cleanup import MaskCleanUp
from segship.masks.edges import MaskEdges
from segship.masks.rle import mask_to_runs
from segship.masks.scores import mask_iou
from segship.promptable.everything.search import generate_masks, iter_masks
from segship.promptable.prediction import ImageEmbedding, best_masks
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import PromptLimits, Prompts
from segship.spec import image_encoder_spec, mask_decoder_spec
from tests.oracle import SMALL_VIT
from tests.small_models import reference_predictor, small_predictor, small_sam_manifest

IMAGE = draw_scene((120, 180), seed=5)

# The eight prompt forms of the MindFormers examples, in an image of 180 x 120: points, labels, boxes, multimask.
EXAMPLES = {
    "1 one point": ([[50, 40]], [1], None, True),
    "2 two points, one object": ([[50, 40], [112, 62]], [1, 1], None, False),
    "3 two points, two objects": ([[[50, 40]], [[112, 62]]], [[1], [1]], None, False),
    "4 foreground and background": ([[50, 40], [112, 62]], [1, 0], None, False),
    "5 one box": (None, None, [42, 60, 70, 87], False),
    "6 box and background point": ([[57, 70]], [0], [42, 60, 70, 87], False),
    "7 boxes and points": ([[[57, 70]], [[112, 62]]], [[1], [0]], [[42, 60, 70, 87], [90, 20, 140, 80]], False),
    "8 four boxes": (None, None, [[42, 60, 70, 87], [7, 27, 172, 85], [137, 55, 165, 80], [124, 67, 140, 75]], False),
}  # fmt: skip


@pytest.fixture(scope="module")
def predictor():
    return small_predictor()


@pytest.fixture(scope="module")
def embedding(predictor):
    return predictor.encode(IMAGE)


@pytest.fixture(scope="module")
def oracle():
    predictor = reference_predictor()
    predictor.set_image(IMAGE)
    return predictor


NONE = [[], Prompts(boxes=[]), Prompts(points=np.zeros((0, 2, 2)))]


@pytest.mark.parametrize("nobody", NONE)
@pytest.mark.parametrize("choice", [True, False, "best", "auto"])
def test_no_objects_have_arrays_without_a_row(predictor, embedding, nobody, choice):
    for return_logits in (False, True):
        found = predictor.decode(embedding, nobody, multimask_output=choice, return_logits=return_logits)
        masks = 3 if choice is True else 1
        assert found.masks.shape == (0, masks, 120, 180)
        assert found.masks.dtype == (np.float32 if return_logits else np.bool_)
        assert found.iou_predictions.shape == found.areas.shape == found.empty.shape == (0, masks)
        assert found.low_res_masks.shape == (0, masks, 32, 32) and found.boxes.shape == (0, masks, 4)
        assert found.rles == [] and best_masks(found).masks.shape == (0, 1, 120, 180)
    again = predictor.decode(embedding, Prompts(mask_input=best_masks(found).low_res_masks))
    assert again.masks.shape == (0, 3, 120, 180)


def test_no_objects_have_arrays_at_the_other_doors(predictor, embedding):
    assert [part.shape for part in predictor.decode_low_res(embedding, [])] == [(0, 4), (0, 4, 32, 32)]
    passing = predictor.decode_passing(embedding, [])
    assert passing.scores.shape == (0,) and passing.low_res_masks.shape[0] == 0
    assert (
        predictor.predict(IMAGE, boxes=[]).masks.shape == predictor.predict(IMAGE, []).masks.shape == (0, 3, 120, 180)
    )
    with pytest.raises(PromptError) as caught:
        predictor.predict(IMAGE)
    assert caught.value.code == "no_prompts"


def test_objects_beyond_a_portion_are_decoded_as_by_themselves(predictor, embedding):
    corners = np.random.default_rng(1).uniform(0, 80, (150, 2))
    boxes = np.concatenate([corners, corners + 30], axis=1)
    for choice in (True, False):
        found = predictor.decode(embedding, Prompts(boxes=boxes), multimask_output=choice)
        # Portions of 8 begin at the same objects.
        last = predictor.decode(embedding, Prompts(boxes=boxes[128:]), multimask_output=choice)
        assert len(found.masks) == 150 and np.array_equal(found.low_res_masks[128:], last.low_res_masks)
        assert np.array_equal(found.masks[128:], last.masks)


def test_more_points_than_64_are_one_object(predictor, embedding):
    points = np.random.default_rng(2).uniform(0, 100, (200, 2))
    assert predictor.decode(embedding, Prompts(points=points), multimask_output=False).masks.shape == (1, 1, 120, 180)


@pytest.mark.parametrize(
    ("prompts", "settings"),
    [
        (Prompts(boxes=np.tile([1, 2, 30, 40], (300, 1))), {}),
        (Prompts(boxes=np.tile([1, 2, 30, 40], (30, 1))), {"return_logits": True}),
        (Prompts(points=np.ones((1000, 2))), {}),
    ],
)
def test_more_memory_than_the_limit_is_refused_before_the_decoder_runs(predictor, embedding, prompts, settings):
    limits = PromptLimits(memory_bytes=4_000_000)
    assert predictor.decode(embedding, Prompts(boxes=[1, 2, 30, 40]), limits=limits, **settings)
    with pytest.raises(PromptError, match=r"need about [\d,]+ MB; at most 4 MB are taken in one call") as caught:
        predictor.decode(embedding, prompts, limits=limits, **settings)
    assert caught.value.code == "over_memory"


def test_predict_takes_what_decode_takes(predictor, embedding):
    click = {"points": [[500, 40]], "labels": [1]}
    limits = PromptLimits(points_per_object=1)
    found = predictor.predict(IMAGE, **click, outside="clip", clean_up=False, limits=limits)
    assert found.notes == ("point_clipped",)
    with pytest.raises(PromptError, match="at most 1 are taken"):
        predictor.predict(IMAGE, points=[[5, 4], [6, 7]], limits=limits)
    with pytest.raises(PromptError, match="outside the image"):
        predictor.predict(IMAGE, **click)


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [("box", "boxes is meant"), ("point_coords", "points is meant"), ("size", "accepted are points")],
)
def test_names_of_other_packages_are_told_ours(predictor, wrong, advice):
    for call in (lambda **given: predictor.predict(IMAGE, **given), Prompts):
        with pytest.raises(TypeError, match=f"no parameter '{wrong}'; {advice}"):
            call(**{wrong: [1, 2, 30, 40]})


def test_the_aspect_ratio_of_the_model_is_told_alike_at_every_door(predictor):
    # The model's image size is 128.
    assert predictor.predict(np.zeros((1, 256, 3), np.uint8), points=[[5, 0]]).masks.shape == (1, 3, 1, 256)
    narrow, told = np.zeros((1, 257, 3), np.uint8), set()
    for ask in (
        predictor.encode,
        lambda image: generate_masks(predictor, image),
        lambda image: next(iter_masks(predictor, image)),
    ):
        with pytest.raises(ImageError) as caught:
            ask(narrow)
        told.add((caught.value.code, str(caught.value)))
    words = "the image is 257 x 1 pixels; the longer side may be at most 256 times the shorter; cut it into pieces"
    assert told == {("aspect_ratio", words)}
    with pytest.raises(ImageError, match="at most 10 times"):
        predictor.encode(narrow, limits=ImageLimits(aspect_ratio=10))


def test_an_embedding_is_no_image(predictor, embedding):
    with pytest.raises(ImageError, match="give it to decode"):
        predictor.predict(embedding, boxes=[1, 2, 30, 40])


def test_values_show_themselves_in_a_line(predictor, embedding):
    prompts = Prompts(points=[[50, 40]], boxes=[1, 2, 60, 70])
    shown = [repr(value) for value in (predictor, embedding, prompts, predictor.decode(embedding, prompts))]
    assert all(len(text) < 200 and "array" not in text for text in shown)
    assert shown[2] == "Prompts(points (1, 1, 2), boxes (1, 4))"
    assert shown[3] == "MaskPrediction(objects=1, masks=3, original_size=(120, 180), notes=())"


@pytest.mark.parametrize("made", [False, True])
def test_a_prediction_can_be_pickled(predictor, embedding, made):
    prediction = predictor.decode(embedding, Prompts(points=[[50, 40]], boxes=[1, 2, 60, 70]))
    if made:
        prediction.masks[0, 0, :5] = True
    for copied in (pickle.loads(pickle.dumps(prediction)), copy.deepcopy(prediction)):
        assert np.array_equal(copied.masks, prediction.masks) and copied.objects[0].box.tolist() == [1, 2, 60, 70]
    assert np.array_equal(pickle.loads(pickle.dumps(embedding)).image_embeddings, embedding.image_embeddings)


def test_an_embedding_is_kept_on_disk_for_its_encoder_alone(predictor, embedding, tmp_path):
    path = replace(embedding, notes=("trailing_data",)).save(tmp_path / "new" / "scene.npz")
    kept = ImageEmbedding.load(path)
    assert kept.notes == ("trailing_data",) and kept.image_side is None
    assert (kept.original_size, kept.input_size) == ((120, 180), (85, 128))
    prompts = Prompts(points=[[50, 40]])
    expected, found = predictor.decode(embedding, prompts), predictor.decode(kept, prompts)
    assert np.array_equal(found.low_res_masks, expected.low_res_masks) and np.array_equal(found.masks, expected.masks)
    with pytest.raises(OutputError, match="exists"):
        embedding.save(path)
    embedding.save(path, overwrite=True)
    other = small_predictor()
    other.encoder_sha256 = "f" * 64
    with pytest.raises(
        PromptError, match="made by encoder 000000000000 and this decoder belongs to encoder ffff"
    ) as caught:
        other.decode(kept, prompts)
    assert caught.value.code == "foreign_embedding"
    replace(embedding, image_embeddings=embedding.image_embeddings[:, :4]).save(path, overwrite=True)
    with pytest.raises(PromptError, match=r"has the shape \(1, 4, 8, 8\); accepted is \(1, 32, 8, 8\)"):
        predictor.decode(ImageEmbedding.load(path), prompts)


def test_a_file_that_is_no_embedding_is_refused(embedding, tmp_path):
    with pytest.raises(OutputError, match="ends with .jpg, and an npz file is written; give .npz"):
        embedding.save(tmp_path / "scene.jpg")
    path = embedding.save(tmp_path / "scene.npz")
    data, rng, outcomes = path.read_bytes(), np.random.default_rng(0), set()
    for case in range(200):
        damaged = bytearray(data if case % 2 else data[: rng.integers(len(data))])
        for place in rng.integers(0, len(damaged), 20) if damaged else ():
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            outcomes.add(ImageEmbedding.load(path).image_embeddings.shape)
        except InputError as error:
            outcomes.add(error.code)
    assert outcomes <= {"bad_embedding", (1, 32, 8, 8)} and "bad_embedding" in outcomes
    for arrays in ({}, {"image_embeddings": np.array([{}])}, {"image_embeddings": np.zeros(3)}):
        np.savez(path, **arrays)
        with pytest.raises(InputError, match="no embedding that ImageEmbedding.save has written"):
            ImageEmbedding.load(path)
    np.save(tmp_path / "scene.npy", np.zeros(3))
    for name in ("scene.npy", "none.npz"):
        with pytest.raises(InputError):
            ImageEmbedding.load(tmp_path / name)


def test_a_bomb_is_no_embedding(embedding, tmp_path):
    path = tmp_path / "bomb.npz"
    facts = {"original_size": (120, 180), "input_size": (85, 128), "encoder_sha256": "0" * 64, "notes": []}
    np.savez_compressed(path, image_embeddings=np.zeros((1, 32, 1024, 1024), np.float32), **facts)
    with pytest.raises(InputError, match="no embedding"):
        ImageEmbedding.load(path)


def test_a_binary_mask_becomes_logits_that_mean_it(predictor, embedding):
    y, x = np.mgrid[:120, :180]
    disc = np.hypot(y - 60, x - 90) < 40
    logits = predictor.mask_to_logits(disc)
    assert logits.shape == (1, 1, 32, 32) and logits.dtype == np.float32
    assert mask_iou(predictor.upscale(logits[0, 0], embedding) > 0, disc) > 0.93
    # Padding, and all else that is not in the mask, is outside.
    assert np.allclose([logits.max(), -logits.min()], np.log(0.999 / 0.001), atol=1e-4)
    assert (logits[0, 0, 22:] == logits.min()).all()
    several = predictor.mask_to_logits(np.stack([disc, ~disc]).astype(np.uint8) * 255)
    assert several.shape == (2, 1, 32, 32) and np.array_equal(several[:1], logits)
    assert predictor.decode(embedding, Prompts(mask_input=several)).masks.shape == (2, 3, 120, 180)
    assert predictor.mask_to_logits(np.zeros((0, 120, 180))).shape == (0, 1, 32, 32)
    with pytest.raises(PromptError, match=r"accepted are \(H, W\) and \(B, H, W\)"):
        predictor.mask_to_logits(np.zeros((2, 1, 4, 4)))


def ask_oracle(oracle, points, labels, boxes, multimask, mask_input=None):
    """Answer with the reference's torch path, which takes several objects; shapes (B, masks, H, W)."""

    def batched(value, rank):
        array = np.asarray(value, np.float32)
        return array if array.ndim == rank else array[None]

    coords = None if points is None else oracle.transform.apply_coords(batched(points, 3), oracle.original_size)
    box = None if boxes is None else oracle.transform.apply_boxes(batched(boxes, 2), oracle.original_size)
    with torch.inference_mode():
        masks, scores, low_res = oracle.predict_torch(
            None if coords is None else torch.as_tensor(coords, dtype=torch.float),
            None if labels is None else torch.as_tensor(batched(labels, 2)),
            None if box is None else torch.as_tensor(box, dtype=torch.float),
            None if mask_input is None else torch.as_tensor(mask_input),
            multimask_output=multimask,
        )
    return masks.numpy(), scores.numpy(), low_res.numpy()


def assert_agrees(prediction, expected):
    masks, scores, low_res = expected
    assert prediction.masks.shape == masks.shape
    assert prediction.iou_predictions.shape == scores.shape
    assert np.abs(prediction.iou_predictions - scores).max() <= 1e-4 * np.abs(scores).max()
    assert np.abs(prediction.low_res_masks - low_res).max() <= 1e-4 * np.abs(low_res).max()
    for index in np.ndindex(masks.shape[:2]):
        assert mask_iou(prediction.masks[index], masks[index]) >= 0.999


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_equals_the_reference(predictor, embedding, oracle, example):
    points, labels, boxes, multimask = EXAMPLES[example]
    prompts = Prompts(points=points, labels=labels, boxes=boxes)
    prediction = predictor.decode(embedding, prompts, multimask_output=multimask)
    assert_agrees(prediction, ask_oracle(oracle, points, labels, boxes, multimask))


def test_box_and_point_together_count_both(predictor, embedding):
    points, labels, boxes, _ = EXAMPLES["6 box and background point"]
    both = predictor.decode(embedding, Prompts(points=points, labels=labels, boxes=boxes))
    box = predictor.decode(embedding, Prompts(boxes=boxes))
    assert np.abs(both.low_res_masks - box.low_res_masks).max() > 1e-3


def test_refinement_by_a_mask_input_equals_the_reference(predictor, embedding, oracle):
    first = predictor.decode(embedding, Prompts(points=[[50, 40]]))
    mask_input = best_masks(first).low_res_masks
    assert mask_input.shape == (1, 1, 32, 32)
    prompts = Prompts(points=[[50, 40], [60, 50]], labels=[1, 0], mask_input=mask_input)
    refined = predictor.decode(embedding, prompts, multimask_output=False)
    expected = ask_oracle(oracle, [[50, 40], [60, 50]], [1, 0], None, False, mask_input)
    assert_agrees(refined, expected)


def test_mask_alone_equals_the_reference(predictor, embedding, oracle):
    mask_input = predictor.decode(embedding, Prompts(boxes=[42, 60, 70, 87]), multimask_output=False).low_res_masks
    prediction = predictor.decode(embedding, Prompts(mask_input=mask_input))
    assert_agrees(prediction, ask_oracle(oracle, None, None, None, True, mask_input))


def test_objects_of_different_forms_share_a_call(predictor, embedding):
    forms = [
        Prompts(points=[[50, 40]]),
        Prompts(points=[[50, 40], [112, 62], [9, 9]], labels=[1, 1, 0]),
        Prompts(boxes=[42, 60, 70, 87]),
        Prompts(boxes=[42, 60, 70, 87], points=[[57, 70]], labels=[0]),
        Prompts(mask_input=np.ones((32, 32), np.float32)),
    ]
    together = predictor.decode(embedding, forms)
    for index, form in enumerate(forms):
        alone = predictor.decode(embedding, form)
        scale = np.abs(alone.low_res_masks).max()
        assert np.abs(together.low_res_masks[index] - alone.low_res_masks[0]).max() <= 1e-5 * scale
        assert np.abs(together.iou_predictions[index] - alone.iou_predictions[0]).max() <= 1e-5


def test_logits_on_request_are_those_of_the_masks(predictor, embedding):
    prompts = Prompts(points=[[50, 40]])
    logits = predictor.decode(embedding, prompts, return_logits=True)
    assert logits.masks.dtype == np.float32
    assert np.array_equal(logits.masks > 0, predictor.decode(embedding, prompts).masks)


def fake_predictor(scores):
    """A predictor whose decoder answers every object with the given four scores, and mask k full of k."""
    geometry = SMALL_VIT.geometry

    def decode(inputs):
        objects = len(inputs["point_coords"])
        masks = np.arange(4, dtype=np.float32)[None, :, None, None] + np.zeros((objects, 4, 32, 32), np.float32)
        return {"iou_predictions": np.tile(np.float32(scores), (objects, 1)), "low_res_masks": masks}

    encoder = FakeSession(
        image_encoder_spec(geometry), lambda _: {"image_embeddings": np.zeros((1, 32, 8, 8), np.float32)}
    )
    decoder = FakeSession(mask_decoder_spec(geometry), decode)
    sessions = {"image_encoder": encoder, "mask_decoder": decoder}
    return Predictor(small_sam_manifest(), sessions, encoder_sha256="f" * 64, backend="fake")


CLICK, CLICKS, BOX = Prompts(points=[[5, 5]]), Prompts(points=[[5, 5], [6, 6]]), Prompts(boxes=[1, 1, 9, 9])


@pytest.mark.parametrize(
    ("choice", "prompts", "tokens"),
    [
        (True, CLICK, [[1, 2, 3]]),
        (False, CLICK, [[0]]),
        ("best", CLICK, [[2]]),
        ("best", BOX, [[2]]),
        ("auto", CLICK, [[2]]),
        ("auto", CLICKS, [[0]]),
        ("auto", BOX, [[0]]),
        ("auto", [CLICK, CLICKS, BOX], [[2], [0], [0]]),
    ],
)
def test_masks_are_chosen_by_the_points_given(choice, prompts, tokens):
    prediction = fake_predictor([0.9, 0.1, 0.7, 0.3]).predict(IMAGE, prompts, multimask_output=choice)
    assert prediction.low_res_masks[:, :, 0, 0].tolist() == tokens


def test_ties_go_to_the_lower_index():
    prediction = fake_predictor([0.9, 0.5, 0.5, 0.5]).predict(IMAGE, CLICK, multimask_output="best")
    assert prediction.low_res_masks[0, 0, 0, 0] == 1


def test_unknown_choice_names_the_known_ones():
    with pytest.raises(PromptError, match="multimask_output is 'all'; accepted are True, False, 'best' and 'auto'"):
        fake_predictor([0, 0, 0, 0]).predict(IMAGE, CLICK, multimask_output="all")


def test_embedding_of_another_encoder_is_refused(predictor):
    foreign = fake_predictor([0, 0, 0, 0]).encode(IMAGE)
    with pytest.raises(PromptError, match="encode the image with this predictor") as caught:
        predictor.decode(foreign, CLICK)
    assert caught.value.code == "foreign_embedding"


def test_prompts_given_twice_are_refused(predictor):
    with pytest.raises(PromptError, match="given twice"):
        predictor.predict(IMAGE, CLICK, points=[[5, 5]])


def test_values_that_are_not_finite_never_become_masks():
    with pytest.raises(BackendUnavailable, match="iou_predictions holds values that are not finite") as caught:
        fake_predictor([0.9, float("nan"), 0.7, 0.3]).predict(IMAGE, CLICK)
    assert caught.value.code == "nonfinite_output"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_never_become_masks(predictor, monkeypatch, value):
    decode = predictor._decoder.decode

    def spoil(*given):
        ious, low_res = decode(*given)
        low_res = low_res.copy()
        low_res[0, 2, 1, 1] = value
        return ious, low_res

    monkeypatch.setattr(predictor._decoder, "decode", spoil)
    with pytest.raises(BackendUnavailable, match="low_res_masks holds values that are not finite") as caught:
        predictor.predict(IMAGE, CLICK)
    assert caught.value.code == "nonfinite_output"


def test_empty_masks_are_told(predictor):
    prediction = fake_predictor([0, 0, 0, 0]).predict(IMAGE, CLICK, multimask_output=False)
    assert prediction.empty.tolist() == [[True]]


def test_notes_of_image_and_prompts_reach_the_prediction(predictor):
    prediction = predictor.predict(IMAGE, boxes=[[70, 87, 42, 60]], multimask_output=False)
    assert prediction.notes == ("box_reversed",)
    assert prediction.objects[0].box.tolist() == [42, 60, 70, 87]


def test_threads_may_share_a_predictor(predictor, embedding):
    prompts = [Prompts(points=[[x, 40]]) for x in range(20, 160, 10)]
    alone = np.stack([predictor.decode(embedding, prompt).low_res_masks for prompt in prompts])
    with ThreadPoolExecutor(4) as pool:
        together = np.stack(list(pool.map(lambda prompt: predictor.decode(embedding, prompt).low_res_masks, prompts)))
    # Not bit for bit: torch divides a product among the cores that a thread finds free, and so rounds otherwise.
    rounding = 1e-4 * np.abs(alone).max()
    assert np.abs(alone[1:] - alone[:-1]).reshape(len(prompts) - 1, -1).max(1).min() > 10 * rounding
    assert np.abs(together - alone).max() < rounding


def test_predictor_holds_no_image(predictor):
    other = draw_scene((90, 60), seed=6)
    before = predictor.predict(IMAGE, CLICK).masks
    predictor.predict(other, CLICK)
    assert np.array_equal(predictor.predict(IMAGE, CLICK).masks, before)


def test_memory_that_is_used_again_changes_no_embedding(predictor):
    pictures = [draw_scene(size, seed=7) for size in ((120, 180), (180, 120), (40, 50), (128, 128), (90, 60))]
    fresh = [
        Predictor(predictor.manifest, predictor._sessions, encoder_sha256="0" * 64, backend="torch") for _ in pictures
    ]
    alone = [one.encode(picture).image_embeddings for one, picture in zip(fresh, pictures, strict=True)]
    shared = Predictor(predictor.manifest, predictor._sessions, encoder_sha256="0" * 64, backend="torch", threads=1)
    for picture, expected in zip(pictures * 2, alone * 2, strict=True):
        assert np.array_equal(shared.encode(picture).image_embeddings, expected)
    assert len(shared._spare_frames) == 1


def encoder_that(answer):
    encoder = FakeSession(image_encoder_spec(SMALL_VIT.geometry), answer)
    return Predictor(small_sam_manifest(), {"image_encoder": encoder}, encoder_sha256="f" * 64, backend="fake")


def test_calls_at_once_write_into_memory_of_their_own():
    both_in, inside = threading.Barrier(2), []

    def answer(inputs):
        before = inputs["image"].copy()
        both_in.wait(20)
        both_in.wait(20)
        inside.append(np.array_equal(inputs["image"], before))
        return {"image_embeddings": np.zeros((1, 32, 8, 8), np.float32)}

    predictor = encoder_that(answer)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(4):
            list(pool.map(predictor.encode, [IMAGE, 255 - IMAGE]))
    assert inside == [True] * 8
    assert 1 <= len(predictor._spare_frames) <= 2


def test_an_embedding_that_lies_in_the_input_is_not_written_over():
    predictor = encoder_that(lambda inputs: {"image_embeddings": inputs["image"].reshape(1, -1, 8, 8)[:, :32]})
    first = predictor.encode(IMAGE).image_embeddings
    before = first.copy()
    predictor.encode(255 - IMAGE)
    assert np.array_equal(first, before)


# Clean-up, which a manifest turns on


@pytest.fixture(scope="module")
def cleaning(predictor):
    """The same model under a manifest that cleans."""
    entry = MaskCleanUp(keep_clicked_piece=True, smallest_piece=0.05, smallest_hole=0.01, box_margin=0.0)
    manifest = replace(predictor.manifest, mask_clean_up=entry)
    return Predictor(manifest, predictor._sessions, encoder_sha256="0" * 64, backend="torch")


def test_masks_are_cleaned_only_if_the_manifest_says_so(predictor, cleaning, embedding):
    prompts = Prompts(boxes=[42, 60, 70, 87])
    plain, untouched = (predictor.decode(embedding, prompts, clean_up=wanted) for wanted in (True, False))
    np.testing.assert_array_equal(plain.masks, untouched.masks)
    assert plain.masks[..., :60, :].any()
    np.testing.assert_array_equal(cleaning.decode(embedding, prompts, clean_up=False).masks, plain.masks)
    cleaned = cleaning.decode(embedding, prompts)
    inside = np.zeros(plain.masks.shape, bool)
    inside[..., 60:87, 42:70] = True
    assert not (cleaned.masks & ~inside).any()
    assert (cleaned.masks & inside).any()


def test_clean_up_leaves_low_resolution_logits_and_scores(predictor, cleaning, embedding):
    prompts = Prompts(points=[[50, 40]])
    plain, cleaned = predictor.decode(embedding, prompts), cleaning.decode(embedding, prompts)
    np.testing.assert_array_equal(cleaned.low_res_masks, plain.low_res_masks)
    np.testing.assert_array_equal(cleaned.iou_predictions, plain.iou_predictions)
    assert (cleaned.masks != plain.masks).any()


@pytest.mark.parametrize("prompts", [Prompts(points=[[50, 40]]), Prompts(points=[[57, 70]], boxes=[42, 60, 70, 87])])
def test_cleaned_logits_say_the_same_as_cleaned_masks(cleaning, embedding, prompts):
    masks = cleaning.decode(embedding, prompts).masks
    logits = cleaning.decode(embedding, prompts, return_logits=True).masks
    np.testing.assert_array_equal(masks, logits > 0)


def test_clicks_that_are_trusted_select_what_prompts_do(predictor, embedding):
    points = np.random.default_rng(3).random((9, 2)) * (180, 120)
    bound = float(np.median(predictor.decode_low_res(embedding, Prompts(points=points[:, None]))[0][:, 1:]))
    expected = predictor.decode_passing(embedding, Prompts(points=points[:, None]), min_iou=bound)
    found = predictor.select_at(embedding, points, bound)
    assert 0 < len(found.objects) < 27
    for wanted, array in zip(expected, found, strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_decode_low_res_is_what_decode_chooses_from(predictor, embedding):
    prompts = Prompts(points=[[[50, 40]], [[112, 62]]])
    ious, low_res = predictor.decode_low_res(embedding, prompts)
    prediction = predictor.decode(embedding, prompts)
    assert ious.shape == (2, 4) and low_res.shape[:2] == (2, 4)
    np.testing.assert_array_equal(prediction.low_res_masks, low_res[:, 1:])
    np.testing.assert_array_equal(prediction.iou_predictions, ious[:, 1:])
    np.testing.assert_array_equal(prediction.masks[1, 2], predictor.upscale(low_res[1, 3], embedding) > 0)


def test_decode_says_what_it_takes(predictor, embedding):
    asked = Prompts(points=[[50, 40]])
    with pytest.raises(TypeError, match=r"no parameter 'points'; give .* decode.embedding, Prompts.points=...."):
        predictor.decode(embedding, points=[[50, 40]])
    with pytest.raises(TypeError, match="there are no prompts; give"):
        predictor.decode(embedding)
    for wrong in ([[50, 40]], {"points": [[50, 40]]}, "points"):
        with pytest.raises(TypeError, match="the prompts hold a .*; accepted are Prompts"):
            predictor.decode(embedding, wrong)
    for method in (predictor.decode, predictor.decode_low_res, predictor.decode_passing):
        with pytest.raises(
            ImageError, match="this is a str and no embedding; give the image to encode first"
        ) as caught:
            method("photo.jpg", asked)
        assert caught.value.code == "unsupported_source"


# Edges, which a manifest or a caller turns on

BOXED = Prompts(points=[[57, 70]], boxes=[42, 60, 70, 87])


@pytest.fixture(scope="module")
def following(predictor):
    """The same model under a manifest whose masks follow the picture, and are cleaned."""
    manifest = replace(predictor.manifest, mask_edges=MaskEdges(radius=2), mask_clean_up=MaskCleanUp())
    return Predictor(manifest, predictor._sessions, encoder_sha256="0" * 64, backend="torch")


def test_masks_follow_the_picture_as_the_manifest_or_the_caller_says(predictor, following, embedding):
    prompts = Prompts(points=[[50, 40]])
    plain, asked = predictor.decode(embedding, prompts), predictor.decode(embedding, prompts, edges=True)
    assert (asked.masks != plain.masks).any()
    assert not plain.notes and not asked.notes
    found = following.decode(embedding, prompts)
    without = following.decode(embedding, prompts, edges=False)
    assert (found.masks != without.masks).any()
    np.testing.assert_array_equal(found.low_res_masks, plain.low_res_masks)
    np.testing.assert_array_equal(found.iou_predictions, plain.iou_predictions)
    np.testing.assert_array_equal(without.masks, cleaned_masks(predictor, embedding, prompts))
    again = following.predict(IMAGE, points=[[50, 40]])
    np.testing.assert_array_equal(again.masks, found.masks)
    assert (following.predict(IMAGE, points=[[50, 40]], edges=False).masks == without.masks).all()


def cleaned_masks(predictor, embedding, prompts):
    manifest = replace(predictor.manifest, mask_clean_up=MaskCleanUp())
    other = Predictor(manifest, predictor._sessions, encoder_sha256="0" * 64, backend="torch")
    return other.decode(embedding, prompts).masks


@pytest.mark.parametrize("prompts", [Prompts(points=[[50, 40]]), BOXED])
def test_all_forms_of_a_mask_that_follows_the_picture_say_the_same(following, embedding, prompts):
    prediction = following.decode(embedding, prompts)
    runs = [following.decode(embedding, prompts).mask_runs(0, index) for index in range(3)]
    one = following.decode(embedding, prompts).mask(0, 1)
    logits = following.decode(embedding, prompts, return_logits=True).masks
    pickled = pickle.loads(pickle.dumps(following.decode(embedding, prompts)))
    np.testing.assert_array_equal(prediction.masks, logits > 0)
    np.testing.assert_array_equal(prediction.masks, pickled.masks)
    np.testing.assert_array_equal(prediction.masks[0, 1], one)
    assert all(np.array_equal(mask_to_runs(mask), run) for mask, run in zip(prediction.masks[0], runs, strict=True))
    assert prediction.areas.ravel().tolist() == [int(mask.sum()) for mask in prediction.masks[0]]
    assert (best_masks(following.decode(embedding, prompts)).masks[0, 0] == prediction.masks[0]).all(axis=(1, 2)).any()


def test_masks_that_follow_the_picture_stay_in_their_box(following, embedding):
    masks = following.decode(embedding, BOXED).masks.copy()
    masks[..., 60:87, 42:70] = False
    assert not masks.any()


def test_a_saved_embedding_keeps_its_picture(following, embedding, tmp_path):
    kept = ImageEmbedding.load(embedding.save(tmp_path / "scene.npz"))
    np.testing.assert_array_equal(following.decode(kept, CLICK).masks, following.decode(embedding, CLICK).masks)
    with np.load(tmp_path / "scene.npz") as file:
        arrays = dict(file)
    for damaged in (arrays["guide"][..., :2], arrays["guide"].astype(float), arrays["guide"][0]):
        np.savez(tmp_path / "bad.npz", **{**arrays, "guide": damaged})
        with pytest.raises(InputError) as caught:
            ImageEmbedding.load(tmp_path / "bad.npz")
        assert caught.value.code == "bad_embedding"


def test_an_embedding_without_its_picture_is_noted_or_refused(predictor, following, embedding):
    bare = replace(embedding, guide=None)
    found = following.decode(bare, CLICK)
    assert found.notes == ("no_picture",)
    np.testing.assert_array_equal(found.masks, following.decode(embedding, CLICK, edges=False).masks)
    assert following.decode(bare, CLICK, edges=False).notes == predictor.decode(bare, CLICK).notes == ()
    with pytest.raises(
        PromptError, match="holds no picture; encode the image again, or leave out edges=True"
    ) as caught:
        predictor.decode(bare, CLICK, edges=True)
    assert caught.value.code == "no_picture"
    assert str(caught.value.on_command_line).endswith("leave out --edges")


def test_a_saved_embedding_without_its_picture_is_read_back_so(embedding, tmp_path):
    kept = ImageEmbedding.load(replace(embedding, guide=None).save(tmp_path / "bare.npz"))
    assert kept.guide is None
    with np.load(tmp_path / "bare.npz") as file:
        earlier = {name: file[name] for name in file if name != "guide"}
    np.savez(tmp_path / "earlier.npz", **earlier)
    assert ImageEmbedding.load(tmp_path / "earlier.npz").guide is None
