# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a 1800 x 1200 JPEG to the encoder's input, side by side.

    python -m benchmarks.preprocess [--model vit_b] [--work WORK] [--rounds 7]

The peers are the reference's own steps, after the reader of its notebook (OpenCV) and after Pillow.
"""

from __future__ import annotations

from benchmarks.comparison import Bound, Comparison, Target, common_parser, run_comparison
from benchmarks.sides import SidePlan

BLOCK = 5


def plans(work: str, model: str) -> list[SidePlan]:
    """Return the sides."""
    shared = {"work": work, "model": model}
    names = "benchmarks.subjects.preprocess"
    readers = [
        SidePlan(f"reference, {reader}", f"{names}:Reference", {**shared, "reader": reader}, ("photo",))
        for reader in ("Pillow", "cv2")
    ]
    return [*readers, SidePlan("segship", f"{names}:Ours", shared, ("photo",))]


def main() -> None:
    """Measure, print and save."""
    parser = common_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    comparison = Comparison(
        name=f"preprocess_{arguments.model}",
        what=f"JPEG of 1800 x 1200 to the input of {arguments.model}",
        groups=[plans(arguments.work, arguments.model)],
        targets=[Target("segship", "reference, cv2", 1.0)],
        bounds=[Bound("segship", 0.012)],
        rounds=arguments.rounds,
        block=BLOCK,
    )
    run_comparison(comparison, arguments)


if __name__ == "__main__":
    main()
