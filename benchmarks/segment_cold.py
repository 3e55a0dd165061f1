# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of `segship segment` as a fresh process, from its start to the files written.

    python -m benchmarks.segment_cold [--model tiny|BUNDLE] [--rounds 9] [--backend auto] [--threads 2]

The picture is the demo photograph enlarged to 1800 x 1200 and saved as JPEG. Peak memory is the operating system's own
maximum resident set of the process. Beside it stands what of the time is Python's own start and the import of segship.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import segship
from benchmarks.comparison import Bound, Comparison, describe, finish
from benchmarks.prepared import make_photo
from benchmarks.sides import SideFigures
from segship.bench.fresh import peak_resident_bytes

MOST_SECONDS = 1.0


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    described = {
        "engine": f"segship {segship.__version__}",
        "precision": arguments.precision,
        "threads": arguments.threads,
    }
    name = Path(arguments.model).name
    rows = {what: SideFigures(what, described, load_s=0.0) for what in ("python", "import segship", f"segment, {name}")}
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo.jpg"
        make_photo(photo)
        for number in range(arguments.rounds + 1):
            commands = (
                ["-c", "pass"],
                ["-c", "import segship"],
                segment_command(arguments, photo, Path(folder) / str(number)),
            )
            for row, command in zip(rows.values(), commands, strict=True):
                book(row, command)
    comparison = Comparison(
        name=f"segment_cold_{name}",
        what=f"`segship segment` with {name} as a fresh process, a JPEG of 1800 x 1200, one click, files written",
        groups=[],
        targets=[],
        bounds=[Bound(f"segment, {name}", MOST_SECONDS)] if name == "tiny" else [],
        rounds=arguments.rounds,
        rows=[list(rows.values())],
    )
    for row in rows.values():
        print(describe(row))
    finish(comparison, keep=not arguments.no_save)


def segment_command(arguments: argparse.Namespace, photo: Path, out: Path) -> list[str]:
    """Return what `python` is given."""
    chosen = ["--model", arguments.model, "--backend", arguments.backend, "--precision", arguments.precision]
    where = ["--threads", str(arguments.threads), "--out", str(out)]
    return ["-m", "segship", "segment", str(photo), "--point", "855,450", *chosen, *where]


def book(row: SideFigures, command: list[str]) -> None:
    """Run a process and book its time and peak memory; the first one warms the disk's cache and does not count."""
    seconds, peak = run_once(command)
    if row.cold_s is None:
        row.cold_s = seconds
        return
    row.seconds.append(seconds)
    # A process that stays smaller than this one is told this one's size.
    if peak > 1.1 * peak_resident_bytes():
        row.peak_bytes = max(row.peak_bytes, peak)


def run_once(command: list[str]) -> tuple[float, int]:
    """Run Python in a process of its own and return seconds and peak bytes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"python {' '.join(command)} ended with status {process.returncode}")
    return seconds, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
