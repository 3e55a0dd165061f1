# SPDX-License-Identifier: Apache-2.0
"""Backends are measured on semantic bundles, and what was found decides."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from segship.backends.choice import choose_backend, installed_version
from segship.backends.opening import open_sessions
from segship.bundle import Bundle
from segship.bundle.measured import SemanticCheck
from segship.catalog import open_model
from segship.errors import BackendUnavailable
from segship.tune import TuneOptions, semantic, tune_bundle
from segship.tune.candidates import candidates
from segship.tune.semantic import REDUCED_SEMANTIC_BAR, measure_semantic
from tests.small_semask import SIZE_HW

QUICK = TuneOptions(threads=1, repeats=1)


@pytest.fixture
def bundle(small_semantic_bundle, tmp_path):
    shutil.copytree(small_semantic_bundle.path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def test_every_installed_backend_is_measured_and_written_down(bundle):
    told = []
    renewed = tune_bundle(bundle.path, QUICK, told.append)
    checks = Bundle.read(bundle.path).manifest.backends
    assert checks == renewed.manifest.backends and len(told) == len(checks)
    assert [(check.backend, check.precision) for check in checks] == list(candidates())
    for check in checks:
        assert isinstance(check, SemanticCheck) and check.size == SIZE_HW and check.threads == 1
        assert check.version == installed_version(check.backend) and check.problem is None
        assert [row.what for row in check.comparison] == ["class_map"]
        assert check.load_ms > 0 and check.segment_ms > 0
    exact = [check for check in checks if check.precision == "fp32"]
    assert exact and all(check.passed for check in exact)
    with open_model(bundle.path) as predictor:
        assert "for a picture of 160 x 96" in predictor.backend_reason


def test_logits_are_compared_where_the_graph_gives_them(small_semantic_logits, monkeypatch):
    monkeypatch.setattr(semantic, "candidates", lambda: (("onnxruntime", "fp32"),))
    (check,) = measure_semantic(small_semantic_logits, QUICK)
    assert [row.what for row in check.comparison] == ["logits", "class_map"]
    assert check.passed and check.comparison[0].max_abs == 0


def test_backend_that_answers_otherwise_fails_its_comparison(bundle, monkeypatch):
    def twisted(bundle, backend, options):
        sessions = open_sessions(bundle, "onnxruntime", replace(options, precision="fp32"))
        if backend == "twisted":
            run = sessions["semantic"].run
            monkeypatch.setattr(
                sessions["semantic"], "run", lambda inputs: {"class_map": np.roll(run(inputs)["class_map"], 40, axis=2)}
            )
        return sessions

    monkeypatch.setattr(semantic, "open_sessions", twisted)
    monkeypatch.setattr(semantic, "candidates", lambda: (("onnxruntime", "fp32"), ("twisted", "bf16")))
    right, wrong = measure_semantic(bundle, QUICK)
    assert right.passed and not wrong.passed and wrong.bar == REDUCED_SEMANTIC_BAR
    assert wrong.comparison[0].pixels_equal < REDUCED_SEMANTIC_BAR.pixels_equal
    assert choose_backend([right, wrong], precision="auto").backend == "onnxruntime"


def test_backend_that_does_not_run_is_written_down_with_its_problem(bundle, monkeypatch):
    def absent(bundle, backend, options):
        if backend == "absent":
            raise BackendUnavailable("it is not here")
        return open_sessions(bundle, backend, options)

    monkeypatch.setattr(semantic, "open_sessions", absent)
    monkeypatch.setattr(semantic, "candidates", lambda: (("absent", "fp32"), ("onnxruntime", "fp32")))
    broken, _ = measure_semantic(bundle, QUICK)
    assert (broken.problem, broken.passed, broken.milliseconds) == ("it is not here", False, float("inf"))
