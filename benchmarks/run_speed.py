# SPDX-License-Identifier: Apache-2.0
"""Pictures an hour of ``segship run`` beside those of a plain loop over ``generate_masks`` in one process.

Each side works on every block in a process of its own that loads the model anew; blocks alternate, so that what the
machine does meanwhile meets both. The loop keeps its records and writes nothing.

``python -m benchmarks.run_speed [--pictures 1000] [--blocks 2] [--points-per-side 16] [--workers N] [--schedule S]``
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import segship
from benchmarks.machine import save_result, versions
from segship.machine import usable_cores
from segship.run.running import read_starts
from segship.run.storage import open_folder

WANTED = {"bar": 1.3, "aim": 1.6}
SIZE = (600, 400)
LOOP = """
import json, sys, time
from pathlib import Path
import segship
options = segship.AmgOptions(points_per_side=int(sys.argv[2]))
masks = 0
with segship.load("tiny") as predictor:
    for path in sorted(Path(sys.argv[1]).iterdir()):
        masks += len(segship.generate_masks(predictor, path, options))
print(json.dumps({"masks": masks}))
"""


def draw_pictures(folder: Path, count: int, first: int) -> None:
    """Write parts of the package's photograph, each another, as JPEG files."""
    folder.mkdir()
    with Image.open(segship.demo_photograph()) as photograph:
        whole = photograph.convert("RGB")
    for number in range(first, first + count):
        draw = np.random.default_rng(number)
        width = int(draw.uniform(0.5, 1.0) * whole.width)
        height = width * SIZE[1] // SIZE[0]
        x, y = (int(draw.integers(0, most + 1)) for most in (whole.width - width, max(0, whole.height - height)))
        part = whole.resize(SIZE, box=(x, y, x + width, y + height))
        part.rotate(180 * int(draw.integers(2))).save(folder / f"{number:05d}.jpg", quality=90)


def time_loop(source: Path, points_per_side: int) -> tuple[float, int]:
    """Return the seconds of a plain loop, and how many masks it found."""
    began = time.perf_counter()
    command = [sys.executable, "-c", LOOP, str(source), str(points_per_side)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return time.perf_counter() - began, json.loads(found)["masks"]


def time_run(source: Path, run: Path, points_per_side: int, more: list[str]) -> tuple[float, dict]:
    """Return the seconds of a whole run, plan included, and what was noted of it."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "segship", "run", str(source), "-o", str(run), "--json"]
    command += ["--points-per-side", str(points_per_side), *more]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return time.perf_counter() - began, told


def measure(pictures: int, blocks: int, points_per_side: int, more: list[str]) -> dict:
    """Return pictures an hour of both sides, their ratio, and how busy the stages were."""
    seconds: dict[str, list[float]] = {"loop": [], "run": []}
    masks, busy, total, counts = {"loop": 0, "run": 0}, dict[str, float](), 0.0, []
    with TemporaryDirectory() as place:
        for block in range(blocks):
            count = pictures // blocks + (block < pictures % blocks)
            source, run = Path(place) / f"source{block}", Path(place) / f"run{block}"
            draw_pictures(source, count, sum(counts))
            counts.append(count)
            for side in ("loop", "run") if block % 2 == 0 else ("run", "loop"):
                if side == "loop":
                    spent, found = time_loop(source, points_per_side)
                else:
                    spent, told = time_run(source, run, points_per_side, more)
                    found = told["rows"]
                    for note in read_starts(open_folder(run)):
                        occupancy = note["occupancy"]
                        total += occupancy["total"]
                        for name, value in occupancy["busy"].items():
                            busy[name] = busy.get(name, 0.0) + value
                seconds[side].append(spent)
                masks[side] += found
            print(
                f"block {block}: {count} pictures, {seconds['loop'][-1]:.1f} s, {seconds['run'][-1]:.1f} s", flush=True
            )
    rates = {side: 3600 * pictures / sum(spent) for side, spent in seconds.items()}
    ratios = [loop / run for loop, run in zip(seconds["loop"], seconds["run"], strict=True)]
    return {
        "pictures": pictures,
        "size": list(SIZE),
        "points_per_side": points_per_side,
        "options": more,
        "pictures_an_hour": {side: round(rate) for side, rate in rates.items()},
        "ratio": round(rates["run"] / rates["loop"], 3),
        "ratio_of_blocks": [round(ratio, 3) for ratio in ratios],
        "masks": masks,
        "stage_occupancy": {name: round(value / total, 3) for name, value in busy.items()},
        "wanted": WANTED,
        "holds": rates["run"] / rates["loop"] >= WANTED["bar"],
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--schedule", default=None)
    parser.add_argument("--try", dest="only_try", action="store_true", help="print, and save nothing")
    given = parser.parse_args()
    more = ["--workers", str(given.workers)] + (["--schedule", given.schedule] if given.schedule else [])
    figures = measure(given.pictures, given.blocks, given.points_per_side, more)
    print(json.dumps(figures, indent=1))
    if not given.only_try:
        print(save_result("run_speed", figures, versions=versions(("pyarrow",))))


if __name__ == "__main__":
    main()
