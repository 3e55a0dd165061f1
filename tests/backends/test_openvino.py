# SPDX-License-Identifier: Apache-2.0
"""What OpenVINO does on its own account and is kept from doing, and its cache of compiled graphs."""

import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from segship.backends.opening import open_session
from segship.backends.session import Graph, RunOptions
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.spec import GraphSpec, TensorSpec, image_encoder_spec, mask_decoder_spec
from tests.small_bundle import GEOMETRY, decoder_inputs, decoder_model, encoder_model, make_model, save_models

openvino = pytest.importorskip("segship.backends.openvino", reason="openvino is an extra", exc_type=ImportError)

ENCODER, DECODER = image_encoder_spec(GEOMETRY), mask_decoder_spec(GEOMETRY)
HAS_BF16 = "bf16" in openvino.precisions()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


@pytest.fixture
def graph(tmp_path):
    return save_models(tmp_path / "graphs")["image_encoder"]


def images(count=1, seed=1):
    return {"image": np.random.default_rng(seed).normal(size=(count, 3, 32, 32)).astype(np.float32)}


def open_encoder(graph, **options):
    return open_session(graph, ENCODER, RunOptions(backend="openvino", threads=2, **options))


def open_graph(model, spec):
    return open_session(model.SerializeToString(), spec, RunOptions(backend="openvino"))


def test_importing_tells_nobody(tmp_path):
    # The sender would leave its files in the home folder, and is what reaches for the network.
    code = (
        "import sys, segship.backends.openvino as backend; import openvino; "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry')], "
        "openvino.tools.ovc.telemetry_utils.tm.__name__)"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout.strip() == "[] openvino.tools.ovc.telemetry_stub"
    assert list(tmp_path.glob("intel*")) == []


def test_program_that_has_telemetry_keeps_it(monkeypatch):
    marker = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", marker)
    assert openvino.import_openvino().__name__ == "openvino"
    assert sys.modules["openvino_telemetry"] is marker


def test_items_of_a_batch_are_what_they_are_alone(graph):
    with open_encoder(graph) as session:
        together = session.run(images(3))["image_embeddings"]
        alone = [session.run({"image": images(3)["image"][[item]]})["image_embeddings"] for item in range(3)]
    assert together.shape == (3, 4, 2, 2)
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_second_session_reads_the_compiled_graph_and_not_the_graph(graph, own_cache):
    first = open_encoder(graph).run(images())["image_embeddings"]
    (blob,) = own_cache.iterdir()
    digest = openvino.graph_digest(graph)
    graph.write_bytes(b"nothing that could be read")
    again = open_encoder(Graph(graph, digest))
    assert again.run(images())["image_embeddings"].tobytes() == first.tobytes()
    assert list(own_cache.iterdir()) == [blob]


def test_other_weights_are_another_compiled_graph(graph, tmp_path, own_cache):
    expected = open_encoder(graph).run(images())["image_embeddings"]
    other = encoder_model()
    other.graph.initializer[0].raw_data = (2 * np.frombuffer(other.graph.initializer[0].raw_data, np.float32)).tobytes()
    doubled = open_encoder(other.SerializeToString()).run(images())["image_embeddings"]
    np.testing.assert_allclose(doubled, 2 * expected, rtol=1e-5)
    assert len(list(own_cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\0" * len(data)])
def test_damaged_compiled_graph_is_compiled_anew(graph, own_cache, damage):
    expected = open_encoder(graph).run(images())["image_embeddings"]
    (blob,) = own_cache.iterdir()
    blob.write_bytes(damage(blob.read_bytes()))
    assert open_encoder(graph).run(images())["image_embeddings"].tobytes() == expected.tobytes()


def test_folder_that_cannot_be_written_costs_only_time(graph, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "file" / "cache"))
    assert open_encoder(graph).run(images())["image_embeddings"].shape == (1, 4, 2, 2)


def test_older_file_of_the_same_graph_goes(graph, own_cache, monkeypatch):
    open_encoder(graph)
    (old,) = own_cache.iterdir()
    monkeypatch.setattr(openvino.openvino, "__version__", "2031.1.0-1-releases")
    open_encoder(graph)
    (new,) = own_cache.iterdir()
    assert new != old and new.name[:32] == old.name[:32]


def test_sidecar_is_part_of_the_graph(tmp_path):
    path = save_models(tmp_path / "beside", external=True)["image_encoder"]
    expected = open_encoder(encoder_model().SerializeToString()).run(images())["image_embeddings"]
    np.testing.assert_array_equal(open_encoder(path).run(images())["image_embeddings"], expected)
    before = openvino.graph_digest(path)
    sidecar = path.with_name("image_encoder.onnx.data")
    sidecar.write_bytes(sidecar.read_bytes()[:-1] + b"\1")
    assert openvino.graph_digest(path) != before


def test_description_says_what_runs(graph):
    version = openvino.version()
    assert open_encoder(graph).description == f"openvino {version} CPU, fp32, 2 threads"
    assert open_encoder(graph, streams=2).description == f"openvino {version} CPU, fp32, 2 threads, 2 streams"


@pytest.mark.skipif(not HAS_BF16, reason="this chip has no bf16")
def test_bf16_is_close_to_fp32_and_not_the_same(graph):
    exact = open_encoder(graph).run(images())["image_embeddings"]
    rough = open_encoder(graph, precision="bf16").run(images())["image_embeddings"]
    assert 0 < np.abs(exact - rough).max() < 0.02 * np.abs(exact).max()


def test_precision_that_the_chip_lacks_is_refused(graph, monkeypatch):
    monkeypatch.setattr(openvino, "precisions", lambda: ("fp32",))
    with pytest.raises(BackendUnavailable, match="'bf16' was asked for and this chip does not have it; it has fp32"):
        open_encoder(graph, precision="bf16")
    with pytest.raises(BackendUnavailable, match="openvino does not know it") as caught:
        open_encoder(graph, precision="int4")
    assert caught.value.code == "precision_unavailable"


def test_precision_that_openvino_changes_silently_is_refused(graph, monkeypatch):
    # What it does: float16 on a chip without it is taken, and becomes something else.
    if "fp16" in openvino.precisions():
        pytest.skip("this chip has fp16")
    monkeypatch.setattr(openvino, "precisions", lambda: tuple(openvino.PRECISIONS))
    with pytest.raises(BackendUnavailable, match="'fp16' was asked for and OpenVINO compiled for"):
        open_encoder(graph, precision="fp16")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"device": "cuda"}, "unknown_device", "device 'cuda' is unknown to the openvino backend; accepted is cpu"),
        ({"streams": 0}, "bad_streams", "streams is 0; it must be 1 or more"),
        ({"streams": 3}, "bad_streams", "3 streams cannot share 2 threads"),
        ({"compile": True}, "compile_unavailable", "compile is an option of the torch backend on CUDA"),
    ],
)
def test_what_cannot_be_had_is_refused(graph, options, code, words):
    with pytest.raises(BackendUnavailable, match=words) as caught:
        open_encoder(graph, **options)
    assert caught.value.code == code


