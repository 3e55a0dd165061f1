# SPDX-License-Identifier: Apache-2.0
"""From a data set and a model, or a folder, to a score and its file; a stopped run is tied to what it scored."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from segship.backends.session import RunOptions
from segship.datasets.known import ADE20K, CITYSCAPES
from segship.errors import InputError, OutputError
from segship.evaluation import EvaluateOptions, evaluate, evaluating
from segship.semantic.class_map import ClassMap
from segship.semantic.views import SemanticOptions


class BrightnessModel:
    """A model whose classes are steps of brightness; it can be told to stop."""

    backend, precision = "fake", "fp32"

    def __init__(self, table=CITYSCAPES):
        self.table, self.calls, self.stop_at = table, [], None

    def segment(self, image, options=None):
        self.calls.append(options)
        if len(self.calls) == self.stop_at:
            raise RuntimeError("out of memory")
        return ClassMap((image[..., 1] // 14).astype(np.uint8), self.table)

    def check_options(self, options):
        pass

    def segment_batch(self, images):
        return [self.segment(image) for image in images]


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A bundle's folder and the model that is opened for it."""
    model = BrightnessModel()
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    monkeypatch.setattr(evaluating, "load_semantic", lambda path, **runtime: model)
    return SimpleNamespace(path=bundle, model=model)


def test_the_result_is_written_and_no_state_stays(made_cities, model, tmp_path):
    options = EvaluateOptions(bundle=model.path, out=tmp_path / "out", workers=0)
    evaluation = evaluate("cityscapes", made_cities, options)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cityscapes.val.bundle.evaluation.json"]
    document = json.loads(evaluation.file.read_bytes())
    assert document["mIoU"] == evaluation.summary()["mIoU"] > 0
    assert document["runs_on"] == "fake fp32 cpu" and len(document["model_digest"]) == 64
    with pytest.raises(OutputError, match="exists"):
        evaluate("cityscapes", made_cities, options)
    evaluate("cityscapes", made_cities, EvaluateOptions(bundle=model.path, out=tmp_path / "out", overwrite=True))


def test_a_stopped_run_goes_on_with_another_batch_and_not_with_another_model(made_cities, model, tmp_path):
    options = {"bundle": model.path, "out": tmp_path / "out", "workers": 0}
    whole = evaluate("cityscapes", made_cities, EvaluateOptions(bundle=model.path, workers=0))
    model.model.calls.clear()
    model.model.stop_at = 3
    with pytest.raises(RuntimeError):
        evaluate("cityscapes", made_cities, EvaluateOptions(**options))
    model.model.stop_at = None
    for changed, words in (
        ({"semantic": SemanticOptions(flip=True)}, "look was"),
        ({"truth": "polygons"}, "truth was auto, now polygons"),
        ({"limit": 4}, "samples_digest was"),
        ({"runtime": RunOptions(device="cuda")}, "runs_on was"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            evaluate("cityscapes", made_cities, EvaluateOptions(**options | changed))
        assert caught.value.code == "state_of_another_run"
    (model.path / "manifest.json").write_text("{ }")
    with pytest.raises(InputError, match="model_digest was"):
        evaluate("cityscapes", made_cities, EvaluateOptions(**options))
    (model.path / "manifest.json").write_text("{}")
    evaluation = evaluate("cityscapes", made_cities, EvaluateOptions(**options, batch=2))
    assert evaluation.resumed == 2 and np.array_equal(evaluation.matrix.counts, whole.matrix.counts)


def test_fresh_begins_anew(made_cities, model, tmp_path):
    options = {"bundle": model.path, "out": tmp_path / "out", "workers": 0}
    model.model.stop_at = 3
    with pytest.raises(RuntimeError):
        evaluate("cityscapes", made_cities, EvaluateOptions(**options))
    model.model.stop_at = None
    (model.path / "manifest.json").write_text("{ }")
    assert evaluate("cityscapes", made_cities, EvaluateOptions(**options, fresh=True)).resumed == 0


def test_options_of_looking_reach_the_model_and_batches_do_not_need_them(made_cities, model):
    look = SemanticOptions(window=(32, 32))
    evaluate("cityscapes", made_cities, EvaluateOptions(bundle=model.path, semantic=look, workers=0, limit=2))
    assert model.model.calls == [look, look]
    with pytest.raises(InputError, match="one picture at a time"):
        evaluate("cityscapes", made_cities, EvaluateOptions(bundle=model.path, semantic=look, batch=2))


def test_a_model_of_another_data_set_is_refused(made_cities, model):
    model.model.table = ADE20K
    with pytest.raises(InputError, match="150 classes of ade20k") as caught:
        evaluate("cityscapes", made_cities, EvaluateOptions(bundle=model.path))
    assert caught.value.code == "other_classes"


def test_a_folder_of_the_truth_itself_scores_100(made_cities, tmp_path):
    for ids in ("train", "label"):
        options = EvaluateOptions(predictions=made_cities / "gtFine", ids=ids, out=tmp_path / ids, workers=0)
        assert evaluate("cityscapes", made_cities, options).summary()["mIoU"] == 100.0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "neither was given"),
        ({"bundle": "a", "predictions": "b"}, "both were given"),
        ({"predictions": "b", "batch": 2}, "belong to a bundle"),
        ({"predictions": "b", "semantic": SemanticOptions(flip=True)}, "belong to a bundle"),
        ({"bundle": "a", "ids": "label"}, "belong to predictions"),
        ({"bundle": "a", "limit": 0}, "limit is 0"),
    ],
)
def test_options_that_contradict_one_another_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        EvaluateOptions(**given)
