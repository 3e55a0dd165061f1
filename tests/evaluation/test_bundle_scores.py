# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a score: the bundle's figures are exactly those of the torch model's own class maps."""

import json

import numpy as np
import pytest
import torch

from recipes.streets.scenes import write_cityscapes
from segship.cli import main
from segship.datasets.folders import find_samples, read_truth
from segship.errors import InputError
from segship.evaluation import EvaluateOptions, evaluate
from segship.evaluation.report import ConfusionMatrix
from segship.images import read_image
from segship.semantic.views import SemanticOptions
from segship.ship.families import IMAGENET_MEAN, IMAGENET_STD
from segship.ship.families.semask.model import SemanticGraph
from tests.small_semask import ODD_SIZE_HW, SIZE_HW, small_semask


def write_streets(root, size_hw):
    write_cityscapes(root, {"val": 3}, size_hw=size_hw, seed=3, truths=("labelIds",))
    return root


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Of the size that the bundle's graph takes, so that nothing is resized."""
    return write_streets(tmp_path_factory.mktemp("streets"), SIZE_HW)


@torch.inference_mode()
def torch_class_map(pixels):
    """The module itself: normalised, run, argmax."""
    image = (torch.from_numpy(pixels).float() - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return SemanticGraph(small_semask())(image.permute(2, 0, 1)[None])[0].numpy()


def torch_counts(root):
    matrix = ConfusionMatrix(19)
    for sample in find_samples("cityscapes", root):
        matrix.add(torch_class_map(read_image(sample.image).pixels), read_truth(sample))
    return matrix.counts


def test_a_bundle_of_class_maps_scores_exactly_as_its_torch_model(streets, small_semantic_bundle):
    options = EvaluateOptions(bundle=small_semantic_bundle.path, workers=0)
    evaluation = evaluate("cityscapes", streets, options)
    expected = torch_counts(streets)
    assert np.array_equal(evaluation.matrix.counts, expected)
    # The comparison means something: the model finds several classes, and some pixels right.
    assert (expected.sum(0) > 0).sum() > 5 and np.trace(expected) > 0
    together = evaluate("cityscapes", streets, EvaluateOptions(bundle=small_semantic_bundle.path, workers=0, batch=2))
    assert np.array_equal(together.matrix.counts, expected)


def test_a_bundle_of_logits_scores_the_same_by_argmax(tmp_path, small_semantic_logits):
    root = write_streets(tmp_path, ODD_SIZE_HW)
    evaluation = evaluate("cityscapes", root, EvaluateOptions(bundle=small_semantic_logits.path, workers=0))
    assert np.array_equal(evaluation.matrix.counts, torch_counts(root))


def test_the_command_prints_and_writes_that_score(streets, small_semantic_bundle, tmp_path, capsys):
    bundle, out = small_semantic_bundle.path, tmp_path / "out"
    arguments = ["evaluate", "cityscapes", "--data", str(streets), "--bundle", str(bundle), "-o", str(out), "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    matrix = ConfusionMatrix(19)
    matrix.counts += torch_counts(streets)
    assert document["mIoU"] == round(100 * matrix.scores().mean_iou, 2)
    assert document["runs_on"] == "onnxruntime fp32 cpu" and document["failed"] == []


def test_a_checkpoint_is_scored_with_torch_and_looked_at_in_windows(streets, small_semask_checkpoint):
    options = EvaluateOptions(
        bundle=small_semask_checkpoint, workers=0, limit=1, semantic=SemanticOptions(window=(96, 160), ratios=(0.125,))
    )
    evaluation = evaluate("cityscapes", streets, options)
    assert evaluation.matrix.counts.sum() > 0 and evaluation.identity["runs_on"] == "torch fp32 cpu"


def test_looks_that_class_maps_cannot_answer_are_refused_before_anything_runs(streets, small_semantic_bundle):
    options = EvaluateOptions(bundle=small_semantic_bundle.path, workers=0, semantic=SemanticOptions(flip=True))
    with pytest.raises(InputError, match="--output logits") as caught:
        evaluate("cityscapes", streets, options)
    assert caught.value.code == "needs_logits"


def test_promptable_models_and_other_data_sets_are_refused(streets, made_ade20k, small_semantic_bundle):
    with pytest.raises(InputError, match="knows no classes") as caught:
        evaluate("cityscapes", streets, EvaluateOptions(bundle="tiny"))
    assert caught.value.code == "other_family"
    with pytest.raises(InputError, match="19 classes of cityscapes") as caught:
        evaluate("ade20k", made_ade20k, EvaluateOptions(bundle=small_semantic_bundle.path))
    assert caught.value.code == "other_classes"
