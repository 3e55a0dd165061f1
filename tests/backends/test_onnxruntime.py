# SPDX-License-Identifier: Apache-2.0
import threading
import time

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from segship.backends.onnxruntime import Session, compile, devices
from segship.backends.session import Graph, RunOptions
from segship.errors import BackendUnavailable, BundleError
from segship.machine import usable_cores
from segship.spec import GraphSpec, TensorSpec, image_encoder_spec, mask_decoder_spec
from tests.small_bundle import GEOMETRY, decoder_model, encoder_model, make_bundle, make_model, save_models

ENCODER, DECODER = image_encoder_spec(GEOMETRY), mask_decoder_spec(GEOMETRY)
X, Y = TensorSpec("x", "float32", ("n", 4)), TensorSpec("y", "float32", ("n", 4))


def run_encoder(graph):
    image = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    with Session(graph, ENCODER) as session:
        return session.run({"image": image})["image_embeddings"]


def test_bytes_path_and_sidecar_give_the_same(tmp_path):
    inline = save_models(tmp_path / "inline")["image_encoder"]
    beside = save_models(tmp_path / "beside", external=True)["image_encoder"]
    answers = [run_encoder(graph) for graph in (inline, str(inline), inline.read_bytes(), beside)]
    assert answers[0].shape == (1, 4, 2, 2)
    assert all(answer.tobytes() == answers[0].tobytes() for answer in answers)


@pytest.mark.parametrize("external", [False, True])
def test_verified_graphs_of_a_bundle_run(tmp_path, external):
    bundle = make_bundle(tmp_path, external=external)
    assert run_encoder(bundle.verified(bundle.manifest.artifact("image_encoder"))).shape == (1, 4, 2, 2)
    Session(
        bundle.verified(bundle.manifest.artifact("mask_decoder")), bundle.manifest.graph_spec("mask_decoder")
    ).close()


def test_bytes_cannot_reach_for_a_sidecar(tmp_path, monkeypatch):
    path = save_models(tmp_path, external=True)["image_encoder"]
    with pytest.raises(BundleError, match="does not load graph 'image_encoder'"):
        Session(path.read_bytes(), ENCODER)


def test_compiling_gives_what_was_checked(tmp_path):
    bundle = make_bundle(tmp_path)
    verified = bundle.verified(bundle.manifest.artifact("image_encoder"))
    path = bundle.path / "image_encoder.onnx"
    assert compile(Graph(path, verify=lambda: verified), ENCODER, RunOptions()) is verified
    assert compile(Graph(path), ENCODER, RunOptions()) == path


def test_description_says_what_runs():
    session = Session(encoder_model().SerializeToString(), ENCODER, RunOptions(threads=2))
    assert session.description == f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider, 2 threads"


def test_all_usable_cores_work_unless_told_otherwise():
    session = Session(encoder_model().SerializeToString(), ENCODER)
    assert session.description.endswith(f", {usable_cores()} threads")


def test_settings_are_those_that_make_runs_repeatable(monkeypatch):
    made = []
    real = onnxruntime.InferenceSession

    def record(source, sess_options, **settings):
        made.append((sess_options, settings))
        return real(source, sess_options=sess_options, **settings)

    monkeypatch.setattr(onnxruntime, "InferenceSession", record)
    Session(encoder_model().SerializeToString(), ENCODER, RunOptions(threads=3))
    ((choices, settings),) = made
    assert (choices.intra_op_num_threads, choices.inter_op_num_threads) == (3, 1)
    assert choices.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert choices.log_severity_level == 3
    assert choices.use_deterministic_compute
    assert settings == {"providers": [("CPUExecutionProvider", {})], "enable_fallback": 0}


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(threads):
    with pytest.raises(BackendUnavailable, match=f"threads is {threads}; it must be 1 or more"):
        Session(b"", ENCODER, RunOptions(threads=threads))


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:-1", "tpu", ""])
def test_unknown_device_lists_the_accepted(device):
    with pytest.raises(
        BackendUnavailable, match="is unknown to the onnxruntime backend; accepted are cpu, cuda"
    ) as caught:
        Session(b"", ENCODER, RunOptions(device=device))
    assert caught.value.code == "unknown_device"


