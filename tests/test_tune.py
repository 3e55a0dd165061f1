# SPDX-License-Identifier: Apache-2.0
"""Backends are measured on a bundle of either task, held against a bar, and what was found stands in the manifest."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

import segship
from segship import tune
from segship.backends import installed_version
from segship.backends.choice import choose_backend
from segship.backends.session import RunOptions
from segship.bundle import Bundle
from segship.bundle.manifest import task_module
from segship.errors import BackendUnavailable, InputError, OutputError
from segship.tune import TuneOptions, candidates, measure, tune_bundle

QUICK = TuneOptions(threads=1, repeats=1)
WHAT = {
    "promptable": {"image_embeddings", "all tensors", "low_res_masks", "iou_predictions", "masks"},
    "semantic": {"class_map"},
}
TIMED = {"promptable": {"load", "encode", "decode"}, "semantic": {"load", "segment"}}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Compiled graphs go into a folder of the test."""
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))


def copied(source, tmp_path):
    shutil.copytree(source.path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


@pytest.fixture
def bundle(small_export, tmp_path):
    return copied(small_export[0], tmp_path)


@pytest.fixture
def semantic_bundle(small_semantic_bundle, tmp_path):
    return copied(small_semantic_bundle, tmp_path)


@pytest.fixture(params=["promptable", "semantic"])
def either(request, small_export, small_semantic_bundle, tmp_path):
    return copied(small_export[0] if request.param == "promptable" else small_semantic_bundle, tmp_path)


def only(monkeypatch, *names):
    monkeypatch.setattr(tune, "candidates", lambda: names)


def test_every_installed_backend_is_measured_and_written_down(either):
    told, task = [], either.manifest.task
    renewed = tune_bundle(either.path, QUICK, told.append).manifest
    checks = Bundle.read(either.path).manifest.checks
    assert checks == renewed.checks and [check.backend for check in told] == [check.backend for check in checks]
    assert [(check.backend, check.precision) for check in checks] == list(candidates())
    for check in checks:
        assert check.version == installed_version(check.backend) and check.threads == 1 and check.cpu
        assert {row.what for row in check.evidence.rows} == WHAT[task]
        assert check.timings_ms.keys() == TIMED[task] and check.problem is None
        assert check.evidence.bar == task_module(task).bar(check.precision)
    exact = [check for check in checks if check.precision == "fp32"]
    assert exact and all(check.passed for check in exact)
    # Nothing but the checks is another, and they decide.
    assert replace(renewed, checks=()) == replace(either.manifest, checks=())
    with segship.load(either.path) as predictor:
        assert predictor.precision == "fp32" and f"for {checks[0].timed}" in predictor.backend_reason


def test_a_second_round_keeps_the_fastest_time(bundle, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    rounds = iter([{"encode": 3.0, "decode": 5.0}, {"encode": 4.0, "decode": 2.0}])
    monkeypatch.setattr(tune, "_time", lambda *_: next(rounds))
    (check,) = measure(bundle, QUICK)
    assert (check.timings_ms["encode"], check.timings_ms["decode"], check.milliseconds) == (3.0, 2.0, 5.0)


def test_copy_leaves_the_bundle_as_it_was(bundle, tmp_path, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    digest = bundle.digest
    copy = tune_bundle(bundle.path, QUICK, out=tmp_path / "copy")
    assert Bundle.read(bundle.path).digest == digest
    assert Bundle.read(copy.path).manifest.checks and copy.path == tmp_path / "copy"


def test_copy_to_a_place_that_is_taken_is_refused_before_anything_is_measured(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "measure", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken exists"):
        tune_bundle(bundle.path, QUICK, out=tmp_path / "taken")


def test_bundle_inside_the_package_is_not_changed():
    with pytest.raises(InputError, match="inside the package, .* write a copy: out=FOLDER") as caught:
        tune_bundle("tiny", QUICK)
    assert caught.value.code == "bundle_in_package"


def answering(monkeypatch, graph, spoil):
    """Let the backend ``other`` answer as ONNX Runtime does, but for one graph, whose answers are spoiled."""
    real = tune.open_sessions

    def opened(bundle, options):
        sessions = real(bundle, replace(options, backend="onnxruntime", precision="fp32"))
        if options.backend == "other":
            run = sessions[graph].run
            sessions[graph].run = lambda inputs: spoil(run(inputs))
        return sessions

    monkeypatch.setattr(tune, "open_sessions", opened)


def test_backend_that_gives_other_masks_does_not_pass(bundle, monkeypatch):
    answering(monkeypatch, "mask_decoder", lambda found: {**found, "low_res_masks": -found["low_res_masks"]})
    only(monkeypatch, ("other", "fp32"))
    (check,) = measure(bundle, QUICK)
    assert not check.passed
    assert [(row.graph, row.what) for row in check.evidence.rows if not row.passed] == [
        ("mask_decoder", "low_res_masks"), ("image_encoder, mask_decoder, selective_decoder", "masks"),
    ]  # fmt: skip


def test_backend_that_gives_other_classes_does_not_pass(semantic_bundle, monkeypatch):
    answering(monkeypatch, "semantic", lambda found: {"class_map": np.roll(found["class_map"], 40, axis=2)})
    only(monkeypatch, ("onnxruntime", "fp32"), ("other", "bf16"))
    right, wrong = measure(semantic_bundle, QUICK)
    reduced = task_module("semantic").REDUCED_BAR
    assert right.passed and not wrong.passed and wrong.evidence.bar == reduced
    assert wrong.evidence.rows[0].figures["pixels_equal"] < reduced["pixels_equal"]
    assert choose_backend([right, wrong], RunOptions(precision="auto")).backend == "onnxruntime"


def test_logits_are_compared_where_the_graph_gives_them(small_semantic_logits, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"))
    (check,) = measure(small_semantic_logits, QUICK)
    assert [row.what for row in check.evidence.rows] == ["logits", "class_map"]
    assert check.passed and check.evidence.rows[0].figures["max_abs"] == 0


def test_backend_that_does_not_run_is_a_check_with_its_reason(bundle, monkeypatch):
    real = tune.open_sessions

    def failing(bundle, options):
        if options.backend == "openvino":
            raise BackendUnavailable("it needs a newer glibc")
        return real(bundle, options)

    monkeypatch.setattr(tune, "open_sessions", failing)
    only(monkeypatch, ("onnxruntime", "fp32"), ("openvino", "fp32"))
    fine, broken = measure(bundle, QUICK)
    assert fine.passed and not broken.passed
    assert (broken.problem, broken.timings_ms, broken.milliseconds) == ("it needs a newer glibc", {}, np.inf)
    assert b'"problem": "it needs a newer glibc"' in replace(bundle.manifest, checks=(fine, broken)).to_json()


def test_broken_backend_is_no_candidate(monkeypatch):
    def broken(name):
        raise BackendUnavailable("libtbb.so is missing")

    monkeypatch.setattr(tune, "load_backend", broken)
    assert candidates() == ()
