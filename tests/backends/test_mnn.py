# SPDX-License-Identifier: Apache-2.0
"""MNN: converted once, quiet, and never more than what it was compared for."""

import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import segship
from segship.backends import BACKENDS, onnxruntime
from segship.backends.opening import open_graph, open_sessions
from segship.backends.session import Graph, RunOptions
from segship.bundle import Bundle
from segship.catalog import find_model
from segship.errors import BackendUnavailable, BundleError
from segship.spec import GraphSpec, TensorSpec, image_encoder_spec, mask_decoder_spec
from segship.tune import TuneOptions, candidates, measure
from tests.small_bundle import GEOMETRY, decoder_inputs, decoder_model, encoder_model, make_bundle

pytest.importorskip("MNN")
from segship.backends import mnn

SPEC = mask_decoder_spec(GEOMETRY)
ONE = RunOptions(backend="mnn", threads=1)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


@pytest.fixture
def no_converter(monkeypatch):
    """Make every further conversion fail."""

    def converted(*_, **__):
        raise AssertionError("converted again")

    return lambda: monkeypatch.setattr(mnn, "convert_graph", converted)


def graph():
    return Graph(decoder_model().SerializeToString())


def test_a_graph_is_converted_once_for_each_version(cache, no_converter, monkeypatch):
    mnn.compile(graph(), SPEC, ONE)
    (kept,) = cache.iterdir()
    assert "-mnn-fp32-" in kept.name
    no_converter()
    with mnn.Session(mnn.compile(graph(), SPEC, ONE), SPEC, ONE) as session:
        assert session.run(decoder_inputs())["low_res_masks"].shape == (2, 4, 8, 8)
    monkeypatch.setattr(mnn, "version", lambda: "9.9")
    with pytest.raises(AssertionError, match="converted again"):
        mnn.compile(graph(), SPEC, ONE)


def test_a_damaged_file_of_the_cache_is_made_anew(cache):
    mnn.compile(graph(), SPEC, ONE)
    (kept,) = cache.iterdir()
    kept.write_bytes(bytes(kept.stat().st_size))
    with mnn.Session(mnn.compile(graph(), SPEC, ONE), SPEC, ONE) as session:
        assert session.run(decoder_inputs())["iou_predictions"].shape == (2, 4)
    (anew,) = cache.iterdir()
    assert any(anew.read_bytes())


def test_without_a_cache_a_graph_is_converted_all_the_same(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "file"))
    with mnn.Session(mnn.compile(graph(), SPEC, ONE), SPEC, ONE) as session:
        assert session.run(decoder_inputs())["iou_predictions"].shape == (2, 4)


def test_a_converter_that_says_true_without_a_file_is_not_believed(tmp_path):
    with pytest.raises(
        BundleError, match="MNN .* graph 'toy': its converter wrote no file and ended with: ."
    ) as caught:
        mnn.convert_graph(b"no graph" * 20, tmp_path / "made.mnn", "toy")
    assert caught.value.code == "graph_rejected"


def test_a_converter_of_another_package_is_not_called(tmp_path, monkeypatch):
    (tmp_path / "_tools.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BundleError, match=r"_tools.py is not the converter of MNN"):
        mnn.convert_graph(graph().source, tmp_path / "made.mnn", "toy")


def test_gelu_is_not_approximated():
    assert mnn.EXACT_FLAGS == ("--useGeluApproximation", "0")


def test_other_types_than_float32_are_refused():
    spec = GraphSpec("ids", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "int64", ("n",)),))
    with pytest.raises(BundleError, match="it runs graphs of float32 tensors alone"):
        mnn.compile(graph(), spec, ONE)


def test_a_graph_of_another_contract_is_refused():
    compiled = mnn.compile(graph(), SPEC, ONE)
    with pytest.raises(BundleError, match=r"takes \['image_embeddings', .* expected \['image'\] and") as caught:
        mnn.Session(compiled, image_encoder_spec(GEOMETRY), ONE)
    assert caught.value.code == "graph_interface"


def test_a_precision_of_artifacts_is_refused():
    with pytest.raises(BackendUnavailable, match="the mnn backend runs float32 graphs alone; ask for fp32") as caught:
        mnn.beside("int8")
    assert caught.value.code == "precision_unavailable"


