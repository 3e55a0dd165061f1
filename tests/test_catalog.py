# SPDX-License-Identifier: Apache-2.0
"""Names and paths of models, and what `load` refuses."""

import shutil

import numpy as np
import pytest

import segship
from segship.catalog import bundle_folder, find_model
from segship.errors import BackendUnavailable, BundleError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))


def test_embedded_model_loads_by_name():
    predictor = segship.load("tiny", backend="onnxruntime", threads=1)
    assert (predictor.backend, predictor.manifest.architecture) == ("onnxruntime", "tiny")
    assert "1 threads" in predictor.description


def test_known_name_means_its_bundle_in_the_cache(small_export):
    bundle_folder("vit_b").parent.mkdir(parents=True)
    shutil.copytree(small_export[0].path, bundle_folder("vit_b"))
    assert segship.load("vit_b").manifest == small_export[0].manifest


def test_known_name_without_a_bundle_says_the_two_commands():
    with pytest.raises(BundleError, match="`segship fetch vit_l` and `segship export vit_l`") as caught:
        segship.load("vit_l")
    assert caught.value.code == "no_bundle"


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(BundleError, match="no model 'sam'.*tiny, vit_b, vit_l, vit_h, vit_t") as caught:
        find_model("sam")
    assert caught.value.code == "unknown_model"


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "model.txt"
    path.write_text("weights")
    with pytest.raises(BundleError, match="a bundle folder or a checkpoint"):
        segship.load(path)


def test_checkpoint_needs_the_torch_backend(small_checkpoint):
    assert segship.load(small_checkpoint).backend == "torch"
    with pytest.raises(BackendUnavailable, match="export it first .*or use --backend torch"):
        segship.load(small_checkpoint, backend="onnxruntime")


def test_bundle_does_not_run_on_the_torch_backend(small_export):
    with pytest.raises(BackendUnavailable, match="the torch backend runs checkpoints"):
        segship.load(small_export[0].path, backend="torch")


def test_precision_that_the_backend_does_not_have_is_refused(small_export):
    with pytest.raises(BackendUnavailable, match="onnxruntime computes in the precision of the graph"):
        segship.load(small_export[0].path, backend="onnxruntime", precision="bf16")


def test_predictor_says_what_runs_and_why(small_export):
    predictor = segship.load(small_export[0].path, backend="onnxruntime")
    assert (predictor.precision, predictor.backend_reason) == ("fp32", "it was asked for")


def test_openvino_runs_the_same_bundle(small_export):
    pytest.importorskip("openvino")
    path, image = small_export[0].path, segship.demo_photograph()
    expected = segship.load(path, backend="onnxruntime").predict(image, points=[[365, 290]])
    with segship.load(path, backend="openvino") as predictor:
        found = predictor.predict(image, points=[[365, 290]])
    assert predictor.backend == "openvino"
    scale = np.abs(expected.low_res_masks).max()
    assert np.abs(expected.low_res_masks - found.low_res_masks).max() <= 1e-4 * scale


def test_checkpoint_in_auto_precision_is_fp32_and_says_why(small_checkpoint):
    predictor = segship.load(small_checkpoint, precision="auto")
    assert (predictor.precision, predictor.backend_reason) == ("fp32", "checkpoints run in torch alone")


def test_unknown_backend_lists_the_known_ones(small_export):
    with pytest.raises(BackendUnavailable, match="known are onnxruntime, openvino, torch"):
        segship.load(small_export[0].path, backend="tensorflow")


def test_models_say_where_they_stand():
    found = {model.name: model for model in segship.list_models()}
    assert found["tiny"].status == "in the package" and 5e6 < found["tiny"].bytes < 12e6
    assert found["vit_t"].status == "not fetched" and found["vit_t"].location.startswith("https://")
    bundle_folder("vit_t").mkdir(parents=True)
    assert next(model for model in segship.list_models() if model.name == "vit_t").status == "bundle ready"
