# SPDX-License-Identifier: Apache-2.0
"""`segship tune`, and the options of the runtime that every command shares."""

import json
import shutil

import pytest

from segship import tune as tuning
from segship.cli import main
from segship.images.reading import demo_photograph


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def bundle(small_export, tmp_path, monkeypatch):
    # Which backends there are is another test's; one keeps this one quick.
    monkeypatch.setattr(tuning, "candidates", lambda manifest=None: (("onnxruntime", "fp32"),))
    return shutil.copytree(small_export[0].path, tmp_path / "bundle")


def test_table_says_times_comparison_and_choice(bundle, capsys):
    assert main(["tune", str(bundle), "--threads", "1", "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    assert "onnxruntime" in text and "passed" in text
    assert "--backend auto --precision fp32: onnxruntime fp32, fastest of 1 that passed" in text


def test_json_holds_the_checks_and_the_choices(bundle, capsys):
    assert main(["tune", str(bundle), "--threads", "1", "--repeats", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (check,) = document["backends"]
    assert (check["backend"], check["passed"], check["threads"]) == ("onnxruntime", True, 1)
    assert document["choices"]["auto"]["backend"] == "onnxruntime"
    assert document["path"] == str(bundle)


def test_bundle_inside_the_package_is_refused_with_its_code(capsys):
    assert main(["tune", "tiny", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bundle_in_package"


@pytest.mark.parametrize("command", [["segment", "--point", "365,290"], ["everything", "--points-per-side", "2"]])
def test_commands_pass_the_runtime_on_and_say_what_ran(command, capsys, tmp_path):
    options = ["--backend", "onnxruntime", "--threads", "1", "--out", str(tmp_path), "--json"]
    assert main([command[0], str(demo_photograph()), *command[1:], *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["backend"], document["precision"]) == ("onnxruntime", "fp32")
    assert document["backend_reason"] == "it was asked for" and "1 threads" in document["runs_on"]


def test_what_the_backend_does_not_have_is_an_error_with_its_code(capsys, tmp_path):
    options = ["--backend", "onnxruntime", "--streams", "2", "--out", str(tmp_path), "--json"]
    assert main(["segment", str(demo_photograph()), "--point", "365,290", *options]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "streams_unavailable"


def test_a_budget_prints_what_was_tried_and_what_was_taken(bundle, capsys, tmp_path, monkeypatch):
    arguments = [
        "tune",
        str(bundle),
        "--threads",
        "1",
        "--repeats",
        "1",
        "--budget",
        "mask_iou=0.9",
        "--latency",
        "60s",
    ]
    assert main([*arguments, "--plot", str(tmp_path / "pareto.svg")]) == 0
    out = capsys.readouterr().out
    assert "Pareto front" in out and "the fastest that keeps the budget" in out
    assert (tmp_path / "pareto.svg").read_text("utf-8").count("<circle") >= 1
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "measure", lambda *_: pytest.fail("it was measured"))
        for taken, code in ((tmp_path / "pareto.svg", "output_exists"), (tmp_path / "pareto.png", "unknown_format")):
            assert main([*arguments, "--plot", str(taken), "--json"]) == 6
            assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert main([*arguments, "--memory", "1k", "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "over_budget" and "the nearest is" in error["message"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--budget", "mask_iou"], "accepted is NAME=VALUE"),
        (["--latency", "300"], "accepted is a time"),
        (["--budget", "cosine_=1"], "the budget has cosine_=1"),
        (["--plot", "pareto.svg"], "give --budget too"),
    ],
)
def test_a_budget_that_cannot_be_read_is_refused(bundle, capsys, given, words):
    assert main(["tune", str(bundle), *given]) == 3
    assert words in capsys.readouterr().err
