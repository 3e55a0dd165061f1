# SPDX-License-Identifier: Apache-2.0
"""Sides of a comparison, each in a process of its own, called in turn so that the machine's moods meet all alike.

The parent holds no model and imports no runtime. A side's process makes its subject, runs it once to warm up (that is
its cold call), and then once a round. So there is one process tree, one thing runs at a time, and the peak memory of
every side is that of its own process.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prepared import side_environment

PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class SidePlan:
    """One side: a name for the table, the class of `benchmarks.subjects` that makes it, and what that class takes."""

    name: str
    subject: str
    parameters: dict[str, Any]
    needs: tuple[str, ...] = ()
    """Files of the work folder that must be there first, as `benchmarks.prepared.WorkFolder.need` takes them."""
    rounds: int | None = None
    """Rounds that it takes part in, if fewer than the others'."""
    block: int | None = None
    """Calls in a round, if fewer than the others'."""
    warm_up: int = 1
    """Calls that do not count; with 0 the one cold call counts."""


@dataclass
class SideFigures:
    """What was measured of a side; all seconds are those of one call."""

    name: str
    described: dict[str, Any]
    load_s: float
    cold_s: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    agreement: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def median_s(self) -> float:
        """Median of the calls that count."""
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for `json.dumps`, rounded to what they are good for."""
        row = asdict(self)
        row["seconds"] = [float(f"{value:.4g}") for value in self.seconds]
        row["median_s"] = float(f"{self.median_s:.4g}")
        row["load_s"] = round(self.load_s, 2)
        row["cold_s"] = None if self.cold_s is None else float(f"{self.cold_s:.4g}")
        row["peak_mb"] = round(row.pop("peak_bytes") / 1e6, 1)
        return row


class SideFailed(Exception):
    """A side that could not be started or did not finish; the others go on."""


class SideProcess:
    """A running side."""

    def __init__(self, plan: SidePlan, threads: int) -> None:
        # Native libraries read these when they start; the subjects set what can be set from within as well.
        environment = side_environment(Path(plan.parameters["work"])) if "work" in plan.parameters else {**os.environ}
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "benchmarks.side_process", plan.subject]
        parameters = {**plan.parameters, "threads": threads}
        self.plan = plan
        self._process = subprocess.Popen(
            [*command, json.dumps(parameters)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )
        try:
            ready = self._hear()
        except SideFailed:
            self.close()
            raise
        self.figures = SideFigures(plan.name, ready["described"], ready["load_s"])

    def call(self, *, counts: bool = True) -> float:
        """Run the side once and book the time."""
        answer = self._ask(do="call")
        seconds = float(answer["seconds"])
        if counts:
            self.figures.seconds.append(seconds)
        if self.figures.cold_s is None:
            self.figures.cold_s = seconds
        self.figures.peak_bytes = answer["peak_bytes"]
        self.figures.extra = answer["figures"]
        return seconds

    def answer(self) -> dict[str, Any]:
        """Return the arrays of the last call."""
        with tempfile.TemporaryDirectory(prefix="segship-bench-") as folder:
            path = Path(folder) / "answer.npz"
            self._ask(do="answer", path=str(path))
            with np.load(path) as arrays:
                return dict(arrays)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # It has ended; what it left is read, and then its status is told.
            pass
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SideFailed(f"{self.plan.name} ended with status {self._process.wait()}; its errors stand above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def compare_sides(
    plans: Sequence[SidePlan], *, rounds: int, threads: int, block: int = 1, compare: bool = True
) -> list[SideFigures]:
    """Run sides in turn, round after round, and print each number as it comes.

    Parameters
    ----------
    plans
        The first is what the answers of the others are compared with.
    rounds
        Calls of each side that count.
    threads
        Threads of every side.
    block
        Calls of a side in a round, all of which count. Above 1, one more comes before them that does not: short calls
        find the caches full of another side's data.
    compare
        Whether the sides' answers are compared.
    """
    sides: list[SideProcess] = []
    try:
        for plan in plans:
            _keep_those_that_work(sides, lambda plan=plan: sides.append(SideProcess(plan, threads)))  # type: ignore[misc]
        for side in list(sides):
            _keep_those_that_work(sides, lambda side=side: _warm_up(side), side)  # type: ignore[misc]
        for number in range(rounds):
            for side in list(sides):
                if number < (side.plan.rounds or rounds):
                    _keep_those_that_work(sides, lambda side=side: _run(side, number, side.plan.block or block), side)  # type: ignore[misc] # noqa: B023
        if compare:
            _compare(sides)
        return [side.figures for side in sides if side.figures.seconds]
    finally:
        for side in sides:
            side.close()


def _keep_those_that_work(
    sides: list[SideProcess], work: Callable[[], object], side: SideProcess | None = None
) -> None:
    """Do something with a side; one that fails is told and leaves the comparison."""
    try:
        work()
    except SideFailed as error:
        print(f"  LEFT OUT: {error}", flush=True)
        if side is not None:
            side.close()
            sides.remove(side)


def _warm_up(side: SideProcess) -> None:
    for _ in range(side.plan.warm_up):
        side.call(counts=False)
    cold = "" if side.figures.cold_s is None else f", first call {1e3 * side.figures.cold_s:,.1f} ms"
    print(f"  {side.plan.name}: loaded in {side.figures.load_s:.1f} s{cold}", flush=True)


def _run(side: SideProcess, number: int, block: int) -> None:
    # Threads of the runtime that ran last look for work for a while before they sleep.
    time.sleep(PAUSE_SECONDS)
    if block > 1:
        side.call(counts=False)
    seconds = [side.call() for _ in range(block)]
    print(f"  round {number + 1}: {side.plan.name}: {1e3 * statistics.median(seconds):,.2f} ms", flush=True)


def _compare(sides: Sequence[SideProcess]) -> None:
    expected: dict[str, Any] = {}
    for side in sides:
        answer = side.answer()
        expected = expected or answer
        side.figures.agreement = agreement(expected, answer)


def agreement(expected: dict[str, Any], answer: dict[str, Any]) -> dict[str, float]:
    """Return of each tensor of both sides how far it differs: root mean square against that of what is expected.

    For bool arrays it is the mean IoU over the leading axes, for names that end in ``_set`` the part that both share.
    """
    found = {}
    for name in expected.keys() & answer.keys():
        first, second = expected[name], answer[name]
        if name.endswith("_set"):
            shared = len(np.intersect1d(first, second))
            found[name] = round(2 * shared / max(1, len(first) + len(second)), 4)
            continue
        if first.shape != second.shape:
            raise SystemExit(f"{name} has shape {second.shape} on one side and {first.shape} on the other")
        if first.dtype == np.bool_:
            shared, both = (first & second).sum(axis=(-2, -1)), (first | second).sum(axis=(-2, -1))
            found[f"{name}_mean_iou"] = round(float(np.where(both, shared / np.maximum(both, 1), 1.0).mean()), 6)
            continue
        difference = np.sqrt(np.mean((first.astype(np.float64) - second) ** 2))
        scale = np.sqrt(np.mean(first.astype(np.float64) ** 2)) or 1.0
        found[f"{name}_relative_rmse"] = float(f"{difference / scale:.3g}")
    return found
