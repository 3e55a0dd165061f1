# SPDX-License-Identifier: Apache-2.0
"""What a prediction makes of its masks when it is asked, in any order and by several threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from segship.errors import PromptError
from segship.masks.lazy import ArrayMasks, LazyMasks
from segship.masks.rle import encode_rle, mask_to_runs
from segship.masks.spans import masks_to_boxes
from segship.masks.upscaling import crop_patch, upscaler
from segship.promptable.prediction import MaskPrediction, best_masks, check_choice, choose_masks
from segship.promptable.prompts import ObjectPrompt
from segship.promptable.transforms import resized_size, upscale_mask

CELLS, SIDE, SIZE = 32, 128, (90, 131)
INPUT = resized_size(SIZE, SIDE)
IOUS = np.array([[0.2, 0.9, 0.5], [0.7, 0.7, 0.1]], np.float32)


@pytest.fixture(scope="module")
def low_res() -> np.ndarray:
    """Return (2, 3, 32, 32) logits: hills, noise, a full and an empty mask."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:CELLS, :CELLS]
    hills = [60 - (y - top) ** 2 - 2 * (x - left) ** 2 for top, left in ((8, 10), (16, 20), (20, 1))]
    masks = [*hills, 5 * rng.standard_normal((CELLS, CELLS)), np.full((CELLS, CELLS), 3), np.full((CELLS, CELLS), -3)]
    return np.stack(masks).astype(np.float32).reshape(2, 3, CELLS, CELLS)


@pytest.fixture(scope="module")
def logits(low_res: np.ndarray) -> np.ndarray:
    flat = [
        upscale_mask(mask, image_size=SIDE, input_size=INPUT, original_size=SIZE)
        for mask in low_res.reshape(-1, CELLS, CELLS)
    ]
    return np.stack(flat).reshape(2, 3, *SIZE)


def held(low_res: np.ndarray) -> MaskPrediction:
    enlarging = upscaler(CELLS, SIDE, INPUT, SIZE)
    cells = [[crop_patch(enlarging.valid(mask)) for mask in entry] for entry in low_res]
    masks = LazyMasks(cells, enlarging, [enlarging.everything] * len(low_res))
    return MaskPrediction(masks, IOUS, low_res, SIZE)


def given(masks: np.ndarray, low_res: np.ndarray) -> MaskPrediction:
    return MaskPrediction(ArrayMasks(masks), IOUS, low_res, SIZE)


@pytest.fixture(params=["held", "held, pixels first", "bool", "logits"])
def prediction(request: pytest.FixtureRequest, low_res: np.ndarray, logits: np.ndarray) -> MaskPrediction:
    if request.param == "bool":
        return given(logits > 0, low_res)
    if request.param == "logits":
        return given(logits, low_res)
    made = held(low_res)
    assert request.param == "held" or made.masks.any()
    return made


def test_all_views_show_the_same_masks(prediction: MaskPrediction, logits: np.ndarray) -> None:
    expected = logits > 0
    assert prediction.areas.dtype == np.int64
    assert np.array_equal(prediction.areas, expected.sum(axis=(2, 3)))
    assert np.array_equal(prediction.empty, [[False, False, False], [False, False, True]])
    boxes, rles = prediction.boxes, prediction.rles
    assert boxes.shape == (2, 3, 4) and boxes.dtype == np.int64
    for entry, index in np.ndindex(2, 3):
        mask = expected[entry, index]
        assert np.array_equal(prediction.mask(entry, index), mask)
        assert prediction.mask(entry, index).dtype == np.bool_
        assert np.array_equal(prediction.mask_runs(entry, index), mask_to_runs(mask))
        assert boxes[entry, index].tolist() == masks_to_boxes(mask).tolist()
        assert rles[entry][index] == prediction.mask_rle(entry, index) == encode_rle(mask)
        assert rles[entry][index]["size"] == list(SIZE)
    assert np.array_equal(prediction.masks > 0, expected)
    assert boxes[1, 2].tolist() == [0, 0, 0, 0]


