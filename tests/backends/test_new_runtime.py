# SPDX-License-Identifier: Apache-2.0
"""A new runtime is one file and one row: with them it is chosen, loaded, segments, and is seen by doctor and tune."""

import sys

import numpy as np
import pytest

import segship
from segship import doctor
from segship.backends import BACKENDS, Backend, installed_version
from segship.backends.choice import choose_backend, processor_name
from segship.backends.session import RunOptions
from segship.bench.benchmark import benchmark
from segship.bench.options import BenchmarkOptions
from segship.errors import BackendUnavailable
from segship.tune import candidates
from tests.backends.test_choice import check

# It computes by ONNX Runtime, under its own verbs.
TOY = """
import toy_engine
from segship.backends.session import IDENTITY, Session as BaseSession, refuse_options, thread_count
from segship.backends.onnxruntime import Session as Engine
from segship.errors import BackendUnavailable

PROBE = IDENTITY

def version():
    return toy_engine.VERSION

def devices():
    return {"cpu": "", "abacus": "of wood"}

def precisions():
    return ("fp32", "bf16")

def compile(graph, spec, run):
    if run.device not in ("cpu", "abacus"):
        raise BackendUnavailable(f"device {run.device!r} is unknown", code="unknown_device")
    if run.device == "abacus":
        raise BackendUnavailable("the abacus has lost a bead", code="device_unavailable")
    refuse_options(run, "toy")
    return Engine(graph.read(), spec)

class Session(BaseSession):
    def __init__(self, compiled, spec, run):
        self.spec, self._engine = spec, compiled
        self.description = f"toy {version()}, {thread_count(run)} threads"

    def run(self, inputs):
        return self._engine.run(inputs)
"""


@pytest.fixture
def toy(monkeypatch, tmp_path):
    (tmp_path / "toy_engine.py").write_text("VERSION = '1.5'")
    (tmp_path / "toy_backend.py").write_text(TOY)
    (tmp_path / "toyengine-1.5.dist-info").mkdir()
    (tmp_path / "toyengine-1.5.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: toyengine\nVersion: 1.5\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row = Backend("toy_backend", packages=("toy_engine",), distributions=("toyengine",), extra="toyengine")
    monkeypatch.setitem(BACKENDS, "toy", row)
    yield "toy"
    for name in ("toy_engine", "toy_backend"):
        sys.modules.pop(name, None)


def test_a_named_toy_loads_and_gives_the_masks_of_the_default(toy):
    image, point = segship.demo_photograph(), [[365, 290]]
    with segship.load("tiny", backend=toy, threads=1) as predictor:
        found = predictor.predict(image, points=point)
    assert (predictor.backend, predictor.description) == ("toy", "toy 1.5, 1 threads")
    expected = segship.load("tiny", backend="onnxruntime").predict(image, points=point)
    np.testing.assert_array_equal(found.masks, expected.masks)


def test_auto_takes_the_toy_where_it_was_measured_fastest(toy):
    slow, fast = (
        check(name, milliseconds, cpu=processor_name(), version=installed_version(name))
        for name, milliseconds in (("onnxruntime", 300), (toy, 100))
    )
    assert choose_backend([slow, fast]).backend == toy
    # It has no streams.
    assert choose_backend([slow, fast], RunOptions(streams=2)).backend == "openvino"


def test_what_the_toy_refuses_is_what_the_user_reads(toy):
    with pytest.raises(BackendUnavailable, match="the abacus has lost a bead"):
        segship.load("tiny", backend=toy, device="abacus")
    with pytest.raises(BackendUnavailable, match="the toy backend has none"):
        segship.load("tiny", backend=toy, streams=2)


def test_doctor_tries_the_devices_of_the_toy(toy):
    status = doctor._backend(toy)
    assert (status.available, status.version, status.devices) == (True, "1.5", ("cpu",))
    assert status.precisions == ("fp32", "bf16") and status.providers == ()
    assert status.problem == "abacus does not start: the abacus has lost a bead"


def test_tune_and_bench_take_the_toy(toy):
    assert installed_version(toy) == "1.5"
    assert {(toy, "fp32"), (toy, "bf16")} <= set(candidates())
    options = BenchmarkOptions(
        run=RunOptions(backend=toy), threads=(1,), stages=("graph",), objects=(1,), warm_up=0, repeats=1, fresh=False
    )
    report = benchmark("tiny", options)
    assert (report.backend, report.versions[toy]) == (toy, "1.5") and report.rows
