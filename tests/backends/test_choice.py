# SPDX-License-Identifier: Apache-2.0
"""Which backend `auto` takes: only measured, installed, passed ones, and never another precision silently."""

from dataclasses import replace

import pytest

from segship.backends import choice as backend_choice
from segship.backends import installed_version
from segship.backends.choice import choose_backend, processor_name, recorded_choice
from segship.backends.session import RunOptions
from segship.bundle.evidence import Check, Choice, Evidence
from segship.errors import BackendUnavailable

VERSIONS = {"onnxruntime": "1.31", "openvino": "2026.4"}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    versions = dict(VERSIONS)
    monkeypatch.setattr(backend_choice, "installed_version", versions.get)
    monkeypatch.setattr(backend_choice, "processor_name", lambda: "this chip")
    return versions


def check(backend, milliseconds, precision="fp32", *, passed=True, cpu="this chip", version=None):
    times = {"load": 1.0, "encode": milliseconds / 2, "decode": milliseconds / 2}
    return Check(
        backend=backend, version=version or VERSIONS[backend], precision=precision, cpu=cpu, threads=2,
        timings_ms=times, timed="an image", evidence=Evidence({}, ()), passed=passed,
    )  # fmt: skip


ORT, OV, HALF = check("onnxruntime", 300), check("openvino", 200), check("openvino", 100, "bf16")


def chosen(checks, **asked):
    choice = choose_backend(checks, RunOptions(**asked))
    return choice.backend, choice.precision


def test_nothing_measured_is_onnxruntime_in_fp32():
    choice = choose_backend([])
    assert (choice.backend, choice.precision) == ("onnxruntime", "fp32")
    assert "nothing was measured" in choice.reason and "segship tune" in choice.reason


def test_fastest_that_passed_is_taken_and_the_reason_says_the_figures():
    assert chosen([ORT, OV]) == ("openvino", "fp32")
    assert chosen([OV, check("onnxruntime", 150)]) == ("onnxruntime", "fp32")
    reason = choose_backend([ORT, OV]).reason
    assert "200 ms" in reason and "onnxruntime fp32 300 ms" in reason and "measured on this processor" in reason


def test_failed_comparison_is_never_taken():
    assert chosen([ORT, check("openvino", 1, passed=False)]) == ("onnxruntime", "fp32")


def test_precision_changes_only_when_asked():
    assert chosen([ORT, OV, HALF]) == ("openvino", "fp32")
    assert chosen([ORT, OV, HALF], precision="auto") == ("openvino", "bf16")
    assert chosen([ORT, OV, HALF], precision="bf16") == ("openvino", "bf16")
    assert chosen([ORT, OV, HALF], backend="onnxruntime", precision="auto") == ("onnxruntime", "fp32")


def test_slower_bf16_is_not_taken():
    assert chosen([ORT, OV, check("openvino", 400, "bf16")], precision="auto") == ("openvino", "fp32")


def test_what_is_not_installed_is_not_taken(installed):
    del installed["openvino"]
    assert chosen([ORT, OV, HALF], precision="auto") == ("onnxruntime", "fp32")


def test_what_runs_no_bundle_is_not_taken_on_the_word_of_a_manifest(installed):
    installed["torch"] = "2.13"
    assert chosen([replace(ORT, backend="torch", version="2.13"), OV]) == ("openvino", "fp32")


def test_another_machine_decides_only_about_fp32():
    there = [check("onnxruntime", 300, cpu="that chip"), check("openvino", 200, cpu="that chip")]
    half = check("openvino", 100, "bf16", cpu="that chip")
    choice = choose_backend([*there, half], RunOptions(precision="auto"))
    assert (choice.backend, choice.precision) == ("openvino", "fp32")
    assert "another processor or version" in choice.reason


def test_another_version_does_not_count_beside_checks_that_do(installed):
    installed["openvino"] = "2031.1"
    assert chosen([ORT, OV, HALF], precision="auto") == ("onnxruntime", "fp32")


def test_names_are_taken_whatever_was_measured():
    failed = check("openvino", 100, "bf16", passed=False)
    choice = choose_backend([ORT, failed], RunOptions(backend="openvino", precision="bf16"))
    assert (choice.backend, choice.precision, choice.reason) == ("openvino", "bf16", "it was asked for")


def test_named_precision_that_failed_everywhere_is_refused():
    with pytest.raises(BackendUnavailable, match="in openvino it failed its comparison .* name the backend") as caught:
        choose_backend([ORT, check("openvino", 100, "bf16", passed=False)], RunOptions(precision="bf16"))
    assert caught.value.code == "precision_unavailable"


def test_precision_that_nobody_measured_goes_to_the_backend_that_has_it():
    assert chosen([], precision="bf16") == ("openvino", "bf16")


def test_streams_leave_openvino():
    assert chosen([check("onnxruntime", 10), OV], streams=2) == ("openvino", "fp32")
    assert chosen([], streams=2) == ("openvino", "fp32")


def test_checks_of_the_cpu_decide_nothing_about_a_gpu():
    choice = choose_backend([ORT, OV, HALF], RunOptions(precision="auto", device="cuda"))
    assert (choice.backend, choice.precision) == ("onnxruntime", "fp32")
    assert "cuda was asked for" in choice.reason


def test_versions_are_read_without_importing(monkeypatch):
    monkeypatch.undo()
    assert installed_version("no_such_runtime") is None
    assert installed_version("onnxruntime").count(".") == 2
    assert processor_name()


def recorded(**changes):
    fields = {"backend": "openvino", "version": "1", "precision": "bf16", "cpu": "this chip", "threads": 2}
    figures = {"budget": {"mask_iou_mean": 0.98}, "figures": {"mask_iou_mean": 0.99}, "tried": 7}
    return Choice(**{**fields, **figures, **changes})


def test_a_choice_under_a_budget_is_followed_where_it_holds_and_never_changes_the_precision_unasked():
    version = VERSIONS["openvino"]
    found = recorded_choice(recorded(version=version), RunOptions(backend="auto", precision="auto"))
    assert (found.backend, found.precision, found.threads) == ("openvino", "bf16", 2)
    assert found.reason == "chosen of 7 under the budget mask_iou_mean 0.98, measured on this processor"
    assert recorded_choice(recorded(version=version), RunOptions(backend="auto", precision="bf16")) == found
    for run in (
        RunOptions(backend="auto"),
        RunOptions(backend="onnxruntime", precision="auto"),
        RunOptions(backend="auto", precision="fp16"),
        RunOptions(backend="auto", precision="auto", device="cuda"),
        RunOptions(backend="auto", precision="auto", threads=1),
    ):
        assert recorded_choice(recorded(version=version), run) is None
    for other in (recorded(version=version, cpu="another"), recorded(version="0"), None):
        assert recorded_choice(other, RunOptions(backend="auto", precision="auto")) is None
