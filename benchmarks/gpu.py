# SPDX-License-Identifier: Apache-2.0
"""vit_h on a CUDA device: encoding and everything (replay workload), in bfloat16, against the reference in one run.

    python -m benchmarks.gpu [--model vit_h] [--device cuda] [--work WORK] [--rounds 10] [--points-per-side 32]

Beside the rows stand the published figures of segment-anything-fast, measured by its authors on one A100 of 40 GB at
400 W in torch 2.2 nightlies of October 2023, batches of 32 images: see `PUBLISHED`. They time the encoder and one
`predict_torch` for each picture of COCO 2017, so they are no row of this comparison, and another device is another
figure. Never run by us, for lack of a GPU.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from benchmarks.comparison import Comparison, Target, common_parser, run_comparison
from benchmarks.sides import SidePlan

PUBLISHED = {"SDPA": 45.97, "Triton kernel": 44.02, "nested tensors": 42.86, "dynamic int8": 40.09}
"""Milliseconds a picture, vit_h: pytorch-labs/segment-anything-fast experiments/results/results_bs32_vit_h.csv."""

REFERENCE = "reference, torch bf16"
OURS = "segship, torch bf16, compiled"


def plans(work: str, model: str, device: str, points_per_side: int) -> list[list[SidePlan]]:
    """Return the groups of sides: encoders, then everything."""
    shared = {"work": work, "model": model, "precision": "bf16", "device": device}
    ours = {**shared, "engine": "torch"}
    points = {"points_per_side": points_per_side}
    files = ("checkpoint", "image")
    return [
        [
            SidePlan(f"{REFERENCE}, encode", "benchmarks.subjects.reference:Encoder", shared, files, warm_up=3),
            SidePlan(f"{OURS}, encode", "benchmarks.subjects.ours:Encoder", ours, files, warm_up=3),
        ],
        [
            SidePlan(
                f"{REFERENCE}, everything",
                "benchmarks.subjects.replayed:Reference",
                {**shared, **points},
                ("checkpoint", "photo"),
                rounds=3,
            ),
            SidePlan(
                f"{OURS}, everything", "benchmarks.subjects.replayed:Ours", {**ours, **points}, ("checkpoint", "photo")
            ),
        ],
    ]


def main() -> None:
    """Measure, print and save."""
    parser = common_parser(__doc__)
    parser.set_defaults(model="vit_h")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--points-per-side", type=int, default=32)
    arguments = parser.parse_args()
    if not has_cuda():
        sys.exit("torch sees no CUDA device here, so nothing was measured; run this on a machine with an NVIDIA driver")
    published = ", ".join(f"{name} {milliseconds} ms" for name, milliseconds in PUBLISHED.items())
    comparison = Comparison(
        name=f"gpu_{arguments.model}",
        what=f"{arguments.model} on {arguments.device}: encoding, and everything on the replay workload",
        groups=plans(arguments.work, arguments.model, arguments.device, arguments.points_per_side),
        targets=[Target(f"{OURS}, {what}", f"{REFERENCE}, {what}", 1.0) for what in ("encode", "everything")],
        rounds=arguments.rounds,
        notes=[f"published by segment-anything-fast for vit_h on an A100, a picture in batches of 32: {published}"],
    )
    run_comparison(comparison, arguments)


def has_cuda() -> bool:
    """Return whether torch sees a CUDA device."""
    if find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


if __name__ == "__main__":
    main()
