# SPDX-License-Identifier: Apache-2.0
"""``segship run``: words in, a run and its exit code out."""

import json

import pytest

import segship
from segship.cli.main import main

FEW = ["--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]


@pytest.fixture
def source(tmp_path):
    there = tmp_path / "photos"
    there.mkdir()
    (there / "a.jpg").write_bytes(segship.demo_photograph().read_bytes())
    return there


def told(capsys):
    return json.loads(capsys.readouterr().out)


def test_a_source_is_planned_and_done(source, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["run", str(source), "-o", run, *FEW, "--workers", "1", "--json"]) == 0
    found = told(capsys)
    assert (found["items"], found["done"], found["sealed"]) == (1, 1, True) and found["rows"] > 0
    assert main(["run", "verify", run, "--json"]) == 0
    assert told(capsys)["root"] == found["root"]
    assert main(["run", "gc", run, "--json"]) == 0
    assert told(capsys) == {"deleted": []}
    assert main(["run", "status", run]) == 0
    assert found["root"] in capsys.readouterr().out


def test_a_plan_can_wait_and_quarantine_has_an_exit_code(source, tmp_path, capsys):
    (source / "b.jpg").write_bytes(b"no picture")
    run = str(tmp_path / "run")
    assert main(["run", "plan", str(source), "-o", run, *FEW, "--json"]) == 0
    assert told(capsys)["items"] == 2
    assert main(["run", "status", run, "--json"]) == 0
    assert told(capsys)["sealed"] is False
    assert main(["run", "verify", run]) == 3
    capsys.readouterr()
    assert main(["run", "estimate", run, "--workers", "4", "--price-per-hour", "2", "--json"]) == 0
    found = told(capsys)
    assert (found["items"], found["samples"], found["without_answer"]) == (2, 2, 1)
    assert found["price"] == [2 * seconds / 3600 for seconds in found["seconds"]]
    assert main(["run", "start", run, "--workers", "1", "--max-quarantine", "0"]) == 8
    assert "1 unknown_format" in capsys.readouterr().err
    assert main(["run", "start", run, "--workers", "1", "--show-graph", "mermaid", "--json"]) == 7
    found = told(capsys)
    assert found["quarantined"] == {"unknown_format": 1} and found["graph"].startswith("flowchart LR")
    assert main(["run", "status", run, "--show-graph", "graphviz"]) == 7
    out = capsys.readouterr().out
    assert out.startswith("digraph run {") and f"segship run report {run}" in out.replace("\n", "")
    assert main(["run", "status", run, "--watch", "--json"]) == 7
    assert told(capsys)["seconds_left"] == 0
    assert main(["run", "report", run, "-o", str(tmp_path / "report.html")]) == 0
    assert "unknown_format" in (tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    "words, said",
    [
        (["run"], "not understood"),
        (["run", "start"], "not understood"),
        (["run", "a", "b"], "not understood"),
        (["run", "plan", "photos"], "--out"),
        (["run", "report", "x"], "needs --out"),
        (["run", "status", "x", "--clip"], "takes no options of a plan"),
        (["run", "verify", "x", "--workers", "0"], "--workers is for start or estimate"),
        (["run", "start", "x", "--gpus", "1"], "--gpus is for --executor ray"),
        (["run", "start", "x", "--overwrite"], "--overwrite is for report or export"),
        (["run", "plan", ".", "-o", "y", "--shard-items", "0"], "--shard-items is 0"),
        (["run", ".", "-o", ""], "empty name"),
        (["run", "status", "nowhere"], "no run here"),
        (["run", "nowhere", "-o", "y"], "no source"),
    ],
)
def test_what_is_not_understood_says_what_is(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 3
    assert said in capsys.readouterr().err


def test_options_of_the_model_are_part_of_the_plan(source, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["run", "plan", str(source), "-o", str(run), "--backend", "onnxruntime", "--max-pixels", "1000"]
    assert main(words) == 0
    options = json.loads((run / "plan.json").read_bytes())["options"]
    assert (options["run"]["backend"], options["run"]["threads"]) == ("onnxruntime", 1)
    assert options["limits"]["pixels"] == 1000 and options["amg"]["points_per_side"] == 32