def test_full_frames_are_made_only_for_masks(low_res: np.ndarray, logits: np.ndarray) -> None:
    prediction = held(low_res)
    assert isinstance(prediction.held, LazyMasks)
    for view in (prediction.areas, prediction.boxes, prediction.rles, prediction.empty, prediction.mask(0, 0)):
        assert len(view)
    assert prediction.held._pixels is None
    masks = prediction.masks
    assert masks.shape == (2, 3, *SIZE) and masks.dtype == np.bool_
    assert prediction.masks is masks and np.array_equal(masks, logits > 0)


def test_logits_that_were_asked_for_come_out_as_they_are(low_res: np.ndarray, logits: np.ndarray) -> None:
    prediction = given(logits, low_res)
    assert prediction.masks is logits and prediction.mask(0, 0).dtype == np.bool_


def test_a_prediction_without_objects_has_empty_views() -> None:
    enlarging = upscaler(CELLS, SIDE, INPUT, SIZE)
    none = np.zeros((0, 0), np.float32)
    prediction = MaskPrediction(LazyMasks([], enlarging, []), none, none, SIZE)
    assert prediction.masks.shape == (0, 0, *SIZE)
    assert prediction.areas.shape == prediction.empty.shape == (0, 0)
    assert prediction.boxes.shape == (0, 0, 4) and prediction.rles == []


def test_threads_that_ask_at_once_get_one_array_and_equal_views(low_res: np.ndarray, logits: np.ndarray) -> None:
    expected = held(low_res)
    rles, areas, boxes = expected.rles, expected.areas, expected.boxes
    views = ("masks", "rles", "areas", "boxes", "masks", "rles", "areas", "boxes")
    with ThreadPoolExecutor(len(views)) as pool:
        for _ in range(20):
            prediction, start = held(low_res), threading.Barrier(len(views))

            def ask(view: str, prediction: MaskPrediction = prediction, start: threading.Barrier = start) -> object:
                start.wait(20)
                return getattr(prediction, view)

            found = list(pool.map(ask, views))
            assert found[0] is found[4] and np.array_equal(found[0], logits > 0)
            assert found[1] == found[5] == rles
            assert all(np.array_equal(one, areas) for one in (found[2], found[6]))
            assert all(np.array_equal(one, boxes) for one in (found[3], found[7]))


def test_best_masks_keep_of_every_object_one(prediction: MaskPrediction, logits: np.ndarray) -> None:
    best = best_masks(prediction)
    # Of equals the first.
    assert best.iou_predictions.tolist() == [[IOUS[0, 1]], [IOUS[1, 0]]]
    assert np.array_equal(best.masks > 0, (logits > 0)[[0, 1], [1, 0]][:, None])
    assert np.array_equal(best.low_res_masks, prediction.low_res_masks[[0, 1], [1, 0]][:, None])
    assert np.array_equal(best.areas, prediction.areas[[0, 1], [1, 0]][:, None])


def click(points: int) -> ObjectPrompt:
    return ObjectPrompt(points=np.ones((points, 2), np.float32), labels=np.ones(points, np.int64))


def test_each_choice_takes_its_tokens() -> None:
    ious = np.array([[0.9, 0.1, 0.8, 0.3], [0.9, 0.5, 0.5, 0.1]], np.float32)
    low_res = np.arange(2 * 4, dtype=np.float32).reshape(2, 4, 1, 1)
    objects = [click(1), click(2)]
    chosen = {choice: choose_masks(ious, low_res, objects, choice) for choice in (True, False, "best", "auto")}
    tokens = {choice: masks[:, :, 0, 0].tolist() for choice, (_, masks) in chosen.items()}
    assert tokens == {True: [[1, 2, 3], [5, 6, 7]], False: [[0], [4]], "best": [[2], [5]], "auto": [[2], [4]]}
    for found_ious, masks in chosen.values():
        assert np.array_equal(found_ious.ravel(), ious.ravel()[masks.astype(int).ravel()])


@pytest.mark.parametrize("choice", ["all", None, 3, "True"])
def test_other_choices_are_refused(choice: object) -> None:
    with pytest.raises(PromptError, match="accepted are True, False, 'best' and 'auto'") as caught:
        check_choice(choice)  # type: ignore[arg-type]
    assert caught.value.code == "bad_multimask_output"
