# SPDX-License-Identifier: Apache-2.0
"""Image encoders side by side: the reference in torch, plain exports in three engines, ours in two.

    python -m benchmarks.encoders --model vit_b|vit_t [--work WORK] [--rounds 5] [--threads 2] [--only PART]

Every side has the same weights and the same prepared image, and runs in a process of its own; one call of each after
the other makes a round. The sides come in groups, since all at once would not fit into memory.
"""

from __future__ import annotations

from benchmarks.comparison import Comparison, Target, common_parser, run_comparison
from benchmarks.sides import SidePlan

REFERENCE = "reference, torch fp32"


def plans(work: str, model: str) -> list[list[SidePlan]]:
    """Return the groups of sides."""
    shared = {"work": work, "model": model}

    def reference(precision: str, rounds: int | None = None) -> SidePlan:
        parameters = {**shared, "precision": precision}
        subject = "benchmarks.subjects.reference:Encoder"
        return SidePlan(f"reference, torch {precision}", subject, parameters, ("checkpoint", "image"), rounds)

    def plain(engine: str, precision: str) -> SidePlan:
        parameters = {**shared, "engine": engine, "precision": precision}
        needs = ("mnn:plain_encoder" if engine == "mnn" else "plain_encoder", "image")
        return SidePlan(f"plain export, {engine} {precision}", "benchmarks.subjects.engines:Encoder", parameters, needs)

    def ours(engine: str, precision: str) -> SidePlan:
        parameters = {**shared, "engine": engine, "precision": precision}
        needs = (f"ours:{engine}:{precision}", "image")
        return SidePlan(f"segship, {engine} {precision}", "benchmarks.subjects.ours:Encoder", parameters, needs)

    # Many seconds a call, so fewer of them.
    few = None if model in ("vit_t", "small") else 3
    return [
        [plain("onnxruntime", "fp32"), ours("onnxruntime", "fp32")],
        [
            reference("fp32", few),
            reference("bf16", few),
            plain("openvino", "fp32"),
            plain("openvino", "bf16"),
            ours("openvino", "fp32"),
            ours("openvino", "bf16"),
        ],
        [ours("onnxruntime", "fp32"), plain("mnn", "fp32")],
    ]


def targets(model: str) -> list[Target]:
    """Return what must hold."""
    if model == "vit_t":
        return [Target("segship, openvino bf16", REFERENCE, 8.0)]
    return [
        Target("segship, onnxruntime fp32", "plain export, onnxruntime fp32", 1.0),
        Target("segship, onnxruntime fp32", "plain export, onnxruntime fp32", 3.0, of="peak_mb"),
        Target("segship, openvino bf16", REFERENCE, 9.5),
    ]


def main() -> None:
    """Measure, print and save."""
    parser = common_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    comparison = Comparison(
        name=f"encoders_{arguments.model}",
        what=f"{arguments.model} encoder, one image of the model's size",
        groups=plans(arguments.work, arguments.model),
        targets=targets(arguments.model),
        rounds=arguments.rounds,
    )
    run_comparison(comparison, arguments)


if __name__ == "__main__":
    main()