def test_objects_may_come_and_go():
    reference = onnxruntime.Session(graph().source, SPEC, ONE)
    with mnn.Session(mnn.compile(graph(), SPEC, ONE), SPEC, ONE) as session:
        for objects, points in [(1, 1), (8, 1), (1, 1), (8, 3), (2, 7), (64, 2), (1, 2)]:
            inputs = decoder_inputs(objects, points, seed=objects)
            expected, found = reference.run(inputs), session.run(inputs)
            for name in expected:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_other_threads_run_while_it_computes():
    bundle = Bundle.open(find_model("tiny"))
    session = open_graph(bundle, bundle.manifest.graph_spec("image_encoder"), ONE)
    image = np.zeros([1, *session.spec.inputs[0].shape[1:]], np.float32)
    worker = threading.Thread(target=session.run, args=({"image": image},))
    worker.start()
    ticks = 0
    while worker.is_alive():
        time.sleep(1e-3)
        ticks += 1
    assert ticks >= 10


def test_a_batch_is_answered_like_its_images():
    spec = image_encoder_spec(GEOMETRY)
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    with mnn.Session(mnn.compile(Graph(encoder_model().SerializeToString()), spec, ONE), spec, ONE) as session:
        together = session.run({"image": images})["image_embeddings"]
        apart = [session.run({"image": image[None]})["image_embeddings"][0] for image in images]
    np.testing.assert_allclose(together, np.stack(apart), rtol=1e-5, atol=1e-5)


def test_what_only_makes_it_faster_elsewhere_is_left_out():
    with segship.load("tiny", backend="mnn", threads=1) as predictor:
        assert predictor.description.startswith(f"mnn {mnn.version()} CPU, fp32, 1 threads")
        found = predictor.predict(segship.demo_photograph(), points=[[365, 290]])
    bundle = Bundle.open(find_model("tiny"))
    assert set(open_sessions(bundle, ONE)) == BACKENDS["mnn"].graphs
    expected = segship.load("tiny", backend="onnxruntime", threads=1).predict(
        segship.demo_photograph(), points=[[365, 290]]
    )
    overlap = np.sum(found.masks & expected.masks) / np.sum(found.masks | expected.masks)
    assert overlap > 0.9995


def test_a_model_that_needs_other_graphs_is_refused_and_no_candidate(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path)
    assert ("mnn", "fp32") in candidates(bundle.manifest)
    monkeypatch.setattr(type(bundle.manifest), "graph_sets", (frozenset({"semantic"}),))
    assert ("mnn", "fp32") not in candidates(bundle.manifest)
    with pytest.raises(BackendUnavailable, match="mnn backend runs no promptable models; use .*onnxruntime") as caught:
        open_sessions(bundle, ONE)
    assert caught.value.code == "graph_unavailable"


@pytest.mark.slow
def test_tiny_keeps_the_bar_of_fp32():
    checks = measure(Bundle.open(find_model("tiny")), TuneOptions(repeats=1), precisions=["fp32"])
    (check,) = [check for check in checks if check.backend == "mnn"]
    assert check.passed, check.problem or [str(row) for row in check.evidence.steps]


def test_a_document_on_standard_output_stays_one(tmp_path):
    arguments = [
        "segment",
        str(segship.demo_photograph()),
        "--point",
        "365,290",
        "--backend",
        "mnn",
        "--json",
        "--out",
        str(tmp_path),
    ]
    command = [sys.executable, "-m", "segship", *arguments]
    photograph = ["-c", "import MNN, sys; sys.exit()"]
    assert b"device supports" in subprocess.run([sys.executable, *photograph], stdout=subprocess.PIPE).stdout
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout)["backend"] == "mnn"


def test_what_installs_packages_and_sends_events_is_never_imported():
    program = (
        "import sys, segship\n"
        "with segship.load('tiny', backend='mnn', threads=1) as predictor:\n"
        "    predictor.predict(segship.demo_photograph(), points=[[365, 290]])\n"
        "print([name for name in sys.modules if name.startswith(('MNN.tools', '_tools'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True)
    assert done.stdout == "[]\n"
    assert "MNN" not in mnn._CONVERT.replace("of MNN", "")
