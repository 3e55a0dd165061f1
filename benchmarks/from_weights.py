# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of `segship bundle` as a fresh process: from a weight file to a bundle, without torch.

    python -m benchmarks.from_weights [--models vit_t vit_b vit_h] [--rounds 5] [--work FOLDER]

Weights are seeded, files have the published layout and size. The bars: 5 s for vit_t, 15 s for vit_b, 120 s for vit_h;
a peak of 2.2 times the file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import segship
from benchmarks.comparison import Bound, Comparison, describe, finish
from benchmarks.segment_cold import book
from benchmarks.sides import SideFigures
from segship.files import cache_folder

MOST_SECONDS = {"vit_t": 5.0, "vit_b": 15.0, "vit_h": 120.0}
MOST_TIMES_THE_FILE = 2.2


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_t", "vit_b", "vit_h"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--work", type=Path, default=cache_folder() / "benchmarks", help="folder for weights and bundles"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    described = {"engine": f"segship {segship.__version__}", "precision": "fp32", "threads": 2}
    rows, bounds = [], []
    for model in arguments.models:
        checkpoint = arguments.work / f"{model}.pth"
        if not checkpoint.exists():
            arguments.work.mkdir(parents=True, exist_ok=True)
            # In a process of its own, so that this one stays small: a child's peak is at least its parent's.
            subprocess.run([sys.executable, "-m", "benchmarks.seeded_checkpoint", model, str(checkpoint)], check=True)
        row = SideFigures(f"bundle {model}", described, load_s=0.0)
        out = arguments.work / f"{model}.bundle"
        for _ in range(arguments.rounds + 1):
            book(row, ["-m", "segship", "bundle", str(checkpoint), "-o", str(out), "--overwrite", "--quiet"])
        rows.append(row)
        bounds.append(Bound(row.name, MOST_TIMES_THE_FILE * checkpoint.stat().st_size / 1e6, of="peak_mb"))
        if model in MOST_SECONDS:
            bounds.append(Bound(row.name, MOST_SECONDS[model]))
        print(describe(row))
    comparison = Comparison(
        name="from_weights",
        what="`segship bundle` as a fresh process, from seeded weights in the published layout to a bundle",
        groups=[],
        targets=[],
        bounds=bounds,
        rounds=arguments.rounds,
        rows=[rows],
    )
    finish(comparison, keep=not arguments.no_save)


if __name__ == "__main__":
    main()
