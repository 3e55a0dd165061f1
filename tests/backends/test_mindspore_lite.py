# SPDX-License-Identifier: Apache-2.0
"""MindSpore Lite over the kit for Ascend: with a double, and with the engine itself after ``make
target-mindspore-lite``. What the engine refuses, the double refuses in the same words."""

import json
import os
import shutil
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest

import segship
from segship import tune
from segship.backends import BACKENDS, load_backend
from segship.backends.opening import open_graph, open_sessions, try_devices
from segship.backends.session import RunOptions
from segship.bundle import Bundle
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.masks.scores import mask_iou
from segship.ship.targets import ConvertOptions, convert
from tests.backends import mindspore_lite_double as double
from tests.backends.mindspore_lite_bridge import Bridge

LITE = RunOptions(backend="mindspore_lite")
PYTHON = Path(__file__).parents[2] / ".targets/mindspore-lite/bin/python"
PLACES = 4


@pytest.fixture(scope="module")
def bundle():
    return Bundle.open(Path(segship.__file__).parent / "bundles" / "tiny")


@contextmanager
def real():
    """The engine itself, in a process of another Python, which ends in peace."""
    if not PYTHON.exists():
        pytest.skip("no MindSpore Lite: make target-mindspore-lite")
    bridge = Bridge(PYTHON)
    yield bridge
    assert bridge.close() == 0


@pytest.fixture(scope="module", params=["double", "real"])
def started(request):
    """Start an engine; one that converts runs nothing, since that would end in a crash."""
    return (lambda: nullcontext(double)) if request.param == "double" else real


@pytest.fixture(scope="module")
def engine(started):
    with started() as running:
        yield running


@pytest.fixture(scope="module")
def graphs(bundle, tmp_path_factory):
    """The kit of tiny, one object a call."""
    folder = tmp_path_factory.mktemp("lite") / "kit"
    convert(bundle.path, folder, ConvertOptions("ascend", soc="Ascend310P3", places=PLACES))
    return folder


@pytest.fixture(scope="module")
def converted(graphs, bundle, started, tmp_path_factory):
    """The models that an engine makes of the kit's graphs, and ``free`` of the bundle's decoder."""
    folder = tmp_path_factory.mktemp("mindir")
    paths = {path.stem: path for path in sorted((graphs / "graphs").iterdir())}
    with started() as other:
        for name, path in {**paths, "free": bundle.path / "mask_decoder.onnx"}.items():
            converter = other.Converter()
            converter.save_type = other.ModelType.MINDIR
            converter.convert(other.FmkType.ONNX, str(path), str(folder / name))
    return folder


@pytest.fixture
def kit(graphs, converted, tmp_path, engine, monkeypatch):
    """The kit with its models, and their engine as what is installed."""
    monkeypatch.setitem(sys.modules, "mindspore_lite", engine)
    monkeypatch.delitem(sys.modules, "segship.backends.mindspore_lite", raising=False)
    (tmp_path / "kit.json").write_bytes((graphs / "kit.json").read_bytes())
    shutil.copytree(converted, tmp_path / "mindir")
    for path in (tmp_path / "mindir").iterdir():
        path.chmod(0o600)
    monkeypatch.setenv("SEGSHIP_ASCEND_KIT", str(tmp_path))
    yield tmp_path
    sys.modules.pop("segship.backends.mindspore_lite", None)


def refusal(kind, code, words, act):
    with pytest.raises(kind, match=words) as told:
        act()
    assert told.value.code == code


def test_masks_are_those_of_the_bundle(kit, bundle):
    picture = segship.demo_photograph()
    prompts = [
        segship.Prompts(points=[[300, 200]]),
        segship.Prompts(points=[[100, 100], [320, 210]], labels=[0, 1]),
        segship.Prompts(boxes=[80, 80, 380, 300], points=[[200, 200]]),
    ]
    with (
        segship.load(bundle.path, backend="mindspore_lite") as found,
        segship.load(bundle.path, backend="onnxruntime") as known,
    ):
        assert found.description.startswith("mindspore_lite 2.0") and "cpu, fp32" in found.description
        one, two = (model.predict(picture, prompts, multimask_output=True) for model in (found, known))
    np.testing.assert_allclose(one.iou_predictions, two.iou_predictions, atol=1e-3)
    assert np.abs(one.low_res_masks - two.low_res_masks).max() <= 1e-3 * np.abs(two.low_res_masks).max()
    for some, others in zip(one.masks, two.masks, strict=True):
        assert all(mask_iou(a, b) > 0.999 for a, b in zip(some, others, strict=True))