def test_streams_give_the_bytes_of_one():
    run, graph = RunOptions(backend="openvino", threads=2), decoder_model().SerializeToString()
    session, single = open_session(graph, DECODER, replace(run, streams=2)), open_session(graph, DECODER, run)
    found = [None] * 8

    def work(seed):
        found[seed] = session.run(decoder_inputs(seed=seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for seed in range(8):
        expected = single.run(decoder_inputs(seed=seed))
        assert all(expected[name].tobytes() == found[seed][name].tobytes() for name in expected)


def test_arrays_marked_as_read_only_are_taken(graph):
    inputs = images()
    expected = open_encoder(graph).run(inputs)["image_embeddings"]
    inputs["image"].flags.writeable = False
    np.testing.assert_array_equal(open_encoder(graph).run(inputs)["image_embeddings"], expected)


def test_results_outlive_the_next_call_and_the_session(graph):
    session = open_encoder(graph)
    first = session.run(images(seed=1))["image_embeddings"]
    copy = first.copy()
    session.run(images(seed=2))
    session.close()
    np.testing.assert_array_equal(first, copy)


def test_graph_of_another_contract_is_refused():
    with pytest.raises(BundleError, match="does not keep the contract 'mask_decoder': its inputs are"):
        open_graph(encoder_model(), DECODER)


def test_graph_that_makes_no_sense_is_refused_in_one_line(capfd):
    tensors = (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),)
    from onnx import helper

    model = make_model([helper.make_node("NoSuchOperator", ["x"], ["y"])], *tensors)
    with pytest.raises(BundleError, match="OpenVINO .* does not load graph 'g'") as caught:
        open_graph(model, GraphSpec("g", *tensors))
    assert caught.value.code == "graph_rejected" and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_failure_while_running_is_explained():
    from onnx import helper

    model = make_model([helper.make_node("Add", ["x", "w"], ["y"])], [TensorSpec("x", "float32", ("n",))],
                       [TensorSpec("y", "float32", ("m",))], {"w": np.ones(4, np.float32)})  # fmt: skip
    spec = GraphSpec("g", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("m",)),))
    session = open_graph(model, spec)
    with pytest.raises(BackendUnavailable, match="graph 'g' failed in openvino") as caught:
        session.run({"x": np.ones(3, np.float32)})
    assert caught.value.code == "run_failed"
    assert session.run({"x": np.ones(4, np.float32)})["y"].tolist() == [2, 2, 2, 2]


def test_session_for_known_sizes_answers_alike_refuses_others_and_closes_with_its_own(own_cache):
    free = open_graph(decoder_model(), DECODER)
    fixed = free.fixed({"objects": 3, "points": 2})
    assert fixed is free.fixed({"points": 2, "objects": 3}) is not free.fixed({"objects": (1, 3), "points": 2})
    inputs = decoder_inputs(3, 2)
    expected, found = free.run(inputs), fixed.run(inputs)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="point_coords") as caught:
        fixed.run(decoder_inputs(2, 2))
    assert caught.value.code == "bad_tensor"
    # Of each kind the newest file is kept: that for any sizes, and one for known ones.
    assert len(list(own_cache.iterdir())) == 2
    free.close()
    for closed in (lambda: fixed.run(inputs), lambda: free.fixed({"objects": 3})):
        with pytest.raises(BackendUnavailable) as caught:
            closed()
        assert caught.value.code == "session_closed"