def test_absent_provider_lists_the_present_and_the_command(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    words = (
        "has no CUDAExecutionProvider; available here are CPUExecutionProvider; .* run: pip uninstall -y onnxruntime"
    )
    with pytest.raises(BackendUnavailable, match=words) as caught:
        Session(b"", ENCODER, RunOptions(device="cuda"))
    assert caught.value.code == "device_unavailable"


def test_provider_that_falls_back_is_an_error(monkeypatch):
    # What ONNX Runtime does when CUDA libraries are missing: a warning, and the CPU instead.
    real = onnxruntime.InferenceSession

    def fall_back(source, sess_options, providers, **settings):
        ((name, options),) = providers
        assert (name, options["device_id"], options["use_tf32"]) == ("CUDAExecutionProvider", "1", "0")
        return real(source, sess_options=sess_options, providers=["CPUExecutionProvider"], **settings)

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(
        BackendUnavailable, match=r"could not start CUDAExecutionProvider and uses \['CPUExecutionProvider'\]"
    ):
        Session(encoder_model().SerializeToString(), ENCODER, RunOptions(device="cuda:1"))


@pytest.mark.parametrize(("device", "number"), [("npu", "0"), ("npu:3", "3")])
def test_cann_that_does_not_start_is_an_error(monkeypatch, device, number):
    # What onnxruntime-cann 1.24.4 does without CANN: it lists the provider, fails to make it, and takes the CPU.
    real, asked = onnxruntime.InferenceSession, []

    def take_the_cpu(source, sess_options, providers, **settings):
        asked.append(providers)
        return real(source, sess_options=sess_options, providers=["CPUExecutionProvider"], **settings)

    def refuse(*_, **__):
        raise RuntimeError("onnxruntime_pybind_state.cc:1189 CreateFactory() create CANN ExecutionProvider fail")

    graph = encoder_model().SerializeToString()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CANNExecutionProvider"])
    assert devices() == {"cpu": "", "npu": ""}
    for made in (take_the_cpu, refuse):
        monkeypatch.setattr(onnxruntime, "InferenceSession", made)
        with pytest.raises(BackendUnavailable, match="could not start CANN.* pip install onnxruntime-cann") as caught:
            Session(graph, ENCODER, RunOptions(device=device))
        assert caught.value.code == "device_unavailable"
    assert asked == [[("CANNExecutionProvider", {"device_id": number, "precision_mode": "must_keep_origin_dtype"})]]


def test_tensorrt_is_asked_with_ranges_and_what_it_leaves_is_told(monkeypatch, tmp_path):
    real, asked = onnxruntime.InferenceSession, []

    class Partly:
        """A session of which TensorRT takes a part."""

        def __init__(self, source, sess_options, providers, **settings):
            asked.append(providers)
            self._real = real(source, sess_options=sess_options, providers=["CPUExecutionProvider"], **settings)

        def get_providers(self):
            return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

        def __getattr__(self, name):
            return getattr(self._real, name)

    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Partly)
    with Session(decoder_model().SerializeToString(), DECODER, RunOptions(device="tensorrt:1")) as session:
        assert session.on_gpu and "TensorrtExecutionProvider, else CUDAExecutionProvider" in session.description
    (name, settings), (other, cuda) = asked[0]
    assert (name, settings["device_id"]) == ("TensorrtExecutionProvider", "1")
    assert (other, cuda["device_id"], cuda["use_tf32"]) == ("CUDAExecutionProvider", "1", "0")
    assert settings["trt_engine_cache_path"] == str(tmp_path / "compiled" / "tensorrt")
    assert "point_labels:1x1," in settings["trt_profile_min_shapes"]
    assert "point_labels:64x32," in settings["trt_profile_max_shapes"]
    monkeypatch.setattr(Partly, "get_providers", lambda self: ["CPUExecutionProvider"])
    with pytest.raises(
        BackendUnavailable, match="could not start TensorrtExecutionProvider.*pip install onnxruntime-gpu"
    ):
        Session(decoder_model().SerializeToString(), DECODER, RunOptions(device="tensorrt"))


@pytest.mark.gpu
def test_cuda_gives_the_answer_of_the_cpu():
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    image = np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)
    graph = encoder_model().SerializeToString()
    with Session(graph, ENCODER, RunOptions(device="cuda")) as cuda, Session(graph, ENCODER) as cpu:
        found, expected = cuda.run({"image": image}), cpu.run({"image": image})
    np.testing.assert_allclose(found["image_embeddings"], expected["image_embeddings"], rtol=1e-4, atol=1e-4)


