# SPDX-License-Identifier: Apache-2.0
"""Everything in a picture of 1800 x 1200, JPEG bytes to COCO RLE records, on the replay workload, side by side.

    python -m benchmarks.everything_replay [--model vit_b] [--work WORK] [--reference-repeats 1] [--rounds 3]
        [--points-per-side 32] [--peers fp32|fp32,bf16|none] [--ours openvino:int8] [--mode fast] [--only PART]

The seconds of each part of the last run are printed: reading, every session, and everything of ours around them. In
mode ``hierarchical`` hardly a point is left out: no two points of this workload find the same ellipse.

See `benchmarks.replay` for the workload; the seconds of drawing its ellipses are taken off on all sides. A run of the
reference takes minutes. vit_t has no peer on PyPI; its rows are ours alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from benchmarks.comparison import Bound, Comparison, Target, common_parser, run_comparison
from benchmarks.prepared import OURS
from benchmarks.sides import SidePlan
from segship.promptable.everything.options import Mode

REFERENCE = "reference, torch fp32"


def plans(
    work: str,
    model: str,
    points_per_side: int,
    peers: list[str],
    reference_repeats: int,
    engines: Sequence[tuple[str, str]] = OURS,
    mode: str = "fast",
) -> list[SidePlan]:
    """Return the sides."""
    shared = {"work": work, "model": model, "points_per_side": points_per_side}
    names = "benchmarks.subjects.replayed"
    references = [
        # Its encoder has run before; a whole run to warm up would take minutes and change nothing.
        SidePlan(
            f"reference, torch {precision}",
            f"{names}:Reference",
            {**shared, "precision": precision},
            needs=("checkpoint", "photo"),
            rounds=reference_repeats,
            warm_up=0,
        )
        for precision in peers
    ]
    ours = [
        SidePlan(
            f"segship, {engine} {precision}",
            f"{names}:Ours",
            {**shared, "engine": engine, "precision": precision, "mode": mode},
            needs=(f"ours:{engine}:{precision}", "photo"),
        )
        for engine, precision in engines
    ]
    return references + ours


def targets() -> list[Target]:
    """Return what must hold of the best side."""
    return [
        Target("segship, openvino bf16", REFERENCE, 20.0, aim=30.0),
    ]


def main() -> None:
    """Measure, print and save."""
    parser = common_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference-repeats", type=int, default=1)
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--peers", default="fp32", help="precisions of the reference, comma-separated, or none")
    parser.add_argument("--ours", nargs="+", default=[":".join(side) for side in OURS], help="ENGINE:PRECISION")
    parser.add_argument("--mode", choices=get_args(Mode), default="fast")
    arguments = parser.parse_args()
    engines = [(engine, precision) for engine, precision in (side.split(":") for side in arguments.ours)]
    peers = [] if arguments.peers == "none" or arguments.model == "vit_t" else arguments.peers.split(",")
    points = arguments.points_per_side
    comparison = Comparison(
        name=f"everything_replay_{arguments.model}",
        what=f"{arguments.model}, everything at {points**2:,} points of a 1800 x 1200 JPEG, replay workload",
        groups=[
            plans(arguments.work, arguments.model, points, peers, arguments.reference_repeats, engines, arguments.mode)
        ],
        targets=targets(),
        bounds=[Bound("segship, openvino bf16", 6.0), Bound("segship, openvino bf16", 1200, of="peak_mb")],
        rounds=arguments.rounds,
        notes=["records_set is the part of all masks of both sides that are equal bit for bit"],
    )
    run_comparison(comparison, arguments)


if __name__ == "__main__":
    main()
