# SPDX-License-Identifier: Apache-2.0
"""The backend over InferSession, with the double of it: bundles through the compiled models of a kit."""

import json
import sys

import numpy as np
import pytest

import segship
from segship import tune
from segship.backends import BACKENDS, load_backend
from segship.backends.opening import open_sessions, try_devices
from segship.backends.session import RunOptions
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.images.comparison import comparison_images
from segship.masks.scores import mask_iou
from segship.ship.targets import ConvertOptions, convert
from tests.ship.targets.conftest import DOUBLES
from tests.small_semask import SIZE_HW

NPU = {"backend": "ascend", "device": "npu", "precision": "fp16"}


@pytest.fixture(scope="module")
def kits(small_sam_bundle, small_street_bundle, tmp_path_factory, ascend_machine):
    """Compiled kits: of the small SAM with three objects a call, of the same with gears, of the small SeMask."""
    folder = tmp_path_factory.mktemp("kits")
    for name, bundle, options in (
        ("fixed", small_sam_bundle, {"objects": 3, "places": 5}),
        ("geared", small_sam_bundle, {"gears": "1..4"}),
        ("streets", small_street_bundle, {"size": SIZE_HW}),
    ):
        convert(bundle.path, folder / name, ConvertOptions("ascend", soc="Ascend310P3", **options))
        ascend_machine.script(folder / name, "20_compile")
    return folder


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """The double of ais_bench is installed for the while."""
    monkeypatch.syspath_prepend(DOUBLES / "python")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("ais_bench", "aclruntime"):
            del sys.modules[name]


@pytest.fixture
def use(monkeypatch, kits):
    return lambda name: monkeypatch.setenv("SEGSHIP_ASCEND_KIT", str(kits / name))


@pytest.mark.parametrize("name", ["fixed", "geared"])
def test_masks_are_those_of_the_bundle(use, small_sam_bundle, name):
    use(name)
    found = segship.load(small_sam_bundle.path, **NPU)
    known = segship.load(small_sam_bundle.path, backend="onnxruntime")
    picture = comparison_images()[0]
    prompts = [segship.Prompts(points=[[20 + 10 * place, 60]]) for place in range(7)]
    prompts.append(segship.Prompts(boxes=[40, 30, 200, 180], points=[[90, 90]]))
    one, two = (model.predict(picture, prompts, multimask_output=True) for model in (found, known))
    np.testing.assert_allclose(one.iou_predictions, two.iou_predictions, atol=1e-4)
    for some, others in zip(one.masks, two.masks, strict=True):
        assert all(mask_iou(a, b) > 0.999 for a, b in zip(some, others, strict=True))


def test_class_maps_are_those_of_the_bundle_in_batches_of_those_that_were_compiled(use, small_street_bundle):
    use("streets")
    images = np.random.default_rng(0).normal(size=(13, 3, *SIZE_HW)).astype(np.float32)
    (found,) = open_sessions(small_street_bundle, RunOptions(**NPU)).values()
    (known,) = open_sessions(small_street_bundle, RunOptions(backend="onnxruntime")).values()
    with found, known:
        one, two = (session.run({"image": images})["class_map"] for session in (found, known))
        assert one.shape == (13, *SIZE_HW) and np.mean(one == two) > 0.9999
        with pytest.raises(InputError, match="was compiled for .*height.* points may be fewer"):
            found.run({"image": images[:, :, :64]})


def test_answers_stay_when_the_session_is_asked_again(use, small_sam_bundle):
    use("fixed")
    sessions = open_sessions(small_sam_bundle, RunOptions(**NPU))
    image = np.zeros((1, 3, 128, 128), np.float32)
    first = sessions["image_encoder"].run({"image": image})["image_embeddings"]
    copy = first.copy()
    sessions["image_encoder"].run({"image": image + 1})
    assert np.array_equal(first, copy)


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"device": "cpu"}, "unknown_device", "accepted are npu, npu:N"),
        ({"device": "npu:x"}, "unknown_device", "accepted are npu, npu:N"),
        ({"device": "npu:5"}, "device_unavailable", "does not start on npu:5"),
        ({"precision": "fp32"}, "precision_unavailable", "compiled in fp16 or int8"),
        ({"precision": "int8"}, "kit_not_compiled", "run scripts/20_compile.sh"),
        ({"streams": 2}, "streams_unavailable", "the ascend backend has none"),
        ({"compile": True}, "compile_unavailable", "compile is an option of the torch backend"),
        ({"threads": 0}, "bad_threads", "threads is 0"),
    ],
)
def test_what_cannot_be_had_is_refused(use, small_sam_bundle, asked, code, words):
    use("fixed")
    with pytest.raises(BackendUnavailable, match=words) as caught:
        segship.load(small_sam_bundle.path, **{**NPU, **asked})
    assert caught.value.code == code


