# SPDX-License-Identifier: Apache-2.0
"""Every command that compares us with peers, on the small model: all sides run and agree."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import machine

ROOT = Path(__file__).parents[2]
ENGINES = ["onnxruntime", *(name for name in ("openvino", "MNN") if find_spec(name))]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def run(monkeypatch_path, work, command, *arguments):
    code = (
        "import sys, runpy, pathlib; from benchmarks import machine, table; "
        f"machine.RESULTS = table.RESULTS = pathlib.Path({str(monkeypatch_path)!r}); "
        f"sys.argv = ['x', *{list(arguments)!r}]; runpy.run_module('benchmarks.{command}', run_name='__main__')"
    )
    shared = ["--model", "small", "--work", str(work), "--threads", "1", "--rounds", "1"]
    code = code.replace("['x', ", f"['x', *{shared!r}, ")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    (path,) = monkeypatch_path.glob("*.json")
    return [row for group in json.loads(path.read_text())["figures"]["groups"] for row in group]


@pytest.mark.parametrize(
    ("command", "arguments", "tensor"),
    [
        ("encoders", (), "image_embeddings_relative_rmse"),
        ("decoders", ("--objects", "2"), "low_res_masks_relative_rmse"),
        ("click", (), "masks_mean_iou"),
        ("everything_replay", ("--points-per-side", "4"), "records_set"),
        ("preprocess", (), "image_relative_rmse"),
    ],
)
def test_sides_agree(tmp_path, work, command, arguments, tensor):
    rows = run(tmp_path, work, command, *arguments)
    names = " ".join(row["name"] for row in rows)
    assert "reference" in names and "segship" in names
    if command in ("encoders", "decoders"):
        assert all(engine.lower() in names for engine in ENGINES)
    for row in rows:
        exact = row["described"]["precision"] == "fp32"
        if tensor.endswith("rmse"):
            assert row["agreement"][tensor] <= (1e-3 if exact else 0.1), row["name"]
        else:
            assert row["agreement"][tensor] >= (0.999 if exact else 0.9), row["name"]
        assert row["peak_mb"] > 20 and row["seconds"]
    if command == "everything_replay":
        assert all(row["extra"]["records"] > 0 and row["extra"]["points"] == 16 for row in rows)
    if command == "preprocess":
        assert all(row["extra"]["resized_equals_pillow"] for row in rows)


def test_results_of_the_repository_are_left_alone():
    assert machine.RESULTS == ROOT / "benchmarks" / "results"
