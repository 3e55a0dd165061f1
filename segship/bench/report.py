# SPDX-License-Identifier: Apache-2.0
"""Numbers of a benchmark: calls timed, what was measured with what it must stand beside, and a chart of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import log
from typing import Any

import numpy as np

from segship.errors import InputError, way
from segship.machine import Machine


@dataclass(frozen=True, slots=True)
class Timing:
    """The milliseconds of every call that counts, in their order; a call handles so many items, images or objects."""

    milliseconds: tuple[float, ...]
    items: int = 1

    def percentile(self, percent: float) -> float:
        """Return the milliseconds that so many percent of the calls stay below, interpolated between calls.

        Examples
        --------
        >>> Timing((1.0, 2.0, 4.0)).percentile(50)
        2.0
        """
        return float(np.percentile(self.milliseconds, percent))

    @property
    def mean(self) -> float:
        """Mean milliseconds of a call."""
        return float(np.mean(self.milliseconds))

    @property
    def per_second(self) -> float:
        """Items a second: those of a call divided by its mean time."""
        return 1e3 * self.items / self.mean

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for `json.dumps`, in milliseconds but for ``per_second``."""
        return {
            "calls": len(self.milliseconds),
            "items_per_call": self.items,
            "p50_ms": _rounded(self.percentile(50)),
            "p90_ms": _rounded(self.percentile(90)),
            "p99_ms": _rounded(self.percentile(99)),
            "mean_ms": _rounded(self.mean),
            "min_ms": _rounded(min(self.milliseconds)),
            "max_ms": _rounded(max(self.milliseconds)),
            "per_second": _rounded(self.per_second),
        }


def measure(work: Callable[[], object], *, warm_up: int, repeats: int, seconds: float, items: int = 1) -> Timing:
    """Call something ``warm_up`` times uncounted, then up to ``repeats`` times but at least once, and return the times.

    After so many ``seconds`` no further call is begun, so that a slow stage does not take minutes.
    """
    begun = time.perf_counter()
    for _ in range(warm_up):
        work()
        if time.perf_counter() - begun > seconds:
            break
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < max(1, repeats) and (not times or time.perf_counter() - begun < seconds):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return Timing(tuple(times), items)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One thing that was called again and again in a warm process.

    The kind is ``stage``, through the public functions, or ``graph``, one graph alone with inputs and outputs only.
    ``detail`` has sizes, such as ``objects`` and ``points``, or the shapes of inputs.
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

    ``milliseconds`` are since the process was started, ``peak_bytes`` the most memory that it had held by then.
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

    The kind is ``model`` or ``graph``; ``versions`` are those of every package that has a part in the numbers,
    ``runs_on`` is what the backend says of itself, and ``notes`` say what was left out, and why.

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
                (
                    f"the name of the processor (give it with {way('machine_name=', '--machine-name')})",
                    self.machine.cpu,
                ),
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


WIDTH = 960
_LABELS = 330
_VALUES = 210
_ROW = 26
_BAR = 16
_HEAD = 84
_COLORS = {"stage": "#2f6f9f", "graph": "#c27a2c"}
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#222}"
    ".title{font-size:17px;font-weight:600}"
    ".small{font-size:11px;fill:#555}"
)


def draw_chart(report: BenchmarkReport) -> str:
    """Return the report's rows as an SVG document, with machine, versions, precision and threads in its head.

    Lengths are on a logarithmic scale, since stages differ by orders of magnitude.
    """
    height = _HEAD + _ROW * len(report.rows) + 34
    scale = _scale(report.rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        _text(12, 26, f"{report.target}: {report.runs_on}, {report.precision}", "title"),
        _text(12, 46, str(report.machine), "small"),
        _text(12, 62, ", ".join(f"{name} {number}" for name, number in report.versions.items()), "small"),
    ]
    for index, row in enumerate(report.rows):
        lines += _bar(row, _HEAD + _ROW * index, scale)
    lines.append(_text(12, height - 12, "bar: median; line: to p99; milliseconds, logarithmic", "small"))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _scale(rows: Sequence[BenchmarkRow]) -> Callable[[float], float]:
    """Return what turns milliseconds into pixels."""
    fastest = min((row.timing.percentile(50) for row in rows), default=1.0)
    slowest = max((row.timing.percentile(99) for row in rows), default=1.0)
    # A bar of the fastest row is still to be seen.
    low = log(max(fastest, 1e-6) / 3)
    pixels = (WIDTH - _LABELS - _VALUES) / max(log(max(slowest, 1e-6)) - low, 1e-9)
    return lambda milliseconds: max(1.0, (log(max(milliseconds, 1e-6)) - low) * pixels)


def _bar(row: BenchmarkRow, top: int, scale: Callable[[float], float]) -> list[str]:
    timing, middle = row.timing, top + _BAR / 2
    median, late = scale(timing.percentile(50)), scale(timing.percentile(99))
    color = _COLORS.get(row.kind, "#666")
    told = f"{timing.percentile(50):,.2f} ms, {timing.per_second:,.1f}/s"
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    return [
        _text(12, top + 13, f"{row.name}, {threads}", ""),
        f'<rect x="{_LABELS}" y="{top}" width="{median:.1f}" height="{_BAR}" rx="2" fill="{color}"/>',
        f'<line x1="{_LABELS + median:.1f}" x2="{_LABELS + late:.1f}" y1="{middle}" y2="{middle}" stroke="#222"/>',
        _text(_LABELS + late + 8, top + 13, told, ""),
    ]


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(text)}</text>'