def test_other_precision_is_refused():
    with pytest.raises(BackendUnavailable, match="computes in the precision of the graph") as caught:
        Session(b"", ENCODER, RunOptions(precision="bf16"))
    assert caught.value.code == "precision_unavailable"


def cyclic_model():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]
    return make_model([*nodes, helper.make_node("Relu", ["b"], ["y"])], [X], [Y])


def duplicate_model():
    return make_model([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["y"])], [X], [Y])


def unknown_operator_model():
    return make_model([helper.make_node("NoSuchOperator", ["x"], ["y"])], [X], [Y])


@pytest.mark.parametrize(
    "model", [cyclic_model(), duplicate_model(), unknown_operator_model()], ids=["cycle", "twice", "unknown"]
)
def test_graph_that_makes_no_sense_is_refused_in_one_line(model):
    with pytest.raises(BundleError, match="does not load graph 'g'") as caught:
        Session(model.SerializeToString(), GraphSpec("g", (X,), (Y,)))
    assert caught.value.code == "graph_rejected"
    assert "\n" not in str(caught.value)


def test_graph_of_another_contract_is_refused():
    with pytest.raises(BundleError, match="does not keep the contract 'mask_decoder': its inputs are"):
        Session(encoder_model().SerializeToString(), mask_decoder_spec(GEOMETRY))


def test_failure_while_running_is_explained():
    # The contract allows any number of points; this graph adds 3 of them to 4.
    model = make_model([helper.make_node("Add", ["x", "w"], ["y"])], [TensorSpec("x", "float32", ("n",))],
                       [TensorSpec("y", "float32", ("m",))], {"w": np.ones(4, np.float32)})  # fmt: skip
    spec = GraphSpec("g", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("m",)),))
    session = Session(model.SerializeToString(), spec)
    with pytest.raises(BackendUnavailable, match="graph 'g' failed in onnxruntime") as caught:
        session.run({"x": np.ones(3, np.float32)})
    assert caught.value.code == "run_failed"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "int8", "bool"])
def test_dtypes_are_numpys(dtype):
    tensors = (TensorSpec("x", dtype, ("n",)),), (TensorSpec("y", dtype, ("n",)),)
    model = make_model([helper.make_node("Identity", ["x"], ["y"])], *tensors)
    with Session(model.SerializeToString(), GraphSpec("g", *tensors)) as session:
        assert session.run({"x": np.ones(3, dtype)})["y"].dtype == dtype


def test_unnamed_axes_are_accepted():
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], [X], [Y])
    model.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    Session(model.SerializeToString(), GraphSpec("g", (X,), (Y,))).close()


def test_nothing_is_printed(capfd):
    run_encoder(encoder_model().SerializeToString())
    with pytest.raises(BundleError):
        Session(b"no graph", ENCODER)
    assert capfd.readouterr() == ("", "")


def slow_graph():
    """Forty products of matrices: about a second on two cores."""
    wide = TensorSpec("x", "float32", (1536, 1536))
    nodes = [helper.make_node("MatMul", [f"t{index}" if index else "x", "x"], [f"t{index + 1}"]) for index in range(40)]
    nodes[-1].output[0] = "y"
    values = [helper.make_tensor_value_info(name, 1, [1536, 1536]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "slow", values[:1], values[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 9
    return Session(model.SerializeToString(), GraphSpec("slow", (wide,), (TensorSpec("y", "float32", (1536, 1536)),)))


def test_a_run_is_stopped_by_its_thread_and_others_go_on():
    zeros = {"x": np.zeros((1536, 1536), np.float32)}
    found = {}

    def run(name):
        try:
            found[name] = session.run(zeros)["y"].sum()
        except BackendUnavailable as error:
            found[name] = error.code

    with slow_graph() as session:
        session.stop(threading.get_ident())
        threads = {name: threading.Thread(target=run, args=(name,)) for name in ("stopped", "other")}
        for thread in threads.values():
            thread.start()
        time.sleep(0.1)
        began = time.monotonic()
        session.stop(threads["stopped"].ident)
        threads["stopped"].join()
        assert time.monotonic() - began < 1
        threads["other"].join()
        run("again")
    assert found == {"stopped": "stopped", "other": 0.0, "again": 0.0}
