# SPDX-License-Identifier: Apache-2.0
"""From a name or a path to a predictor, and what is refused."""

import ast
import shutil
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

import segship
from segship.backends import BACKENDS
from segship.backends.session import RunOptions, RunSettings
from segship.catalog import bundle_folder
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.fetch import checkpoint_path
from segship.loading import load_decoder, load_promptable, open_model


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


def test_known_name_without_a_bundle_says_the_one_command():
    with pytest.raises(BundleError, match=r"get it with `segship fetch vit_l` \(1,250 MB, without torch\)") as caught:
        segship.load("vit_l")
    assert caught.value.code == "no_bundle"
    with pytest.raises(BundleError, match="get it with `segship fetch osam_vit_b_quantized`, without torch"):
        segship.load("osam_vit_b_quantized")


def test_name_whose_checkpoint_an_older_segship_fetched_says_how_it_becomes_a_bundle():
    checkpoint_path("vit_t").parent.mkdir(parents=True)
    checkpoint_path("vit_t").touch()
    with pytest.raises(BundleError, match="its checkpoint is; make the bundle with `segship bundle vit_t`, without"):
        segship.load("vit_t")


def test_semantic_name_without_a_bundle_says_the_one_command():
    with pytest.raises(BundleError, match="`segship fetch semask_l_ade20k` says how to get its checkpoint, and makes"):
        segship.load("semask_l_ade20k")


def test_semantic_name_bundle_and_checkpoint_give_a_semantic_predictor(small_semantic_bundle, small_semask_checkpoint):
    bundle_folder("semask_s_cityscapes").parent.mkdir(parents=True)
    shutil.copytree(small_semantic_bundle.path, bundle_folder("semask_s_cityscapes"))
    by_name = segship.load("semask_s_cityscapes")
    assert isinstance(by_name, segship.SemanticPredictor) and by_name.manifest == small_semantic_bundle.manifest
    by_path, checkpoint = (
        open_model(small_semantic_bundle.path, RunOptions()),
        open_model(small_semask_checkpoint, RunOptions()),
    )
    assert (by_path.backend, checkpoint.backend) == ("onnxruntime", "torch")
    picture = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
    expected = by_path.segment(picture)
    assert np.array_equal(by_name.segment(picture).array, expected.array) and expected.array.shape == (96, 160)


def test_a_semantic_model_takes_no_prompts(small_semantic_bundle):
    with pytest.raises(InputError, match=r"takes no prompts; use segship.load_semantic\(") as caught:
        load_promptable(small_semantic_bundle.path)
    assert caught.value.code == "other_family"
    assert load_promptable("tiny").manifest.architecture == "tiny"


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "model.txt"
    path.write_text("weights")
    with pytest.raises(BundleError, match="a bundle folder or a checkpoint"):
        segship.load(path)


def test_checkpoint_needs_the_torch_backend(small_checkpoint):
    assert segship.load(small_checkpoint).backend == "torch"
    with pytest.raises(BackendUnavailable, match="make one first .*segship bundle .*or use backend=torch"):
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
    assert predictor.precision == "fp32"
    assert predictor.backend_reason == "checkpoints run in torch unless another is named"


def test_unknown_backend_lists_the_known_ones(small_export):
    with pytest.raises(BackendUnavailable, match=f"known are {', '.join(sorted(BACKENDS))}"):
        segship.load(small_export[0].path, backend="tensorflow")


def test_keywords_are_the_fields_of_the_options():
    assert get_type_hints(RunSettings) == get_type_hints(RunOptions)
    assert list(get_type_hints(RunSettings)) == [field.name for field in fields(RunOptions)]


@pytest.mark.parametrize("function", [segship.load, segship.load_semantic, load_promptable, segship.pipeline])
def test_unknown_keyword_is_a_plain_type_error(function):
    with pytest.raises(TypeError, match="unexpected keyword argument 'thread'"):
        function("segment_anything" if function is segship.pipeline else "tiny", thread=2)


def test_defaults_of_a_run_stand_in_one_place():
    found = []
    for path in sorted(Path(segship.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.arguments):
                some = node.args[len(node.args) - len(node.defaults) :]
                only = zip(node.kwonlyargs, node.kw_defaults, strict=True)
                names = [place.arg for place in some] + [place.arg for place, value in only if value is not None]
                found += [(path.name, name) for name in names]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                found.append((path.name, node.target.id))
    options = {"backend", "device", "streams", "compile"}
    # A row of the table says whether a runtime has streams at all, a backend whether it compiles on a device, and
    # quantizing runs nothing: it asks where a bar has to hold.
    known = {("__init__.py", "streams"), ("session.py", "compile"), ("options.py", "backend")}
    assert {place for place in found if place[1] in options} - known == {
        ("session.py", name) for name in options - {"compile"}
    }


def test_a_decoder_alone_decodes_what_another_has_encoded():
    with segship.load("tiny") as whole, load_decoder("tiny") as part:
        embedding = whole.encode(segship.demo_photograph())
        prompts = segship.Prompts(points=[[365, 290]])
        assert part.decode(embedding, prompts).rles == whole.decode(embedding, prompts).rles
        assert part.description == whole.description and part.objects_per_call == whole.objects_per_call
        with pytest.raises(KeyError, match="image_encoder"):
            part.encode(segship.demo_photograph())
