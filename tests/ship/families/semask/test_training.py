# SPDX-License-Identifier: Apache-2.0
"""The whole road means something: a small SeMask that is trained on drawn streets scores far better than before.

Streets are written in Cityscapes' layout, read back from it, and scored by the code behind ``segship evaluate``.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recipes.streets.scenes import write_cityscapes
from segship.backends.session import RunOptions
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.datasets.classes import IGNORED
from segship.datasets.folders import find_samples, read_truth
from segship.datasets.known import CITYSCAPES
from segship.evaluation import EvaluateOptions, ModelSource, evaluate, score_samples
from segship.evaluation.report import ConfusionMatrix
from segship.images import read_image
from segship.semantic.preprocessing import ScaleLimits, SemanticPreprocessing, to_tensor
from segship.ship.families.semask.model import SemanticGraph, build_semask
from segship.ship.quantize.options import QuantizeOptions
from segship.ship.quantize.quantizing import quantize_bundle
from segship.ship.templates.bundling import BundleOptions, bundle_checkpoint
from segship.ship.verify import verify_bundle
from tests import small_semask

SIZE = (64, 128)
TRAIN, VAL = 48, 8
STEPS, BATCH, RATE = 150, 4, 5e-3
# Its graph of any size is at hand as a template, so that nothing is traced here.
CONFIG = small_semask.SMALL_SEMASK
PREPROCESSING = SemanticPreprocessing(ScaleLimits(SIZE[1], SIZE[0]), CONFIG.pixel_mean, CONFIG.pixel_std)


def seeded_model():
    torch.manual_seed(0)
    model = build_semask(CONFIG)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.trunc_normal_(module.weight, std=0.05)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    return model


def read_pairs(root, split):
    samples = find_samples("cityscapes", root, split)
    images = [to_tensor(read_image(sample.image).pixels, PREPROCESSING) for sample in samples]
    truths = np.stack([read_truth(sample) for sample in samples]).astype(np.int64)
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(truths)


def train(model, images, truths):
    """Cross-entropy at the size of the logits, mirrored at random, and a rate that rises and falls."""
    # Every fourth pixel: what the logits can tell.
    small = truths[:, 2::4, 2::4]
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (BATCH,))
        batch, target = images[chosen], small[chosen]
        if torch.rand(()) < 0.5:
            batch, target = batch.flip(3), target.flip(2)
        loss = F.cross_entropy(model(batch), target, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def score(model, root):
    graph = SemanticGraph(model)

    def segment(pixels):
        with torch.inference_mode():
            return graph(torch.from_numpy(to_tensor(pixels, PREPROCESSING)))[0].numpy()

    return score_samples("cityscapes", find_samples("cityscapes", root, "val"), ModelSource(segment))


def best_constant_miou(root):
    """The best of the scores of calling every pixel the same."""
    truths = [read_truth(sample) for sample in find_samples("cityscapes", root, "val")]
    scores = []
    for number in range(len(CITYSCAPES.classes)):
        matrix = ConfusionMatrix(len(CITYSCAPES.classes))
        for truth in truths:
            matrix.add(np.full_like(truth, number), truth)
        scores.append(100 * matrix.scores().mean_iou)
    return max(scores)


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streets")
    write_cityscapes(folder, {"train": TRAIN, "val": VAL}, size_hw=SIZE, seed=1, truths=("labelIds",))
    return folder


@pytest.fixture(scope="module")
def trained(streets):
    """The model after training, and its score before."""
    model = seeded_model()
    before = score(model, streets).summary()
    train(model, *read_pairs(streets, "train"))
    return model, before


def test_training_raises_miou_far_above_the_untrained_model_and_the_best_constant(streets, trained):
    model, before = trained
    after = score(model, streets).summary()
    constant = best_constant_miou(streets)
    print(f"before {before}, after {after}, best constant {constant:.2f}")
    assert after["mIoU"] > 4 * max(before["mIoU"], constant)
    assert after["aAcc"] > 75


def test_integers_keep_the_score_of_the_trained_model(streets, trained, tmp_path, small_templates):
    checkpoint = small_semask.save_checkpoint(tmp_path / "trained.pth", trained[0])
    options = BundleOptions(size=SIZE, scale=ScaleLimits(SIZE[1], SIZE[0]))
    bundle = bundle_checkpoint(checkpoint, tmp_path / "bundle", options)
    assert all(row.passed for row in verify_bundle(bundle.path, checkpoint))
    cities = sorted((streets / "leftImg8bit" / "train").iterdir())
    calibrate(cities, tmp_path / "list", CalibrateOptions(task="semantic", limit=16))
    quantize_bundle(bundle.path, QuantizeOptions(calibration=tmp_path / "list"))
    scores = {}
    for precision in ("fp32", "int8"):
        run = RunOptions(backend="onnxruntime", precision=precision)
        scores[precision] = evaluate("cityscapes", streets, EvaluateOptions(bundle=bundle.path, runtime=run)).summary()
    print(scores)
    assert abs(scores["int8"]["mIoU"] - scores["fp32"]["mIoU"]) < 0.3
    assert scores["fp32"] != scores["int8"]
