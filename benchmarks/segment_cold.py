# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of `segship segment` as a fresh process, from its start to the files written.

    python -m benchmarks.segment_cold [--model tiny|BUNDLE] [--runs 7]

The picture is the demo photograph enlarged to 1800 x 1200 and saved as JPEG. Peak memory is the operating system's own
maximum resident set of the process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.machine import save_result
from segship import demo_photograph

SIZE = (1800, 1200)
WARM_UP_RUNS = 1


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        Image.open(demo_photograph()).resize(SIZE, Image.Resampling.LANCZOS).save(photo, quality=90)
        runs = [
            run_once(arguments.model, photo, Path(folder) / str(run)) for run in range(arguments.runs + WARM_UP_RUNS)
        ]
    seconds, megabytes = zip(*runs[WARM_UP_RUNS:], strict=True)
    figures = {
        "image": f"{SIZE[0]} x {SIZE[1]} JPEG",
        "runs": arguments.runs,
        "seconds_median": round(statistics.median(seconds), 3),
        "seconds_min_max": [round(min(seconds), 3), round(max(seconds), 3)],
        "peak_mb_median": round(statistics.median(megabytes), 1),
        "peak_mb_max": round(max(megabytes), 1),
    }
    print(figures)
    print(save_result(f"segment_cold_{Path(arguments.model).name}", figures))


def run_once(model: str, photo: str | Path, out: str | Path) -> tuple[float, float]:
    """Run the command in a process of its own and return seconds and peak megabytes."""
    command = [sys.executable, "-m", "segship", "segment", str(photo), "--point", "855,450", "--model", model]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return seconds, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
