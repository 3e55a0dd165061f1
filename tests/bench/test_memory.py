# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import numpy as np
import pytest

from segship.bench import fresh as memory
from segship.bench.fresh import peak_resident_bytes

CODE = """
from segship.bench.fresh import peak_resident_bytes as peak
before = peak()
held = bytearray(100_000_000)
during = peak()
del held
print(before, during, peak())
"""


def run_python(code):
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return [int(part) for part in answer.split()]


def test_peak_grows_by_what_is_held_and_stays_when_it_is_let_go():
    before, during, after = run_python(CODE)
    # The kernel counts in portions, so a peak may be some pages off.
    assert 95_000_000 < during - before < 110_000_000 and after > during - 2_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child's figure begins at its parent's size")
def test_a_small_child_of_a_large_process_is_small():
    held = np.ones(300_000_000, np.uint8)
    code = "from segship.bench.fresh import peak_resident_bytes as peak; print(peak())"
    (child,) = run_python(code)
    assert child < 200_000_000 < held.nbytes


def test_other_systems_answer_too(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert peak_resident_bytes() > 10_000_000
