# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backend over doubles of TensorRT and CUDA, since no GPU is here."""

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
from onnx import TensorProto, helper

import segship.backends
from segship.backends import fake, load_backend
from segship.backends.profiles import PROFILES, profiles_of, shapes_of
from segship.backends.session import Graph, RunOptions
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.spec import GraphSpec, TensorSpec, mask_decoder_spec, semantic_spec
from tests.backends import tensorrt_double
from tests.backends.test_contract import expected_outputs
from tests.small_bundle import GEOMETRY, decoder_inputs, decoder_model

SPEC = mask_decoder_spec(GEOMETRY)
RUN = RunOptions(backend="tensorrt", device="cuda")


@pytest.fixture
def cuda():
    return tensorrt_double.Cuda()


@pytest.fixture
def tensorrt(monkeypatch, cuda, tmp_path):
    """The backend on doubles, with a cache of its own."""
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_double)
    for name, module in (("cuda", ModuleType("cuda")), ("cuda.bindings", ModuleType("cuda.bindings"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setattr(segship.backends, "is_installed", lambda package: package == "tensorrt")
    monkeypatch.delitem(sys.modules, "segship.backends.tensorrt", raising=False)
    yield load_backend("tensorrt")
    sys.modules.pop("segship.backends.tensorrt", None)
    importlib.invalidate_caches()


def opened(tensorrt, spec=SPEC, model=None, run=RUN):
    graph = Graph((model or decoder_model()).SerializeToString())
    return tensorrt.Session(tensorrt.compile(graph, spec, run), spec, run)


@pytest.mark.parametrize("sizes", [[(1, 1)], [(8, 32)], [(64, 2), (3, 5), (64, 1), (1, 1)]])
def test_calls_of_any_planned_size_are_answered(tensorrt, sizes):
    with opened(tensorrt) as session, fake.Session(SPEC, expected_outputs) as known:
        for objects, points in sizes:
            inputs = decoder_inputs(objects, points, seed=objects)
            found, expected = session.run(inputs), known.run(inputs)
            for name, array in expected.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)
                assert found[name].dtype == array.dtype
        assert session.on_gpu and session.description == "tensorrt 10.double on Double"


def test_a_call_that_no_range_holds_says_the_ranges(tensorrt):
    with opened(tensorrt) as session:
        with pytest.raises(
            BackendUnavailable, match="objects 1 to 8, points 1 to 32 or .* 9 objects, 3 points"
        ) as told:
            session.run(decoder_inputs(9, 3))
        assert told.value.code == "no_profile"
        with pytest.raises(InputError, match="point_labels"):
            session.run({**decoder_inputs(1, 1), "point_labels": np.zeros((1, 2), np.float32)})


def test_memory_and_streams_are_given_back(tensorrt, cuda):
    session = opened(tensorrt)
    session.run(decoder_inputs(2, 3))
    held = set(cuda.memory)
    session.run(decoder_inputs(1, 1))
    assert set(cuda.memory) == held
    session.close()
    session.close()
    assert not cuda.memory and not cuda.streams
    with pytest.raises(BackendUnavailable, match="closed"):
        session.run(decoder_inputs(1, 1))


def test_a_plan_is_built_once_and_one_that_does_not_load_is_forgotten(tensorrt, monkeypatch):
    opened(tensorrt).close()
    monkeypatch.setattr(tensorrt, "build_plan", lambda *_: pytest.fail("built again"))
    graph = Graph(decoder_model().SerializeToString())
    compiled = tensorrt.compile(graph, SPEC, RUN)
    with pytest.raises(BackendUnavailable, match="does not load here: the engine plan file is not compatible"):
        tensorrt.Session(compiled._replace(plan=b"old"), SPEC, RUN)
    monkeypatch.undo()
    assert tensorrt.find_compiled(compiled.name) is None


def test_a_node_that_the_parser_refuses_is_named(tensorrt):
    value = helper.make_tensor_value_info
    node = helper.make_node("NonZero", ["image"], ["kept"], name="/select/NonZero")
    graph = helper.make_graph([node], "g", [value("image", TensorProto.FLOAT, [4])], [value("kept", 7, [1, None])])
    spec = GraphSpec("picks", (TensorSpec("image", "float32", (4,)),), (TensorSpec("kept", "int64", (1, "kept")),))
    with pytest.raises(BundleError, match="'picks': node '/select/NonZero' \\(NonZero\\)") as told:
        tensorrt.build_plan(helper.make_model(graph).SerializeToString(), spec, ({},))
    assert told.value.code == "graph_rejected"


def test_other_devices_precisions_and_missing_gpus_are_refused(tensorrt, cuda):
    for run, code in (
        (RunOptions(device="cpu"), "unknown_device"),
        (RunOptions(device="cuda:x"), "unknown_device"),
        (RunOptions(device="cuda:1"), "device_unavailable"),
        (RunOptions(device="cuda", precision="bf16"), "precision_unavailable"),
        (RunOptions(device="cuda", streams=2), "streams_unavailable"),
    ):
        with pytest.raises(BackendUnavailable) as told:
            opened(tensorrt, run=run)
        assert told.value.code == code
    cuda.gpus = 0
    assert tensorrt.devices() == {}
    with pytest.raises(BackendUnavailable, match="CUDA lists no GPU"):
        opened(tensorrt)


def test_ranges_hold_every_axis_once():
    assert [profile["objects"] for profile in profiles_of(SPEC)] == [(1, 1, 8), (1, 64, 64)]
    shapes = shapes_of(SPEC, profiles_of(SPEC)[0])
    assert shapes["point_coords"] == [(1, 1, 2), (1, 2, 2), (8, 32, 2)] and shapes["has_mask_input"][2] == (8,)
    assert all(
        1 <= least <= usual <= most for kept in PROFILES.values() for one in kept for least, usual, most in one.values()
    )
    with pytest.raises(BundleError, match="leaves height, width open") as told:
        profiles_of(semantic_spec(19, "class_map"))
    assert told.value.code == "no_profile"
    assert profiles_of(semantic_spec(19, "class_map", (64, 128))) == ({"batch": (1, 1, 4)},)
    for wrong in ((0, 1, 2), (3, 2, 4), (1, 2, 1)):
        with pytest.raises(BundleError, match="rising") as told:
            profiles_of(SPEC, ({"objects": wrong, "points": (1, 1, 1)},))
        assert told.value.code == "bad_profile"