def test_answers_stay_and_arrays_of_any_order_are_read_right(kit, bundle):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, 384, 384)).astype(np.float32)
    specs = {spec.name: spec for spec in bundle.manifest.graphs}
    with open_graph(bundle, specs["image_encoder"], RunOptions(backend="onnxruntime")) as session:
        known = session.run({"image": images})["image_embeddings"]
    with open_graph(bundle, specs["image_encoder"], LITE) as session:
        both = session.run({"image": np.asfortranarray(images)})["image_embeddings"]
        first = session.run({"image": images[:1]})["image_embeddings"]
        copy = first.copy()
        session.run({"image": images[1:]})
    assert np.abs(both - known).max() <= 1e-5 * np.abs(known).max()
    assert np.array_equal(first, copy) and np.array_equal(both[:1], first) and not np.array_equal(both[1:], first)


def test_a_session_says_what_it_cannot_answer(kit, bundle):
    sessions = open_sessions(bundle, LITE)
    assert sorted(sessions) == ["image_encoder", "mask_decoder"]
    session = sessions["image_encoder"]
    refusal(InputError, "bad_tensor", "expected float32", lambda: session.run({"image": np.zeros((1, 3, 384, 384))}))
    session.close()
    session.close()
    image = {"image": np.zeros((1, 3, 384, 384), np.float32)}
    refusal(BackendUnavailable, "session_closed", "is closed", lambda: session.run(image))
    sessions["mask_decoder"].close()


def test_a_failing_call_is_told(kit, bundle, monkeypatch):
    session = open_sessions(bundle, LITE)["image_encoder"]
    ((form, model),) = session._models

    class Failing:
        get_inputs = model.get_inputs
        predict = staticmethod(lambda tensors: model.predict(tensors[:0]))

    session._models = [(form, Failing)]
    image = {"image": np.zeros((1, 3, 384, 384), np.float32)}
    words = "graph 'image_encoder' failed in mindspore_lite 2.0.*: predict failed!"
    refusal(BackendUnavailable, "run_failed", words, lambda: session.run(image))


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"device": "npu"}, "unknown_device", "accepted is cpu"),
        ({"precision": "fp16"}, "precision_unavailable", "fp16"),
        ({"streams": 2}, "streams_unavailable", "the mindspore_lite backend has none"),
        ({"threads": 0}, "bad_threads", "threads is 0"),
    ],
)
def test_what_cannot_be_had_is_refused(kit, bundle, asked, code, words):
    with pytest.raises((BackendUnavailable, BundleError), match=words) as told:
        segship.load(bundle.path, backend="mindspore_lite", **asked)
    assert told.value.code == code


def test_a_kit_that_was_not_converted_names_the_line(kit, bundle):
    os.remove(kit / "mindir" / "image_encoder.mindir")
    words = (
        "run in it: converter_lite --fmk=ONNX --saveType=MINDIR --modelFile=graphs/image_encoder.onnx "
        "--outputFile=mindir/image_encoder$"
    )
    refusal(BackendUnavailable, "kit_not_compiled", words, lambda: segship.load(bundle.path, backend="mindspore_lite"))
    document = json.loads((kit / "kit.json").read_text())
    document["graphs"]["image_encoder"]["forms"] *= 2
    (kit / "kit.json").write_text(json.dumps(document))
    refusal(
        BackendUnavailable, "kit_not_compiled", "has gears", lambda: segship.load(bundle.path, backend="mindspore_lite")
    )


def test_files_that_are_no_models_or_others_are_refused(kit, bundle):
    path = kit / "mindir" / "image_encoder.mindir"
    path.write_bytes((kit / "mindir" / "mask_decoder.mindir").read_bytes())
    refusal(
        BundleError,
        "graph_interface",
        r"the inputs of image_encoder.mindir are {'image_embeddings': .*; expected {'image': \('float32', \(1, 3, 384",
        lambda: segship.load(bundle.path, backend="mindspore_lite"),
    )
    path.write_bytes(b"none" * 9)
    refusal(
        BundleError,
        "graph_rejected",
        "does not load .*image_encoder.mindir: build_from_file failed! Error is Common error code",
        lambda: segship.load(bundle.path, backend="mindspore_lite"),
    )


