# SPDX-License-Identifier: Apache-2.0
"""Time of each stage of one click in a warm process, and of the decoder at 1, 8 and 64 objects.

python -m benchmarks.stages [--model tiny|BUNDLE] [--repeats 20]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import segship
from benchmarks.machine import save_result
from segship.images import read_image

OBJECTS = (1, 8, 64)


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Return the median milliseconds of a call, after one call that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times), 2)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    predictor = segship.load(arguments.model)
    photo = segship.demo_photograph()
    pixels = read_image(photo).pixels
    embedding = predictor.encode(pixels)
    figures: dict[str, object] = {"runs_on": predictor.description, "image": "600 x 400 JPEG"}
    figures["read_ms"] = median_ms(lambda: read_image(photo), arguments.repeats)
    figures["encode_ms"] = median_ms(lambda: predictor.encode(pixels), arguments.repeats)
    rng = np.random.default_rng(0)
    for count in OBJECTS:
        points = rng.uniform(0, (600, 400), (count, 1, 2))
        prompts = segship.Prompts(points=points)
        decode = median_ms(lambda prompts=prompts: predictor.decode(embedding, prompts), max(3, arguments.repeats // 4))  # type: ignore[misc]
        figures[f"decode_{count}_objects_ms"] = decode
    print(figures)
    print(save_result(f"stages_{Path(arguments.model).name}", figures))


if __name__ == "__main__":
    main()
