# SPDX-License-Identifier: Apache-2.0
"""Backends are measured on a bundle, held against a bar, and what was found stands in the manifest."""

import shutil

import numpy as np
import pytest

import segship
from segship.backends.choice import installed_version
from segship.bundle import Bundle
from segship.errors import BackendUnavailable, InputError
from segship.tune import TuneOptions, promptable, tune_bundle
from segship.tune import candidates as listing
from segship.tune.candidates import candidates
from segship.tune.promptable import REDUCED_BAR, bar_of, measure_promptable

QUICK = TuneOptions(threads=1, repeats=1)


@pytest.fixture
def bundle(small_export, tmp_path):
    shutil.copytree(small_export[0].path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def test_every_installed_backend_is_measured_and_written_down(bundle):
    told = []
    renewed = tune_bundle(bundle.path, QUICK, told.append)
    checks = Bundle.read(bundle.path).manifest.backends
    assert checks == renewed.manifest.backends and len(told) == len(checks)
    assert [(check.backend, check.precision) for check in checks] == list(candidates())
    for check in checks:
        assert check.version == installed_version(check.backend) and check.threads == 1 and check.cpu
        assert {row.what for row in check.comparison} == {
            "image_embeddings", "low_res_masks", "iou_predictions", "masks",
        }  # fmt: skip
        assert check.load_ms > 0 and check.encode_ms > 0 and check.decode_ms > 0 and check.problem is None
    exact = [check for check in checks if check.precision == "fp32"]
    assert exact and all(check.passed for check in exact)


def test_renewing_changes_nothing_but_the_checks(bundle):
    before = bundle.manifest
    after = tune_bundle(bundle.path, QUICK).manifest
    again = tune_bundle(bundle.path, QUICK).manifest
    ignored = {"backends", "manifest_sha256"}
    assert before.model_dump(exclude=ignored) == after.model_dump(exclude=ignored) == again.model_dump(exclude=ignored)
    assert len(again.backends) == len(after.backends)


def test_what_was_measured_decides_and_is_said(bundle):
    tune_bundle(bundle.path, QUICK)
    with segship.load(bundle.path) as predictor:
        assert predictor.precision == "fp32"
        assert "passed their comparison" in predictor.backend_reason


def test_copy_leaves_the_bundle_as_it_was(bundle, tmp_path):
    digest = bundle.digest
    copy = tune_bundle(bundle.path, QUICK, out=tmp_path / "copy")
    assert Bundle.read(bundle.path).digest == digest
    assert Bundle.read(copy.path).manifest.backends and copy.path == tmp_path / "copy"


def test_bundle_inside_the_package_is_not_changed():
    with pytest.raises(InputError, match="inside the package, .* write a copy: --out FOLDER") as caught:
        tune_bundle("tiny", QUICK)
    assert caught.value.code == "bundle_in_package"


def test_backend_that_gives_other_masks_does_not_pass(bundle, monkeypatch):
    real = segship.Predictor.decode_low_res
    monkeypatch.setattr(promptable, "candidates", lambda: (("onnxruntime", "fp32"),))
    monkeypatch.setattr(promptable, "_time", lambda *_: (1.0, 1.0))
    calls = []

    def spoiled(self, *arguments, **options):
        calls.append(self)
        ious, logits = real(self, *arguments, **options)
        # The first predictor is the reference.
        return (ious, logits) if self is calls[0] else (ious, -logits)

    monkeypatch.setattr(segship.Predictor, "decode_low_res", spoiled)
    (check,) = measure_promptable(bundle, QUICK)
    assert not check.passed
    assert [row.what for row in check.comparison if not row.passed] == ["low_res_masks", "masks"]


def test_backend_that_does_not_run_is_a_check_with_its_reason(bundle, monkeypatch):
    real = promptable.load

    def failing(path, *, backend, **options):
        if backend == "openvino":
            raise BackendUnavailable("it needs a newer glibc")
        return real(path, backend=backend, **options)

    monkeypatch.setattr(promptable, "load", failing)
    monkeypatch.setattr(promptable, "candidates", lambda: (("onnxruntime", "fp32"), ("openvino", "fp32")))
    fine, broken = measure_promptable(bundle, QUICK)
    assert fine.passed and not broken.passed
    assert (broken.problem, broken.encode_ms, broken.milliseconds) == ("it needs a newer glibc", None, np.inf)
    manifest = bundle.manifest.model_copy(update={"backends": [fine, broken]})
    assert b'"problem": "it needs a newer glibc"' in manifest.to_json()


def test_broken_backend_is_no_candidate(monkeypatch):
    def broken(name):
        raise BackendUnavailable("libtbb.so is missing")

    monkeypatch.setattr(listing, "load_backend", broken)
    assert candidates() == ()


def test_reduced_precisions_have_a_bar_of_their_own():
    assert bar_of("bf16") == bar_of("fp16") == REDUCED_BAR != bar_of("fp32")
