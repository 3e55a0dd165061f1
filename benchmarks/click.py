# SPDX-License-Identifier: Apache-2.0
"""One click on an encoded 1800 x 1200 image, from the point to three bool masks of the image's size, side by side.

    python -m benchmarks.click [--model vit_b] [--work WORK] [--rounds 7] [--only PART]

The peers are the reference's predictor in torch and its official ONNX decoder in ONNX Runtime with the threshold that
its notebook takes.
"""

from __future__ import annotations

from benchmarks.comparison import Comparison, Target, common_parser, run_comparison
from benchmarks.prepared import OURS
from benchmarks.sides import SidePlan

OFFICIAL = "official ONNX and threshold, onnxruntime fp32"

BLOCK = 5


def plans(work: str, model: str) -> list[SidePlan]:
    """Return the sides."""
    shared = {"work": work, "model": model}
    ours = "benchmarks.subjects.ours:Click"
    return [
        SidePlan(
            "reference, torch fp32",
            "benchmarks.subjects.reference:Click",
            {**shared, "precision": "fp32"},
            ("checkpoint", "embedding"),
        ),
        SidePlan(
            OFFICIAL,
            "benchmarks.subjects.engines:Click",
            {**shared, "precision": "fp32"},
            ("official_decoder", "embedding"),
        ),
        *(
            SidePlan(
                f"segship, {engine} {precision}",
                ours,
                {**shared, "engine": engine, "precision": precision},
                (f"ours:{engine}:{precision}", "photo"),
            )
            for engine, precision in OURS
        ),
    ]


def main() -> None:
    """Measure, print and save."""
    parser = common_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    comparison = Comparison(
        name=f"click_{arguments.model}",
        what=f"{arguments.model}, one click on an encoded image of 1800 x 1200",
        groups=[plans(arguments.work, arguments.model)],
        targets=[Target("segship, onnxruntime fp32", OFFICIAL, 2.5)],
        rounds=arguments.rounds,
        block=BLOCK,
    )
    run_comparison(comparison, arguments)


if __name__ == "__main__":
    main()
