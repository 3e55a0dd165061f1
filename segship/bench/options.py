# SPDX-License-Identifier: Apache-2.0
"""What is measured, and how often."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from segship.backends.session import RunOptions
from segship.errors import InputError, way
from segship.options import check_types

MOST = 1_000_000
"""Of anything that is counted; more is a slip of the hand."""

ArrayFormat = Literal["npy", "bin", "txt"]


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """How a model or a graph is measured.

    Attributes
    ----------
    run
        What runs it; its threads are left alone.
    threads
        Threads of the runtime, several to compare them; all usable cores when left out.
    stages
        Only stages that begin so: decode image, preprocess, encode, decode, everything, graph; of a semantic model
        decode image, preprocess, segment, graph.
    image
        Picture to measure on; a photograph of 1800 x 1200 when left out.
    objects
        Numbers of objects that are decoded together.
    points
        Points of each object.
    batch_sizes
        Images that the graph of an encoder or of a semantic model takes at once.
    points_per_side
        Points along one side of the grid of everything.
    warm_up
        Calls of each row that do not count.
    repeats
        Calls of each row that count.
    seconds
        Begin no further call of a row after this time.
    fresh
        Also start fresh processes, for cold start and peak memory.
    fresh_repeats
        Fresh processes of each kind; medians count.
    shapes
        For a single graph: shapes of the inputs, one set or gear a row; inputs that are left out take ``sizes``.
    sizes
        For a graph: sizes to measure of a named dynamic axis. Axes of a single graph that are left out are 1; height
        and width of a semantic bundle are the longest sides of its test scale.
    inputs
        For a single graph: folder of .npy or raw .bin files to run through it; one folder for each input if it has
        several.
    outputs
        Folder for what comes out of those files.
    output_format
        ``npy``, ``bin`` (raw) or ``txt``.
    machine_name
        Name of the processor where the system does not say it.
    """

    run: RunOptions = RunOptions()
    threads: tuple[int, ...] = ()
    stages: tuple[str, ...] = ()
    image: Path | None = None
    objects: tuple[int, ...] = (1, 8, 64)
    points: int = 1
    batch_sizes: tuple[int, ...] = (1,)
    points_per_side: int = 32
    warm_up: int = 2
    repeats: int = 20
    seconds: float = 10.0
    fresh: bool = True
    fresh_repeats: int = 3
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Path | None = None
    outputs: Path | None = None
    output_format: ArrayFormat = "npy"
    machine_name: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        numbers = {
            "threads": self.threads,
            "objects": self.objects,
            "batch_sizes": self.batch_sizes,
            "points": (self.points,),
            "points_per_side": (self.points_per_side,),
            "repeats": (self.repeats,),
            "fresh_repeats": (self.fresh_repeats,),
            **{f"size {name}": values for name, values in self.sizes.items()},
            **{f"shape of {name}": shape for shapes in self.shapes for name, shape in shapes.items()},
        }
        for name, values in numbers.items():
            for value in values:
                if not 1 <= value <= MOST:
                    raise _bad(f"{name} is {value}; it must be 1 or more, and at most {MOST}")
        if not 0 <= self.warm_up <= MOST:
            raise _bad(f"warm_up is {self.warm_up}; it must be 0 or more, and at most {MOST}")
        if not 0 < self.seconds < math.inf:
            raise _bad(f"seconds is {self.seconds}; it must be above 0 and finite")
        if self.outputs is not None and self.inputs is None:
            raise _bad(
                "outputs were asked for without inputs; say which files to run: "
                + way("inputs=FOLDER", "--input FOLDER")
            )


def _bad(message: str) -> InputError:
    return InputError(f"the benchmark cannot be run: {message}", code="bad_benchmark_option")
