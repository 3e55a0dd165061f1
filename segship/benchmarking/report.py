# SPDX-License-Identifier: Apache-2.0
"""What was measured, always beside the machine, the versions, the precision and the threads that did it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from segship.benchmarking.timing import Timing
from segship.errors import InputError
from segship.machine import Machine


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One thing that was called again and again in a warm process.

    Attributes
    ----------
    name
        The stage, or the graph with its sizes.
    kind
        ``stage``: through the public functions; ``graph``: one graph alone, inputs and outputs only.
    threads
        Threads of the runtime.
    timing
        The milliseconds.
    detail
        Sizes, such as ``objects`` and ``points``, or the shapes of inputs; what it took for.
    """

    name: str
    kind: str
    threads: int
    timing: Timing
    detail: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the row for `json.dumps`."""
        head = {"name": self.name, "kind": self.kind, "threads": self.threads}
        return {**head, **self.timing.to_dict(), "detail": self.detail}


@dataclass(frozen=True, slots=True)
class FreshRow:
    """What a fresh process had done, when, and with how much memory: medians of several processes.

    Attributes
    ----------
    scenario
        What the process was for, such as ``click``.
    event
        What it had just done.
    threads
        Threads of the runtime.
    milliseconds
        Since the process was started.
    peak_bytes
        The most memory that it had held by then.
    processes
        How many were started.
    """

    scenario: str
    event: str
    threads: int
    milliseconds: float
    peak_bytes: int
    processes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the row for `json.dumps`."""
        return {
            "scenario": self.scenario,
            "event": self.event,
            "threads": self.threads,
            "since_start_ms": round(self.milliseconds, 1),
            "peak_mb": round(self.peak_bytes / 1e6, 1),
            "processes": self.processes,
        }


@dataclass(frozen=True, slots=True, eq=False)
class BenchmarkReport:
    """Everything that was measured of one model or graph; there is none without machine, versions and precision.

    Attributes
    ----------
    target
        The model or graph, as it was given.
    kind
        ``model`` or ``graph``.
    machine
        Where it was measured.
    versions
        Package -> version, of everything that has a part in the numbers.
    runs_on
        What the backend says that it runs on.
    backend, precision
        What ran.
    rows, fresh
        The numbers.
    notes
        What was left out, and why.

    Raises
    ------
    InputError
        ``incomplete_report``: something that numbers must stand beside is not known.
    """

    target: str
    kind: str
    machine: Machine
    versions: dict[str, str]
    runs_on: str
    backend: str
    precision: str
    rows: tuple[BenchmarkRow, ...]
    fresh: tuple[FreshRow, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        missing = [
            name
            for name, value in (
                ("the name of the processor (give it with --machine-name)", self.machine.cpu),
                ("the versions", self.versions),
                ("what the backend runs on", self.runs_on),
                ("the precision", self.precision),
            )
            if not value
        ]
        missing += [f"the threads of {row.name}" for row in self.rows if row.threads < 1]
        if missing:
            raise InputError(
                f"no number is given out without what it was measured with; unknown here: {', '.join(missing)}",
                code="incomplete_report",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return everything for `json.dumps`."""
        return {
            "target": self.target,
            "kind": self.kind,
            "machine": self.machine.to_dict(),
            "versions": self.versions,
            "backend": self.backend,
            "precision": self.precision,
            "runs_on": self.runs_on,
            "rows": [row.to_dict() for row in self.rows],
            "fresh_processes": [row.to_dict() for row in self.fresh],
            "notes": list(self.notes),
        }
