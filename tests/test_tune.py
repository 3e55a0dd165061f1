# SPDX-License-Identifier: Apache-2.0
"""Backends are measured on a bundle of either task, held against a bar, and what was found stands in the manifest."""

import math
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

import segship
from segship import tune
from segship.backends import BACKENDS, installed_version
from segship.backends.choice import choose_backend
from segship.backends.session import RunOptions
from segship.bundle import Bundle
from segship.bundle.evidence import Check, Evidence
from segship.bundle.manifest import task_module
from segship.errors import BackendUnavailable, InputError, OutputError
from segship.tune import (
    Budget,
    Trial,
    TuneOptions,
    candidates,
    choose,
    draw_trials,
    measure,
    pareto_front,
    tune_budget,
    tune_bundle,
)

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
    monkeypatch.setattr(tune, "candidates", lambda manifest=None: names)


def test_every_installed_backend_is_measured_and_written_down(either):
    told, task = [], either.manifest.task
    renewed = tune_bundle(either.path, QUICK, told.append).manifest
    checks = Bundle.read(either.path).manifest.checks
    assert checks == renewed.checks and [check.backend for check in told] == [check.backend for check in checks]
    assert [(check.backend, check.precision) for check in checks] == list(candidates(either.manifest))
    for check in checks:
        assert check.version == installed_version(check.backend) and check.threads == 1 and check.cpu
        # Of the two graphs that a bundle can do without, one has outputs of its own kind.
        left_out = set() if BACKENDS[check.backend].graphs is None else {"all tensors"}
        assert {row.what for row in check.evidence.rows} == WHAT[task] - left_out
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


# Under a budget


def trial(name, latency, memory, size, accuracy=1.0, threads=2):
    figures = {"mask_iou_mean": accuracy, "latency_ms": latency, "memory_bytes": memory, "bytes": size}
    check = Check(name, "1", "fp32", "chip", threads, {"encode": latency}, "an image", Evidence({}, ()), True)
    return Trial(check, figures)


TRIALS = [trial("exact", 100, 4e8, 10), trial("fast", 40, 6e8, 5, 0.98), trial("lean", 60, 2e8, 5, 0.97)]
TRIALS.append(trial("worse", 120, 7e8, 10, 0.96))


@pytest.mark.parametrize(
    ("budget", "taken"),
    [
        (Budget({"mask_iou_mean": 0.985}), "exact"),
        (Budget({"mask_iou_mean": 0.975}), "fast"),
        (Budget({"mask_iou_mean": 0.97}, memory_bytes=500_000_000), "lean"),
        (Budget({}, latency_ms=50), "fast"),
    ],
)
def test_the_fastest_that_keeps_every_bound_is_taken(budget, taken):
    choice = choose(TRIALS, budget)
    assert (choice.backend, choice.tried) == (taken, 4)
    assert choice.budget == budget.limits and set(choice.figures) == {*budget.limits, "bytes"}


def test_a_budget_that_nothing_keeps_is_refused_with_the_nearest():
    budget = Budget({"mask_iou_mean": 0.99}, latency_ms=90)
    with pytest.raises(InputError, match="none of 4 that were tried keeps .*; the nearest is fast fp32") as caught:
        choose(TRIALS, budget)
    assert caught.value.code == "over_budget"
    with pytest.raises(InputError, match="nothing ran at all"):
        choose([], budget)
    # A figure that was not measured keeps nothing.
    with pytest.raises(InputError):
        choose(TRIALS, Budget({"pixels_equal": 0.5}))


def test_what_failed_its_comparison_is_taken_only_by_a_figure_that_was_named():
    fast = trial("fast", 40, 6e8, 5, 0.8)
    failed = Trial(replace(fast.check, passed=False), fast.figures)
    rivals = [trial("exact", 100, 4e8, 10), failed]
    assert choose(rivals, Budget({}, latency_ms=200)).backend == "exact"
    assert choose(rivals, Budget({"mask_iou_mean": 0.75})).backend == "fast"
    assert list(Budget({}, latency_ms=200).excess(failed)) == ["comparison"]


def test_a_figure_that_the_task_does_not_have_is_refused_before_the_second_backend(either, monkeypatch):
    only(monkeypatch, ("onnxruntime", "fp32"), ("onnxruntime", "never reached"))
    with pytest.raises(InputError, match="boundary_f, which is not measured of .* models; accepted are ") as caught:
        tune_budget(either.path, Budget({"boundary_f": 0.5}), QUICK)
    assert caught.value.code == "bad_option" and Bundle.read(either.path).digest == either.digest


def test_what_nothing_beats_in_everything_is_on_the_front():
    front = pareto_front(TRIALS, "mask_iou_mean")
    assert [one.check.backend for one in front] == ["exact", "fast", "lean"]
    circles = ElementTree.fromstring(draw_trials(TRIALS, "mask_iou_mean")).findall("{*}circle")
    assert [circle.get("fill") != "none" for circle in circles] == [True, True, True, False]


@pytest.mark.parametrize(
    "least",
    [
        {"mask_iou": 0.9},
        {"mask_iou_mean": 1.5},
        {"max_abs": 0.1},
        {"mask_iou_mean": math.nan},
        {"mask_iou_mean": "0.9"},
    ],
)
def test_budgets_that_mean_nothing_are_refused(least):
    with pytest.raises(InputError, match="the budget has") as caught:
        Budget(least)
    assert caught.value.code == "bad_option"
    for given in ({"least": None}, {"least": {}, "memory_bytes": "1G"}, {"least": {}, "latency_ms": math.inf}):
        with pytest.raises(InputError) as caught:
            Budget(**given)
        assert caught.value.code == "bad_option"
    for empty in ({}, {"memory_bytes": 0}, {"latency_ms": -1.0}):
        with pytest.raises(InputError, match="no bound above 0"):
            Budget({}, **empty)


def test_what_a_budget_decided_is_written_and_followed(either, monkeypatch):
    monkeypatch.setattr(tune, "candidates", lambda *_: (("onnxruntime", "fp32"),))
    figure = {"promptable": "mask_iou_mean", "semantic": "pixels_equal"}[either.manifest.task]
    bundle, trials = tune_budget(either.path, Budget({figure: 0.99}, memory_bytes=10**10), QUICK)
    (one,) = trials
    choice = bundle.manifest.choice
    assert choice == Bundle.open(either.path).manifest.choice and len(bundle.manifest.checks) == 1
    assert (choice.backend, choice.precision, choice.threads) == ("onnxruntime", "fp32", 1)
    assert 10**7 < one.figures["memory_bytes"] < 10**10
    assert one.figures["bytes"] == sum(artifact.bytes for artifact in bundle.manifest.artifacts)
    predictor = segship.load(either.path, backend="auto", precision="auto")
    assert "chosen of 1 under the budget" in predictor.backend_reason
    before = (either.path / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="the nearest is onnxruntime fp32 on 1 threads"):
        tune_budget(either.path, Budget({}, latency_ms=1e-6), QUICK)
    assert (either.path / "manifest.json").read_bytes() == before
    # Measured anew without a budget, there is none to keep.
    assert tune_bundle(either.path, QUICK).manifest.choice is None