def test_a_kit_that_is_none_or_another_is_refused(use, small_sam_bundle, monkeypatch, tmp_path):
    monkeypatch.delenv("SEGSHIP_ASCEND_KIT", raising=False)
    (tmp_path / "kit.json").write_text('{"graphs": 1}')
    for folder, words in (
        (None, "SEGSHIP_ASCEND_KIT names no kit"),
        (tmp_path / "none", "cannot be read as a kit .FileNotFoundError"),
        (tmp_path, "cannot be read as a kit .KeyError"),
    ):
        if folder is not None:
            monkeypatch.setenv("SEGSHIP_ASCEND_KIT", str(folder))
        with pytest.raises(BackendUnavailable, match=words) as caught:
            segship.load(small_sam_bundle.path, **NPU)
        assert caught.value.code == "kit_missing"
    use("streets")
    with pytest.raises(BackendUnavailable, match="was made of other graphs than 'image_encoder'"):
        segship.load(small_sam_bundle.path, **NPU)


def test_more_places_than_were_compiled_are_told(use, small_sam_bundle):
    use("geared")
    predictor = segship.load(small_sam_bundle.path, **NPU)
    with pytest.raises(InputError, match="was compiled for .*'points': 4") as caught:
        predictor.predict(comparison_images()[0], points=[[x, 20] for x in range(1, 6)], labels=[1] * 5)
    assert caught.value.code == "bad_tensor"


def test_a_model_with_other_inputs_is_refused(use, kits, small_sam_bundle, monkeypatch, tmp_path):
    document = json.loads((kits / "fixed" / "kit.json").read_text())
    (tmp_path / "om").mkdir()
    (tmp_path / "kit.json").write_text(json.dumps(document))
    for name in ("image_encoder", "mask_decoder"):
        (tmp_path / "om" / f"{name}_fp16.om").write_bytes((kits / "fixed/om/mask_decoder_fp16.om").read_bytes())
    monkeypatch.setenv("SEGSHIP_ASCEND_KIT", str(tmp_path))
    with pytest.raises(BundleError, match=r"the inputs of image_encoder_fp16.om are .*; expected \['image'\]"):
        segship.load(small_sam_bundle.path, **NPU)


def test_a_failing_run_and_a_closed_session_say_so(use, small_sam_bundle):
    use("fixed")
    session = open_sessions(small_sam_bundle, RunOptions(**NPU))["image_encoder"]
    image = np.zeros((1, 3, 128, 128), np.float32)
    with pytest.raises(InputError, match="has dtype float64; expected float32"):
        session.run({"image": image.astype(np.float64)})
    session._sessions[0][1].free_resource()
    with pytest.raises(BackendUnavailable, match="failed in ais_bench .*the session was finalized") as caught:
        session.run({"image": image})
    assert caught.value.code == "run_failed"
    session.close()
    session.close()
    with pytest.raises(BackendUnavailable, match="the session is closed"):
        session.run({"image": image})


def test_it_is_named_where_backends_are_and_never_measured_on_the_processor():
    module = load_backend("ascend")
    assert module.version() == "unknown" and module.precisions() == ("fp16", "int8") and module.beside("fp32") == "fp32"
    assert "compiled in fp16 or int8" in try_devices(module)["npu"]
    assert "ascend" not in {backend for backend, _ in tune.candidates()}


def test_missing_package_names_the_wheels(monkeypatch, use, small_sam_bundle):
    use("fixed")
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part != str(DOUBLES / "python")])
    words = r"needs the packages ais_bench and aclruntime .* run: pip install aclruntime-\*.whl ais_bench-\*.whl"
    with pytest.raises(BackendUnavailable, match=words) as caught:
        segship.load(small_sam_bundle.path, **NPU)
    assert caught.value.code == "backend_missing" and BACKENDS["ascend"].command in str(caught.value)
