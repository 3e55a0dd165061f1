# SPDX-License-Identifier: Apache-2.0
"""What `segship quantize` takes of time and memory, and how fast the encoder is afterwards, all in one run.

    python -m benchmarks.quantized [--models vit_t vit_b] [--rounds 7] [--work FOLDER]

Weights are seeded, in the published layout, with outliers planted behind every norm: three channels 40 times as large
as they were, which the products behind take back. The bars: 4 GB and 15 minutes for vit_b; OpenVINO with int8 at least
1.15 times as fast as with bf16.
"""

from __future__ import annotations

import argparse
import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segship
from benchmarks.comparison import Bound, Comparison, Target, describe, finish
from benchmarks.seeded_checkpoint import SAM_ARCHITECTURES, build_sam, seeded_weights
from benchmarks.segment_cold import run_once
from benchmarks.sides import SideFigures
from segship.backends import load_backend
from segship.backends.opening import open_graph
from segship.backends.session import RunOptions
from segship.bundle import Bundle
from segship.bundle.manifest import task_module
from segship.files import cache_folder

FACTOR, CHANNELS = 40.0, 3
MOST_MB, MOST_SECONDS = 4000.0, 900.0
NORMS = (
    (r"(.*\.blocks\.\d+)\.norm1", "{0}.attn.qkv"),
    (r"(.*\.blocks\.\d+)\.norm2", "{0}.mlp.lin1"),
    (r"(.*\.blocks\.\d+\.attn)\.norm", "{0}.qkv"),
    (r"(.*\.blocks\.\d+\.mlp)\.norm", "{0}.fc1"),
)
"""Names of norms, in ViT and TinyViT, and of the products behind them."""


def with_outliers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights of the same function, in which some channels behind each norm are far larger than the others."""
    made = dict(state)
    planted = 0
    for name in state:
        stem = name.removesuffix(".weight")
        for pattern, behind in NORMS:
            match = re.fullmatch(pattern, stem)
            product = match and f"{behind.format(match[1])}.weight"
            if not product or product not in state or stem == name:
                continue
            share = torch.ones(len(state[name]))
            share[np.random.default_rng(planted).choice(len(share), CHANNELS, replace=False)] = FACTOR
            made[name], made[f"{stem}.bias"] = state[name] * share, state[f"{stem}.bias"] * share
            made[product] = state[product] / share
            planted += 1
    assert planted, "no norm was found"
    return made


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit_t", "vit_b"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--limit", type=int, default=8, help="scenes that are drawn for calibration and comparison")
    parser.add_argument("--work", type=Path, default=cache_folder() / "benchmarks")
    parser.add_argument("--no-save", action="store_true", help="print only")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    calibration = arguments.work / "calibration"
    scenes = ["--limit", str(arguments.limit), "--objects", "2", "--overwrite", "--quiet"]
    run_once(["-m", "segship", "calibrate", "-o", str(calibration), *scenes])
    rows, targets, bounds = [], [], []
    for model in arguments.models:
        folder = _bundle(model, arguments.work)
        made = [_quantize(model, folder, calibration, precision) for precision in ("int8", "fp16-weights")]
        rows.append([*made, *_encoders(model, folder, arguments.rounds)])
        for side in rows[-1]:
            print(describe(side), flush=True)
        if model == "vit_b":
            targets.append(Target(f"{model} openvino int8", f"{model} openvino bf16", at_least=1.15))
        bounds += [
            bound for row in made for bound in (Bound(row.name, MOST_SECONDS), Bound(row.name, MOST_MB, "peak_mb"))
        ]
    comparison = Comparison(
        name="quantized",
        what="`segship quantize` as a fresh process, and the encoder's precisions side by side; seeded weights with "
        "planted outliers",
        groups=[],
        targets=targets,
        bounds=bounds,
        rounds=arguments.rounds,
        rows=rows,
    )
    finish(comparison, keep=not arguments.no_save)


def _bundle(model: str, work: Path) -> Path:
    checkpoint, folder = work / f"{model}.outliers.pth", work / f"{model}.outliers"
    torch.save(with_outliers(seeded_weights(build_sam(SAM_ARCHITECTURES[model]))), checkpoint)
    run_once(["-m", "segship", "bundle", str(checkpoint), "-o", str(folder), "--overwrite", "--quiet"])
    checkpoint.unlink()
    return folder


def _quantize(model: str, folder: Path, calibration: Path, precision: str) -> SideFigures:
    given = ["--precision", precision, "--calibration", str(calibration), "--quiet"]
    seconds, peak = run_once(["-m", "segship", "quantize", str(folder), *given])
    row = SideFigures(f"quantize {model} {precision}", {"engine": f"segship {segship.__version__}"}, load_s=0.0)
    row.seconds, row.peak_bytes, row.cold_s, row.extra = [seconds], peak, seconds, _notes(folder, precision)
    return row


def _notes(folder: Path, precision: str) -> dict[str, Any]:
    """Return what went back to higher precision, sizes, and the comparison of each backend."""
    manifest = Bundle.open(folder).manifest
    made = [artifact for artifact in manifest.artifacts if artifact.precision == precision]
    checks = [check for check in manifest.checks if check.precision == precision]
    return {
        "restored": {artifact.graph: artifact.options.get("restored_count", 0) for artifact in made},
        "mb": {artifact.graph: round(artifact.all_bytes / 1e6, 1) for artifact in made},
        "masks": {check.backend: check.evidence.rows[-1].figures for check in checks},
    }


def _encoders(model: str, folder: Path, rounds: int) -> list[SideFigures]:
    """Time the encoder in every precision of both backends, in turn."""
    bundle = Bundle.read(folder)
    spec = bundle.manifest.graph_spec("image_encoder")
    image = task_module("promptable").cases(bundle.manifest).images[0].image
    sides = [("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("openvino", "fp32"), ("openvino", "bf16")]
    sides = [*(side for side in sides if side[1] != "bf16" or "bf16" in load_backend("openvino").precisions())]
    with ExitStack() as stack:
        opened = []
        for backend, precision in [*sides, ("openvino", "int8")]:
            started = time.perf_counter()
            run = RunOptions(backend=backend, precision=precision, threads=2)
            session = stack.enter_context(open_graph(bundle, spec, run))
            described = {"engine": session.description, "precision": precision, "threads": 2}
            row = SideFigures(f"{model} {backend} {precision}", described, load_s=time.perf_counter() - started)
            started = time.perf_counter()
            session.run({"image": image})
            row.cold_s = time.perf_counter() - started
            opened.append((session, row))
        for _ in range(rounds):
            for session, row in opened:
                time.sleep(0.2)
                started = time.perf_counter()
                session.run({"image": image})
                row.seconds.append(time.perf_counter() - started)
    return [row for _, row in opened]


if __name__ == "__main__":
    main()
