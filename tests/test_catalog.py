# SPDX-License-Identifier: Apache-2.0
"""Names and paths of models, and what `load` refuses."""

import shutil

import numpy as np
import pytest

import segship
from segship.catalog import bundle_folder, find_model, load_promptable, open_model
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.fetch import checkpoint_path


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


def test_semantic_name_without_a_bundle_says_the_two_commands():
    with pytest.raises(BundleError, match="`segship fetch semask_l_ade20k` says how .*`segship export semask_l"):
        segship.load("semask_l_ade20k")


def test_semantic_name_bundle_and_checkpoint_give_a_semantic_predictor(small_semantic_bundle, small_semask_checkpoint):
    bundle_folder("semask_s_cityscapes").parent.mkdir(parents=True)
    shutil.copytree(small_semantic_bundle.path, bundle_folder("semask_s_cityscapes"))
    by_name = segship.load("semask_s_cityscapes")
    assert isinstance(by_name, segship.SemanticPredictor) and by_name.manifest == small_semantic_bundle.manifest
    by_path, checkpoint = open_model(small_semantic_bundle.path), open_model(small_semask_checkpoint)
    assert (by_path.backend, checkpoint.backend) == ("onnxruntime", "torch")
    picture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    expected = by_path.segment(picture)
    assert np.array_equal(by_name.segment(picture).array, expected.array) and expected.array.shape == (96, 160)


def test_a_semantic_model_takes_no_prompts(small_semantic_bundle):
    with pytest.raises(InputError, match="takes no prompts; use `segship semantic`") as caught:
        load_promptable(small_semantic_bundle.path)
    assert caught.value.code == "other_family"
    assert load_promptable("tiny").manifest.architecture == "tiny"


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


def test_semantic_models_say_where_they_stand(small_semask_checkpoint):
    def found():
        return next(model for model in segship.list_models() if model.name == "semask_s_cityscapes")

    assert found().status == "get by hand" and "drive.google.com" in found().location
    assert found().published == "mIoU 77.13 / 79.14"
    place = checkpoint_path("semask_s_cityscapes")
    place.parent.mkdir(parents=True)
    shutil.copyfile(small_semask_checkpoint, place)
    assert (found().status, found().bytes) == ("checkpoint fetched", place.stat().st_size)
    bundle_folder("semask_s_cityscapes").mkdir(parents=True)
    assert found().status == "bundle ready"
