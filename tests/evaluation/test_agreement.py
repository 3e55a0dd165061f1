# SPDX-License-Identifier: Apache-2.0
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from segship.bundle.evidence import Evidence, Row
from segship.datasets.image_list import ListedFile, ListedImage, ListedObject, ListedPicture
from segship.evaluation.agreement import PromptableTally, SemanticTally, draw_agreements, list_bar
from segship.images import LoadedImage
from segship.masks.rle import mask_to_runs
from segship.promptable.task import ListedAnswer as PromptableAnswer
from segship.semantic.task import ListedAnswer as SemanticAnswer

SIZE = (8, 10)
FILE = ListedFile("a.png", 1, "0" * 64)


def picture(truth=None, objects=()):
    entry = ListedImage(FILE, SIZE, tuple(objects))
    return ListedPicture(entry, LoadedImage(np.zeros((*SIZE, 3), np.uint8)), truth)


def square(columns):
    mask = np.zeros(SIZE, np.bool_)
    mask[2:6, :columns] = True
    return mask_to_runs(mask)


def answered(*columns, scores=(0.9, 0.8, 0.7), box=4):
    masks = {"click": [[square(count) for count in columns]], "box": [[square(box)]]}
    said = {"click": np.array([scores], np.float32), "box": np.array([[0.5]], np.float32)}
    embeddings = {"image_embeddings": [np.full((1, 2, 2, 2), float(columns[0]), np.float32)]}
    decoded = {"low_res_masks": [np.ones((1, 4, 8, 8), np.float32)], "iou_predictions": [np.ones((1, 4), np.float32)]}
    return PromptableAnswer({}, {"image_encoder": embeddings, "mask_decoder": decoded}, masks, said)


def figures_of(tally, what):
    return next(row.figures for row in tally.rows("step", {}) if row.what == what)


def test_masks_are_compared_one_by_one_and_by_kind():
    tally = PromptableTally()
    tally.add(picture(), answered(4, 2, 0), answered(4, 4, 0, scores=(0.9, 0.8, 0.4)))
    click, both = figures_of(tally, "masks, click"), figures_of(tally, "masks")
    assert (click["mask_iou_min"], click["mask_iou_low"]) == (0.5, pytest.approx(1 / 3))
    # Two empty masks agree.
    assert click["mask_iou_mean"] == pytest.approx((1 + 0.5 + 1) / 3) and both["mask_iou_mean"] == pytest.approx(
        3.5 / 4
    )
    assert click["iou_error"] == pytest.approx(0.1) and figures_of(tally, "masks, box")["boundary_f"] == 1
    assert tally.agreements == [1, 0.5, 1, 1] and both["flips"] == 0


def test_a_mask_that_becomes_empty_or_full_is_counted():
    tally = PromptableTally()
    tally.add(picture(), answered(4, 0, 4), answered(4, 3, 0))
    assert figures_of(tally, "masks")["flips"] == 2 and figures_of(tally, "masks")["mask_iou_min"] == 0


def test_the_truth_scores_the_best_mask_the_first_ranked_and_the_box():
    truth = np.zeros(SIZE, np.uint16)
    truth[2:6, :4] = 7
    objects = [ListedObject("click", ((1.5, 3.5),), (1,), segment=7), ListedObject("box", box=(0, 2, 4, 6), segment=7)]
    tally = PromptableTally()
    found = answered(2, 4, 8, scores=(0.2, 0.1, 0.9), box=1)
    tally.add(picture(truth, objects), found, found)
    assert tally.scores() == {"click_best": 1.0, "click_first": 0.5, "box": 0.25}


def test_equal_answers_have_one_digest_and_others_another():
    digests = []
    for other in (answered(4, 2, 0), answered(4, 2, 0), answered(3, 2, 0)):
        tally = PromptableTally()
        tally.add(picture(), answered(4, 2, 0), other)
        digests.append(tally.outputs)
    assert digests[0] == digests[1] != digests[2]


def test_of_hundreds_of_masks_the_fifth_percentile_is_held_and_not_the_lowest():
    assert list_bar({"mask_iou_mean": 0.9, "mask_iou_min": 0.8}) == {"mask_iou_mean": 0.9, "mask_iou_p5": 0.8}
    assert list_bar({"mask_iou_min": 0.5, "mask_iou_p5": 0.9}) == {"mask_iou_p5": 0.9}
    bar = {"mask_iou_mean": 0.8, "mask_iou_min": 0.99, "cosine": 0.5, "max_abs": 1}
    tally = PromptableTally()
    tally.add(picture(), answered(4, 2, 0), answered(4, 4, 0))
    assert [row.passed for row in tally.rows("step", bar) if row.what.startswith("masks")] == [False, True, True]


def test_class_maps_are_compared_by_pixels_and_classes_and_scored():
    truth, classes = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    truth[:, :5], classes[:, :5] = 1, 1
    truth[0, 0] = 255
    found = classes.copy()
    found[:, 4] = 0
    tally, logits = SemanticTally(2), {"semantic": {"class_map": [classes]}}
    tally.add(picture(truth), SemanticAnswer(logits, classes), SemanticAnswer(logits, found))
    (row,) = tally.rows("step", {"pixels_equal": 0.95})
    assert row.figures == {"pixels_equal": 0.9, "map_iou": pytest.approx((40 / 48 + 32 / 40) / 2)} and not row.passed
    assert tally.agreements == [row.figures["map_iou"]]
    assert tally.scores() == {
        "miou": pytest.approx((40 / 48 + 31 / 39) / 2), "pixel_accuracy": pytest.approx(71 / 79),
    }  # fmt: skip


def test_distribution_and_errors_are_drawn_for_every_precision():
    row = Row("step", "image_encoder", "image_embeddings", 1, {"relative_l2": 0.01}, True)
    evidence = {"openvino bf16": Evidence({}, (row,)), "onnxruntime int8": Evidence({}, ())}
    drawn = draw_agreements("tiny <1>", {"openvino bf16": [0.99, 0.5, 1.0], "onnxruntime int8": [0.95] * 4}, evidence)
    root = ElementTree.fromstring(drawn)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"tiny <1>", "openvino bf16", "mean 0.8300", "mean 0.9500"} <= set(texts)
    assert "image_encoder image_embeddings 1.0e-02" in texts
