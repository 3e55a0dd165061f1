# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_is_short(path, tmp_path):
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pixels" in done.stdout and done.stderr == ""
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40


def test_all_ten_examples_of_mindformers_are_there():
    numbers = [int(path.stem.split("_")[1]) for path in EXAMPLES if path.stem.startswith("pipeline_")]
    assert numbers == list(range(1, 11))