def test_it_is_named_where_backends_are_and_never_measured(kit, monkeypatch):
    module = load_backend("mindspore_lite")
    monkeypatch.delenv("SEGSHIP_ASCEND_KIT")
    assert "SEGSHIP_ASCEND_KIT names no kit" in try_devices(module)["cpu"]
    assert "mindspore_lite" not in {backend for backend, _ in tune.candidates()}
    assert BACKENDS["mindspore_lite"].runs(["image_encoder", "mask_decoder"])


def wrong_uses(engine, folder):
    """What callers of Lite may get wrong: a name -> the call."""
    context = engine.Context()
    cpu, model = context.cpu, engine.Model()
    path = str(folder / "mindir" / "mask_decoder.mindir")
    (folder / "bad.mindir").write_bytes(b"abc" * 99)
    model.build_from_file(path, engine.ModelType.MINDIR, context)
    tensors = model.get_inputs()
    image = tensors[0]
    kind = engine.ModelType.MINDIR
    return {
        "target is text": lambda: setattr(context, "target", "cpu"),
        "target is unknown": lambda: setattr(context, "target", ["npu"]),
        "threads are text": lambda: setattr(cpu, "thread_num", "2"),
        "threads are negative": lambda: setattr(cpu, "thread_num", -1),
        "predicting before a model": lambda: engine.Model().predict([]),
        "no file": lambda: engine.Model().build_from_file("none.mindir", kind, context),
        "file is no text": lambda: engine.Model().build_from_file(7, kind, context),
        "type is text": lambda: engine.Model().build_from_file(path, "MINDIR", context),
        "no model": lambda: engine.Model().build_from_file(str(folder / "bad.mindir"), kind, context),
        "the other type": lambda: engine.Model().build_from_file(path, engine.ModelType.MINDIR_LITE, context),
        "another dtype": lambda: image.set_data_from_numpy(np.zeros(image.shape)),
        "another size": lambda: image.set_data_from_numpy(np.zeros((1, 2), np.float32)),
        "no array": lambda: image.set_data_from_numpy([0]),
        "too few tensors": lambda: model.predict(tensors[:4]),
        "another order": lambda: model.predict(tensors[::-1]),
        "an array for a tensor": lambda: model.predict([1]),
    }


WRONG = {
    "target is text": "target must be list, but got <class 'str'>.",
    "target is unknown": "target elements must be in ['cpu', 'gpu', 'ascend'], but got npu.",
    "threads are text": "cpu_thread_num must be int, but got <class 'str'>.",
    "threads are negative": "cpu_thread_num must be a non-negative int.",
    "predicting before a model": "predict failed!",
    "no file": "build_from_file failed, model_path does not exist!",
    "file is no text": "model_path must be str, but got <class 'int'>.",
    "type is text": "model_type must be ModelType, but got <class 'str'>.",
    "no model": "build_from_file failed! Error is Common error code.",
    "the other type": "build_from_file failed! Error is Common error code.",
    "another dtype": "data type not equal! Numpy type: <class 'numpy.float64'>, Tensor type: DataType.FLOAT32",
    "another size": "data size not equal! Numpy size: 8, Tensor size: 294912",
    "no array": "numpy_obj must be numpy.ndarray, but got <class 'list'>.",
    "too few tensors": "predict failed!",
    "another order": "predict failed!",
    "an array for a tensor": "inputs element must be Tensor, but got <class 'int'> at index 0.",
}


def test_wrong_uses_get_the_words_of_the_engine(kit, engine):
    calls, found = wrong_uses(engine, kit), {}
    for name, call in calls.items():
        with pytest.raises((TypeError, ValueError, RuntimeError)) as told:
            call()
        found[name] = str(told.value)
    assert found == WRONG


def test_a_decoder_of_free_sizes_converts_and_does_not_run(engine, converted):
    """Why the kit's graphs are taken and not the bundle's."""
    model = engine.Model()
    model.build_from_file(str(converted / "free.mindir"), engine.ModelType.MINDIR, engine.Context())
    tensors = model.get_inputs()
    assert [tensor.shape for tensor in tensors][1:3] == [[-1, -1, 2], [-1, -1]]
    with pytest.raises(RuntimeError, match="predict failed!"):
        model.predict(tensors)
