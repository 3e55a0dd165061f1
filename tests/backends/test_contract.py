# SPDX-License-Identifier: Apache-2.0
"""What every backend promises, tried on every backend."""

import threading

import numpy as np
import pytest
import torch

from segship.backends import BACKENDS, Backend, fake, installed_version, load_backend
from segship.backends.opening import try_devices
from segship.backends.session import Graph, RunOptions, Session
from segship.errors import BackendUnavailable, InputError
from segship.spec import mask_decoder_spec
from tests.small_bundle import GEOMETRY, decoder_inputs, decoder_model

SPEC = mask_decoder_spec(GEOMETRY)


def expected_outputs(inputs):
    """Compute what the decoder of the small bundle computes."""
    four = np.arange(1, 5, dtype=np.float32)
    # Rounded once, from the exact mean: the order of memory cannot show.
    mean = np.float32(inputs["image_embeddings"].mean(dtype=np.float64).round(5))
    shifted = inputs["mask_input"] + mean
    return {
        "iou_predictions": inputs["point_labels"].sum(axis=1, keepdims=True) * four,
        "low_res_masks": shifted * four[:, None, None],
    }


class Expected(torch.nn.Module):
    """The decoder as a module, for runtimes that take those."""

    def forward(self, *arrays):
        named = dict(zip([tensor.name for tensor in SPEC.inputs], arrays, strict=True))
        outputs = expected_outputs({name: tensor.numpy() for name, tensor in named.items()})
        return tuple(torch.from_numpy(outputs[tensor.name]) for tensor in SPEC.outputs)


def expected_arrays(*arrays):
    """The same for runtimes that take functions of arrays."""
    outputs = expected_outputs(dict(zip([tensor.name for tensor in SPEC.inputs], arrays, strict=True)))
    return [outputs[tensor.name] for tensor in SPEC.outputs]


def module_of(name):
    pytest.importorskip(BACKENDS[name].packages[0])
    return load_backend(name)


def open_decoder(name, run=RunOptions(threads=2)):  # noqa: B008
    if name == "fake":
        return fake.Session(SPEC, expected_outputs)
    module = module_of(name)
    graphs = {"torch": Expected(), "mindspore": expected_arrays}
    graph = graphs[name] if BACKENDS[name].checkpoints else Graph(decoder_model().SerializeToString())
    return module.Session(module.compile(graph, SPEC, run), SPEC, run)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=[*BACKENDS, "fake"])
def session(request):
    with open_decoder(request.param) as opened:
        yield opened


@pytest.fixture(params=BACKENDS)
def name(request):
    module_of(request.param)
    return request.param


def test_version_is_that_of_the_installed_package(name):
    assert module_of(name).version() == installed_version(name)


def test_devices_are_tried_with_the_smallest_graph(name):
    module = module_of(name)
    assert try_devices(module)["cpu"] is None
    assert all(isinstance(words, str) for words in module.devices().values())


def test_precisions_begin_with_the_exact_one_and_each_can_be_had(name):
    found = module_of(name).precisions()
    assert found[0] == "fp32" and len(set(found)) == len(found)
    for precision in found:
        open_decoder(name, RunOptions(threads=1, precision=precision)).close()


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"device": "abacus"}, "unknown_device"),
        ({"precision": "int3"}, "precision_unavailable"),
        ({"threads": 0}, "bad_threads"),
        ({"streams": 0}, "bad_streams"),
        ({"compile": True}, "compile_unavailable"),
    ],
)
def test_what_cannot_be_had_is_refused(name, asked, code):
    with pytest.raises(BackendUnavailable) as caught:
        open_decoder(name, RunOptions(**asked))
    assert caught.value.code == code


def test_streams_are_what_the_row_says(name):
    run = RunOptions(threads=2, streams=2)
    if BACKENDS[name].streams:
        assert "2 streams" in open_decoder(name, run).description
        return
    with pytest.raises(BackendUnavailable, match=f"the {name} backend has none: .* use the backend openvino") as caught:
        open_decoder(name, run)
    assert caught.value.code == "streams_unavailable"


def refused(session, inputs, words):
    with pytest.raises(InputError, match=words) as caught:
        session.run(inputs)
    assert caught.value.code == "bad_tensor"


def test_session_is_of_the_common_kind(session):
    assert isinstance(session, Session)
    assert session.spec == SPEC
    assert session.description and session.on_gpu is False


@pytest.mark.parametrize(("objects", "points"), [(1, 1), (2, 3), (5, 9)])
def test_outputs_are_named_typed_and_right(session, objects, points):
    inputs = decoder_inputs(objects, points)
    outputs = session.run(inputs)
    assert list(outputs) == ["iou_predictions", "low_res_masks"]
    for name, expected in expected_outputs(inputs).items():
        assert outputs[name].dtype == np.float32
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-4)


