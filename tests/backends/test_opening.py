# SPDX-License-Identifier: Apache-2.0
"""Every graph of a bundle becomes a session, of verified bytes, in the backend that was chosen."""

import pytest

from segship.backends import BACKENDS, backends_of
from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions
from segship.errors import BackendUnavailable, BundleError
from tests.small_bundle import decoder_inputs, make_bundle


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("backend", backends_of())
def test_every_graph_is_a_session(tmp_path, backend, external):
    pytest.importorskip(BACKENDS[backend].packages[0])
    bundle = make_bundle(tmp_path, external=external)
    sessions = open_sessions(bundle, RunOptions(backend=backend, threads=1))
    assert list(sessions) == [spec.name for spec in bundle.manifest.graphs]
    assert all(backend in session.description for session in sessions.values())
    assert sessions["mask_decoder"].run(decoder_inputs())["iou_predictions"].shape == (2, 4)


@pytest.mark.parametrize("backend", backends_of())
def test_changed_graph_is_refused_even_where_a_compiled_one_exists(tmp_path, backend):
    pytest.importorskip(BACKENDS[backend].packages[0])
    bundle = make_bundle(tmp_path)
    open_sessions(bundle, RunOptions(backend=backend, threads=1))
    graph = bundle.path / "mask_decoder.onnx"
    data = bytearray(graph.read_bytes())
    data[-20] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match=r"mask_decoder\.onnx .* SHA-256 differs"):
        open_sessions(bundle, RunOptions(backend=backend, threads=1))


def test_torch_runs_no_bundles(tmp_path):
    with pytest.raises(BackendUnavailable, match="the torch backend runs checkpoints") as caught:
        open_sessions(make_bundle(tmp_path), RunOptions(backend="torch"))
    assert caught.value.code == "not_a_checkpoint"


def test_unknown_backend_lists_the_known(tmp_path):
    with pytest.raises(BackendUnavailable, match=f"known are {', '.join(sorted(BACKENDS))}"):
        open_sessions(make_bundle(tmp_path), RunOptions(backend="tpu"))
