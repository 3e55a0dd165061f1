# SPDX-License-Identifier: Apache-2.0
"""What is measured, and how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segship.errors import InputError

ArrayFormat = Literal["npy", "bin", "txt"]


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """How a model or a graph is measured.

    Attributes
    ----------
    backend, device, precision, streams, compile
        As `segship.load` takes them.
    threads
        Each number of threads is measured; none given: one for each usable core.
    stages
        Names of stages, or their beginnings, such as ``decode``; none given: all.
    image
        A picture to measure on; None is the demo photograph as a JPEG of 1800 x 1200.
    objects
        Numbers of objects that are decoded together.
    points
        Points of each object.
    batch_sizes
        Images that the graph of an encoder or of a semantic model takes at once.
    points_per_side
        Of the grid of the stage ``everything``.
    warm_up, repeats
        Calls of a row that do not count, and calls that do.
    seconds
        No call of a row is begun after this time, so that slow stages do not take minutes.
    fresh
        Also start fresh processes, for the cold start and the peak memory.
    fresh_repeats
        Fresh processes of each kind; the median counts.
    shapes
        For a single graph: one shape set, or gear, a row: input name -> shape. Inputs that are left out take ``sizes``.
    sizes
        For a graph: named dynamic axis -> the sizes to measure. Axes of a single graph that are left out are 1; the
        height and width of a semantic bundle are the longest sides of its test scale.
    inputs
        For a single graph: a folder of ``.npy`` or raw ``.bin`` files that are run through it, once each.
    outputs
        Where their results go; needs ``inputs``.
    output_format
        ``npy``, ``bin`` (raw) or ``txt``.
    machine_name
        Name of the processor where the system does not say it.
    """

    backend: str = "auto"
    device: str = "cpu"
    precision: str = "fp32"
    streams: int = 1
    compile: bool = False
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

    @property
    def session_settings(self) -> dict[str, Any]:
        """How a session is opened, but for its threads, fit for JSON."""
        return {
            "device": self.device,
            "precision": self.precision,
            "streams": self.streams,
            "compile": self.compile,
        }

    def __post_init__(self) -> None:
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
                if value < 1:
                    raise _bad(f"{name} is {value}; it must be 1 or more")
        if self.warm_up < 0:
            raise _bad(f"warm_up is {self.warm_up}; it must be 0 or more")
        if not self.seconds > 0:
            raise _bad(f"seconds is {self.seconds}; it must be above 0")
        if self.outputs is not None and self.inputs is None:
            raise _bad("outputs were asked for without inputs; say which files to run with --input FOLDER")


def _bad(message: str) -> InputError:
    return InputError(f"The benchmark cannot be run: {message}.", code="bad_benchmark_option")
