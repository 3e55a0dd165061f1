# SPDX-License-Identifier: Apache-2.0
"""The published sizes, end to end on seeded weights; minutes each, run by `make slow`."""

import ast
import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

import segship
from segship.images.comparison import draw_scene
from segship.masks.scores import mask_iou
from segship.promptable.prompts import Prompts
from segship.promptable.transforms import Preprocessing, prepare_image
from segship.ship.export import export_bundle
from segship.ship.families.sam.config import SAM_ARCHITECTURES
from segship.ship.families.sam.model import build_sam
from segship.ship.loading import load_model
from tests.oracle import build_reference, reference, seeded_weights
from tests.promptable.test_predictor import ask_oracle

pytestmark = pytest.mark.slow

# The eight examples of the MindFormers document, on an image of 1800 x 1200.
EXAMPLES = {
    "1": ([[500, 375]], [1], None, True),
    "2": ([[500, 375], [1125, 625]], [1, 1], None, False),
    "3": ([[[500, 375]], [[1125, 625]]], [[1], [1]], None, False),
    "4": ([[500, 375], [1125, 625]], [1, 0], None, False),
    "5": (None, None, [425, 600, 700, 875], False),
    "6": ([[575, 750]], [0], [425, 600, 700, 875], False),
    "7": ([[[575, 750]], [[1525, 670]]], [[1], [1]], [[425, 600, 700, 875], [1375, 550, 1650, 800]], False),
    "8": (None, None, [[75, 275, 1725, 850], [425, 600, 700, 875], [1375, 550, 1650, 800], [1240, 675, 1400, 750]], False),  # noqa: E501
}  # fmt: skip
IMAGE = draw_scene((1200, 1800), seed=7)


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory):
    """A seeded vit_b in the published layout: the checkpoint's path and its bundle."""
    folder = tmp_path_factory.mktemp("vit_b")
    sam = build_sam(SAM_ARCHITECTURES["vit_b"])
    torch.save(seeded_weights(sam), folder / "vit_b.pth")
    return folder / "vit_b.pth", export_bundle(folder / "vit_b.pth", folder / "bundle")


@pytest.fixture(scope="module")
def oracle(vit_b):
    """The reference's predictor with the same weights, holding the image."""
    model = build_reference(SAM_ARCHITECTURES["vit_b"])
    model.load_state_dict(torch.load(vit_b[0], weights_only=True), strict=True)
    predictor = reference().SamPredictor(model)
    predictor.set_image(IMAGE)
    return predictor


def test_vit_b_embedding_equals_the_reference(vit_b, oracle):
    config = SAM_ARCHITECTURES["vit_b"]
    sam = load_model(vit_b[0]).module
    assert sam.config == config
    image = prepare_image(IMAGE, Preprocessing(config.image_size, config.pixel_mean, config.pixel_std))
    with torch.inference_mode():
        ours = sam.image_encoder(torch.from_numpy(image))
    expected = oracle.get_image_embedding()
    assert float(expected.std()) > 0.1
    difference = float((ours - expected).abs().max() / expected.abs().max())
    print(f"embedding: max abs {difference:.2e} of its scale")
    assert difference <= 1e-4


def test_vit_b_examples_through_the_exported_graphs_equal_the_reference(vit_b, oracle):
    predictor = segship.load(vit_b[1].path)
    embedding = predictor.encode(IMAGE)
    lowest = {}
    for name, (points, labels, boxes, multimask) in EXAMPLES.items():
        masks, scores, _ = ask_oracle(oracle, points, labels, boxes, multimask)
        prediction = predictor.decode(embedding, Prompts(points, labels, boxes), multimask_output=multimask)
        assert prediction.masks.shape == masks.shape
        assert np.abs(prediction.iou_predictions - scores).max() <= 1e-3
        lowest[name] = min(mask_iou(prediction.masks[at], masks[at]) for at in np.ndindex(masks.shape[:2]))
    print("lowest mask IoU by example:", {name: round(value, 6) for name, value in lowest.items()})
    assert min(lowest.values()) >= 0.999


def test_vit_b_segments_in_under_two_and_a_half_gigabytes(vit_b, tmp_path):
    from PIL import Image

    photo = tmp_path / "photo.jpg"
    Image.fromarray(IMAGE).save(photo)
    # From a small process in between: a child begins with the peak of the process that it was forked from.
    measure = "import sys; from benchmarks.segment_cold import run_once; print(run_once(*sys.argv[1:]))"
    command = [sys.executable, "-c", measure, vit_b[1].path, photo, tmp_path / "out"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, peak = ast.literal_eval(done.stdout.strip())
    print(f"cold process to files: {seconds:.1f} s, peak {peak:.0f} MB")
    assert peak < 2500


@pytest.mark.parametrize("name", ["vit_t", "vit_h"])
def test_other_sizes_export_within_the_bar(name, tmp_path):
    sam = build_sam(SAM_ARCHITECTURES[name])
    torch.save(copy.copy(seeded_weights(sam)), tmp_path / f"{name}.pth")
    del sam
    bundle = export_bundle(tmp_path / f"{name}.pth", tmp_path / "bundle")
    assert bundle.manifest.architecture == name
    weights = bundle.manifest.artifact("image_encoder").weights
    assert (weights is not None) == (name == "vit_h")
    prediction = segship.load(bundle.path).predict(IMAGE, points=[[500, 375]])
    assert np.isfinite(prediction.low_res_masks).all()
