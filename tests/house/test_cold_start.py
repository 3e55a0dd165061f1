# SPDX-License-Identifier: Apache-2.0
"""`import segship` stays light."""

import subprocess
import sys

from tests.house.test_arrows import HEAVY


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_torch_and_no_runtime():
    loaded = run_python("import sys, segship; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & HEAVY


def test_import_takes_under_150_ms_beyond_numpy_pillow_and_opencv():
    code = (
        "import numpy, PIL.Image, cv2, time; start = time.process_time(); import segship; "
        "print(time.process_time() - start)"
    )
    # Of the processor, and the fastest of five, since other work on the machine only ever adds time.
    assert min(float(run_python(code)) for _ in range(5)) < 0.150