def test_inputs_are_not_changed_and_their_memory_order_does_not_matter(session):
    inputs = decoder_inputs()
    copies = {name: array.copy() for name, array in inputs.items()}
    plain = session.run(inputs)
    backwards = session.run({name: np.asfortranarray(inputs[name]) for name in reversed(inputs)})
    for name in plain:
        np.testing.assert_array_equal(plain[name], backwards[name])
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, copies[name])


def test_same_call_gives_the_same_bytes(session):
    first = session.run(decoder_inputs())
    session.run(decoder_inputs(objects=4, seed=7))
    again = session.run(decoder_inputs())
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)


def test_threads_share_a_session(session):
    alone = [session.run(decoder_inputs(seed=seed)) for seed in range(8)]
    together = [None] * 8

    def work(seed):
        together[seed] = session.run(decoder_inputs(seed=seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for expected, found in zip(alone, together, strict=True):
        assert all(expected[name].tobytes() == found[name].tobytes() for name in expected)


def test_names_must_be_those_of_the_contract(session):
    inputs = decoder_inputs()
    labels = inputs.pop("point_labels")
    refused(session, inputs, r"graph 'mask_decoder': missing: \['point_labels'\]; unknown: none")
    refused(session, {**inputs, "point_label": labels}, r"unknown: \['point_label'\]; it takes \['has_mask_input'")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"point_labels": np.ones((2, 3), np.int64)}, "point_labels has dtype int64; expected float32, cast it first"),
        ({"point_labels": np.ones(3, np.float32)}, r"point_labels has shape \(3,\); expected \(objects, points\)"),
        ({"point_labels": [[1.0]]}, "point_labels is a list, not a numpy array"),
        ({"point_coords": np.ones((2, 3, 3), np.float32)}, r"shape \(2, 3, 3\); expected \(objects, points, 2\)"),
        ({"point_labels": np.ones((2, 4), np.float32)}, "axis 'points' is 3 in point_coords and 4 in point_labels"),
        ({"has_mask_input": np.ones(1, np.float32)}, "axis 'objects' is 2 in point_coords and 1 in has_mask_input"),
        ({"image_embeddings": np.ones((2, 4, 2, 2), np.float32)}, r"shape \(2, 4, 2, 2\); expected \(1, 4, 2, 2\)"),
    ],
)
def test_arrays_must_fit_the_contract(session, change, words):
    refused(session, {**decoder_inputs(), **change}, words)


def test_dynamic_axes_need_at_least_one(session):
    refused(session, decoder_inputs(objects=0), "axis 'objects' needs at least 1")


def test_closed_session_says_so(session):
    session.close()
    session.close()
    with pytest.raises(BackendUnavailable, match="the session is closed") as caught:
        session.run(decoder_inputs())
    assert caught.value.code == "session_closed"


def test_fake_holds_its_own_answer_against_the_contract():
    session = fake.Session(SPEC, lambda inputs: {"iou_predictions": np.ones((2, 4), np.float32)})
    with pytest.raises(InputError, match=r"missing: \['low_res_masks'\]"):
        session.run(decoder_inputs())


def test_unknown_backend_lists_the_known():
    with pytest.raises(
        BackendUnavailable, match=f"backend 'tpu' is unknown; known are {', '.join(sorted(BACKENDS))}"
    ) as caught:
        load_backend("tpu")
    assert caught.value.code == "unknown_backend"


def row(module):
    return Backend(module, packages=("planted",), distributions=("planted",), extra="segship[planted]")


def plant(monkeypatch, tmp_path, source):
    (tmp_path / "planted_backend.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, "planted", row("planted_backend"))


def test_missing_package_names_the_extra(monkeypatch, tmp_path):
    plant(monkeypatch, tmp_path, "import no_such_runtime_anywhere")
    words = r"needs the package 'no_such_runtime_anywhere', .* run: pip install \"segship\[planted\]\""
    with pytest.raises(BackendUnavailable, match=words) as caught:
        load_backend("planted")
    assert caught.value.code == "backend_missing"


def test_broken_package_is_told_from_a_missing_one(monkeypatch, tmp_path):
    plant(monkeypatch, tmp_path, "raise ImportError('libfoo.so.3: cannot open shared object file')")
    with pytest.raises(BackendUnavailable, match=r"cannot be imported \(libfoo.so.3.*--force-reinstall") as caught:
        load_backend("planted")
    assert caught.value.code == "backend_broken"


def test_our_own_missing_module_is_our_own_mistake(monkeypatch):
    monkeypatch.setitem(BACKENDS, "planted", row("segship.backends.planted"))
    with pytest.raises(ModuleNotFoundError):
        load_backend("planted")
