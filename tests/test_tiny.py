# SPDX-License-Identifier: Apache-2.0
"""The model inside the package: what it weighs, where it comes from, and that it cuts things out."""

import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import segship
from segship.bundle import Bundle
from segship.catalog import embedded_bundle
from segship.files import sha256_of
from segship.images.reading import DEMO_POINT_XY
from segship.masks.edges import MaskEdges
from segship.masks.scores import mask_iou
from segship.ship.families.sam.config import SAM_ARCHITECTURES

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared"
MOST_BYTES = 12_000_000


def test_bundle_is_whole_small_and_from_the_weights_in_the_recipe():
    bundle = Bundle.read(embedded_bundle("tiny"))
    assert sum(path.stat().st_size for path in bundle.path.iterdir()) < MOST_BYTES
    assert bundle.manifest.architecture == "tiny"
    assert bundle.manifest.checkpoint.sha256 == sha256_of(ROOT / "recipes/tiny/tiny.safetensors")
    assert bundle.manifest.checkpoint.licence == "Apache-2.0"
    assert all(row.passed for row in bundle.manifest.evidence.rows)


def spoon():
    """The bowl of the spoon in the photograph, drawn by hand as an ellipse and the beginning of its handle."""
    mask = np.zeros((400, 600), np.uint8)
    cv2.ellipse(mask, (366, 286), (38, 41), 0, 0, 360, 1, -1)
    cv2.fillPoly(mask, [np.array([[334, 262], [350, 224], [372, 224], [392, 258]])], 1)
    return mask.astype(bool)


def test_the_click_of_the_demo_cuts_out_the_spoon():
    predictor = segship.load("tiny")
    prediction = predictor.predict(segship.demo_photograph(), points=[DEMO_POINT_XY], multimask_output="best")
    assert mask_iou(prediction.masks[0, 0], spoon()) >= 0.75


def test_a_box_cuts_out_the_spoon():
    predictor = segship.load("tiny")
    prediction = predictor.predict(segship.demo_photograph(), boxes=[325, 222, 408, 328], multimask_output=False)
    assert mask_iou(prediction.masks[0, 0], spoon()) >= 0.75


def measured(name, capsys, monkeypatch, *options):
    """What a shared tool finds on photographs that were never trained on."""
    spec = importlib.util.spec_from_file_location(name, SHARED / f"tools/{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr("sys.argv", [name, "--data", str(SHARED / "data/natural-val"), *options, "--json"])
    tool.main()
    return json.loads(capsys.readouterr().out)


@pytest.mark.skipif(not (SHARED / "tools/click_iou.py").is_file(), reason="the evaluation set is not here")
def test_scores_on_photographs_with_human_segments_are_those_of_the_model_card(capsys, monkeypatch):
    """Measured by the shared tool on 100 photographs that were never trained on; docs/tiny.md states the figures."""
    figures = measured("click_iou", capsys, monkeypatch, "--limit", "40")
    assert figures["oracle"] >= 0.61
    assert figures["top"] >= 0.51
    assert figures["box"] >= 0.67


@pytest.mark.skipif(not (SHARED / "tools/everything_recall.py").is_file(), reason="the evaluation set is not here")
def test_everything_finds_what_the_model_card_says(capsys, monkeypatch):
    """A part of what docs/tiny.md states: fewer photographs, and fewer points."""
    options = "--limit", "12", "--option", "points_per_side=16"
    figures = measured("everything_recall", capsys, monkeypatch, *options)
    assert figures["found_50"] >= 0.48 and figures["found_75"] >= 0.24
    assert figures["useful"] >= 0.25 and figures["records"] <= 27


def test_the_manifest_asks_for_clean_masks_and_edges_and_has_its_own_thresholds():
    manifest = Bundle.open(embedded_bundle("tiny")).manifest
    assert manifest.mask_clean_up is not None and manifest.mask_clean_up.box_margin == 0
    assert manifest.mask_edges == MaskEdges()
    assert manifest.amg_defaults == SAM_ARCHITECTURES["tiny"].amg_thresholds


def test_everything_does_what_the_manifest_asks_for_and_options_have_the_last_word():
    own = SAM_ARCHITECTURES["tiny"].amg_thresholds
    with segship.load("tiny") as predictor:
        embedding = predictor.encode(segship.demo_photograph())
        left_out, asked, otherwise = (
            [record.runs.tolist() for record in segship.generate_masks(predictor, embedding, options)]
            for options in (
                segship.AmgOptions(points_per_side=6),
                segship.AmgOptions(points_per_side=6, **asdict(own)),
                segship.AmgOptions(points_per_side=6, nms="box", edges=False, refine=False),
            )
        )
        without_picture = segship.generate_masks(
            predictor, replace(embedding, guide=None), segship.AmgOptions(points_per_side=6)
        )
    assert left_out == asked != otherwise
    # A picture may leave nothing of a small mask.
    assert 1 < len(left_out) <= len(without_picture) <= len(left_out) + 2


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2), (2, 1), (2, 2), (1, 50), (50, 1)])
def test_pictures_of_few_pixels_have_masks(size_hw):
    with segship.load("tiny") as predictor:
        prediction = predictor.predict(np.full((*size_hw, 3), 9, np.uint8), points=[[0, 0]])
    assert prediction.masks.shape == (1, 3, *size_hw) and len(prediction.rles[0]) == 3
