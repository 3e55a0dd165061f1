# SPDX-License-Identifier: Apache-2.0
"""Measure every installed backend on a bundle, on this machine, and write the result into the bundle's manifest.

Stands beside both roads: an export ends with it, and whoever carries a bundle to another machine runs it there, without
torch. Backends are held, on the cases of the export, against the graphs in ONNX Runtime in fp32, or against the model
itself where an export has its answers at hand. `segship.backends.choice` decides by what is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from segship.backends import BACKENDS, DEFAULT_BACKEND, backends_of, installed_version, load_backend
from segship.backends.choice import processor_name
from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions, Session, thread_count
from segship.bench.fresh import run_fresh
from segship.bundle import Bundle
from segship.bundle.evidence import EXACT, FIGURES, Check, Choice, Evidence, Figures
from segship.bundle.folder import renew_file
from segship.bundle.manifest import MANIFEST_FILE, Manifest, task_module
from segship.catalog import find_model
from segship.errors import BackendUnavailable, InputError, SegshipError, shown
from segship.images.reading import demo_photograph
from segship.machine import usable_cores
from segship.options import check_types, check_whole

ROUNDS = 2
"""Times that every backend has its turn. Whatever else a machine does only ever adds time, and comes and goes; so the
fastest run counts, and of two turns some minutes apart."""
LEAST_REPEATS = 5
"""Timed runs of a stage of a few milliseconds, whatever was asked for."""
_BRIEF_MS = 50


class Known(NamedTuple):
    """Cases of a bundle that were answered already.

    ``expected`` are the answers that backends are held against, and ``found`` those of ONNX Runtime in fp32.
    """

    cases: Any
    expected: Any
    found: Any


Report = Callable[[Check], None]
"""Called with every check when it is done."""


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """How backends are measured.

    Attributes
    ----------
    threads
        Threads of the runtimes; all usable cores when left out.
    repeats
        Timed runs of each of two rounds, of which the fastest counts.
    """

    threads: int | None = None
    repeats: int = 3

    def __post_init__(self) -> None:
        check_types(self)
        check_whole(self, 1, 1_000_000, "repeats")


def tune_bundle(
    model: str | Path,
    options: TuneOptions | None = None,
    report: Report | None = None,
    *,
    out: Path | None = None,
    known: Known | None = None,
) -> Bundle:
    """Measure the backends on a bundle and write what was found into its manifest, in place or into a copy.

    Parameters
    ----------
    model
        A bundle's folder, or a name of `segship.load`.
    options
        See `TuneOptions`.
    report
        See `Report`.
    out
        Folder for a copy; without it the manifest is replaced.
    known
        Answers that an export has already, of the model itself; those of the graphs in ONNX Runtime when left out.

    Raises
    ------
    InputError
        ``bundle_in_package`` for the model inside the package, whose files are not changed: name a copy with ``out``.
    BundleError
        When the bundle cannot be used.
    OutputError
        When the manifest cannot be written.
    """
    bundle = Bundle.read(find_model(model))

    def renewed() -> bytes:
        return replace(bundle.manifest, checks=measure(bundle, options, report, known), choice=None).to_json()

    return renew_file(bundle, MANIFEST_FILE, renewed, out)


def measure(
    bundle: Bundle,
    options: TuneOptions | None = None,
    report: Report | None = None,
    known: Known | None = None,
    *,
    precisions: Collection[str] | None = None,
) -> tuple[Check, ...]:
    """Compare and time every installed backend that runs graphs, in every precision that it has here, or in some.

    Each is loaded alone, so that idle threads of one do not slow the next.
    """
    options = options or TuneOptions()
    known = known or _answer(bundle, options)
    checks: list[Check] = []
    rivals = candidates(bundle.manifest)
    for backend, precision in (rival for rival in rivals if precisions is None or rival[1] in precisions):
        checks.append(_check(bundle, backend, precision, known, options))
        if report is not None:
            report(checks[-1])
    for _ in range(ROUNDS - 1):
        checks = [_time_again(bundle, check, options) for check in checks]
    return tuple(checks)


def _answer(bundle: Bundle, options: TuneOptions) -> Known:
    task = task_module(bundle.manifest.task)
    cases = task.cases(bundle.manifest)
    held = [artifact.precision for artifact in bundle.manifest.artifacts]
    # A bundle of another precision alone is held against itself in ONNX Runtime.
    with _opened(bundle, DEFAULT_BACKEND, EXACT if EXACT in held else held[0], options) as sessions:
        expected = task.answer(cases, sessions)
    return Known(cases, expected, expected)


def candidates(manifest: Manifest | None = None) -> tuple[tuple[str, str], ...]:
    """Return every backend that runs graphs on this processor and is installed, with every precision that it has here.

    Those of a bundle's artifacts are among them, where its manifest is given; without float32 graphs, they are all.
    """
    held = ["fp32"] if manifest is None else [artifact.precision for artifact in manifest.artifacts]
    found: list[tuple[str, str]] = []
    needed = () if manifest is None else manifest.graph_sets[0]
    for backend in backends_of():
        row = BACKENDS[backend]
        if row.processor and installed_version(backend) is not None and row.runs(needed):
            try:
                own = load_backend(backend).precisions() if "fp32" in held else ()
                lower = held if row.lower else ()
                found.extend((backend, precision) for precision in dict.fromkeys((*own, *lower)))
            except BackendUnavailable:
                # Installed and broken: `segship doctor` says how; it is no candidate.
                continue
    return tuple(found)


@contextmanager
def _opened(bundle: Bundle, backend: str, precision: str, options: TuneOptions) -> Iterator[dict[str, Session]]:
    with ExitStack() as stack:
        run = RunOptions(backend=backend, threads=options.threads, precision=precision)
        sessions = open_sessions(bundle, run)
        yield {name: stack.enter_context(session) for name, session in sessions.items()}


def _check(bundle: Bundle, backend: str, precision: str, known: Known, options: TuneOptions) -> Check:
    """Hold one backend in one precision against what is expected, and time it."""
    task = task_module(bundle.manifest.task)
    bar = task.bar(precision)
    check = Check(
        backend=backend,
        version=installed_version(backend) or "unknown",
        precision=precision,
        cpu=processor_name(),
        threads=thread_count(RunOptions(threads=options.threads)),
        timings_ms={},
        timed=task.timed(bundle.manifest),
        evidence=Evidence(dict(bar), ()),
        passed=False,
    )
    try:
        # Once before, so that compiling is not counted, which happens once on a machine.
        with _opened(bundle, backend, precision, options):
            pass
        started = time.perf_counter()
        with _opened(bundle, backend, precision, options) as sessions:
            load_ms = round(1e3 * (time.perf_counter() - started), 1)
            found = known.found
            if (backend, precision) != (DEFAULT_BACKEND, EXACT):
                found = task.answer(known.cases, sessions, known.expected)
            rows = task.compare(f"{backend} {precision}", known.cases, known.expected, found, bar)
            timings = _time(bundle, sessions, options.repeats)
    except SegshipError as error:
        return replace(check, problem=str(error)[:4096])
    return replace(
        check,
        timings_ms={"load": load_ms, **timings},
        evidence=Evidence(dict(bar), tuple(rows)),
        passed=all(row.passed for row in rows),
    )


def _time_again(bundle: Bundle, check: Check, options: TuneOptions) -> Check:
    if not check.timings_ms:
        return check
    with _opened(bundle, check.backend, check.precision, options) as sessions:
        again = _time(bundle, sessions, options.repeats)
    fastest = {name: min(check.timings_ms[name], found) for name, found in again.items()}
    return replace(check, timings_ms={**check.timings_ms, **fastest})


def _time(bundle: Bundle, sessions: dict[str, Session], repeats: int) -> dict[str, float]:
    """Return the fewest milliseconds of everything that the task times, by name."""
    found: dict[str, float] = {}
    for name, call in task_module(bundle.manifest.task).timings(bundle.manifest, sessions).items():
        # The first run of a session, and of a number of objects, plans its memory and is no measure.
        first = _milliseconds(call)
        runs = max(repeats, LEAST_REPEATS) if first < _BRIEF_MS else repeats
        found[name] = round(min(_milliseconds(call) for _ in range(runs)), 2)
    return found


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


# Under a budget


@dataclass(frozen=True, slots=True)
class Budget:
    """What a choice must keep.

    Attributes
    ----------
    least
        Figures of `segship.bundle.evidence.FIGURES` and their least values, such as ``mask_iou_mean``.
    memory_bytes
        The most that a process may take for a first answer.
    latency_ms
        The most milliseconds that what the task times may take.

    Where no figure is named, what is taken has to have passed its comparison.
    """

    least: Mapping[str, float]
    memory_bytes: int | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name, value in self.least.items():
            if FIGURES.get(name) != "at least" or not isinstance(value, Real) or not 0 <= value <= 1:
                able = ", ".join(figure for figure, how in FIGURES.items() if how == "at least")
                message = f"the budget has {name}={shown(repr(value))}; accepted are numbers from 0 to 1 for {able}"
                raise InputError(message, code="bad_option")
        if not self.limits or any(
            not 0 < value < math.inf for value in (self.memory_bytes, self.latency_ms) if value is not None
        ):
            raise InputError("the budget has no bound above 0; give one, such as mask_iou=0.985", code="bad_option")

    @property
    def limits(self) -> dict[str, float]:
        """All bounds by name."""
        upper = {"memory_bytes": self.memory_bytes, "latency_ms": self.latency_ms}
        return {**self.least, **{name: float(value) for name, value in upper.items() if value is not None}}

    def excess(self, trial: Trial) -> dict[str, float]:
        """Return by which part of it a trial breaks each bound that it does not keep."""
        found = {}
        for name, bound in self.limits.items():
            figure = trial.figures.get(name)
            past = math.inf if figure is None else (bound - figure if name in self.least else figure - bound)
            if past > 0:
                found[name] = past / max(bound, 1e-9)
        if not self.least and not trial.check.passed:
            found["comparison"] = 1.0
        return found


@dataclass(frozen=True, slots=True)
class Trial:
    """One backend in one precision on so many threads.

    ``figures`` has the figures of agreement with fp32, the worst of all rows, ``latency_ms``, ``memory_bytes`` (the
    peak of a process of its own, up to its first answer) and ``bytes`` of the artifacts.
    """

    check: Check
    figures: Mapping[str, float]

    def __str__(self) -> str:
        told = ", ".join(f"{name} {value:.5g}" for name, value in self.figures.items())
        return f"{self.check.backend} {self.check.precision} on {self.check.threads} threads: {told}"


def tune_budget(
    model: str | Path,
    budget: Budget,
    options: TuneOptions | None = None,
    report: Report | None = None,
    *,
    out: Path | None = None,
) -> tuple[Bundle, tuple[Trial, ...]]:
    """Try everything that runs a bundle here, and write the fastest that keeps a budget into its manifest.

    ``load(..., backend="auto", precision="auto")`` follows it on this machine. Options, ``out`` and errors are those of
    `tune_bundle`; without ``threads`` one thread and all cores are tried.

    Raises
    ------
    InputError
        ``over_budget`` when nothing keeps the budget, with the nearest; ``bad_option`` for a figure that is not
        measured of the bundle's task; nothing is written then.
    """
    options = options or TuneOptions()
    bundle = Bundle.read(find_model(model))
    counts = sorted({1, usable_cores()}) if options.threads is None else [options.threads]
    checks: tuple[Check, ...] = ()
    trials: list[Trial] = []

    def told(check: Check) -> None:
        _require_measured(check, budget, bundle.manifest.task)
        if report is not None:
            report(check)

    def renewed() -> bytes:
        nonlocal checks
        for threads in counts:
            checks = measure(bundle, replace(options, threads=threads), told)
            trials.extend(_trial(bundle, check) for check in checks if check.timings_ms)
        choice = choose(trials, budget)
        return replace(bundle.manifest, checks=checks, choice=choice).to_json()

    return renew_file(bundle, MANIFEST_FILE, renewed, out), tuple(trials)


def _require_measured(check: Check, budget: Budget, task: str) -> None:
    """Refuse figures that a task does not have when the first backend is done, and not after all of them."""
    known = {name for row in check.evidence.rows for name in row.figures if FIGURES[name] == "at least"}
    missing = sorted(budget.least.keys() - known)
    if known and missing:
        message = f"the budget has {', '.join(missing)}, which is not measured of {task} models; accepted are "
        raise InputError(message + ", ".join(sorted(known)), code="bad_option")


def choose(trials: Sequence[Trial], budget: Budget) -> Choice:
    """Return the fastest trial that keeps a budget, or refuse as ``over_budget`` with the nearest."""
    fitting = [trial for trial in trials if not budget.excess(trial)]
    if not fitting:
        nearest = min(trials, key=lambda trial: sum(budget.excess(trial).values()), default=None)
        told = "nothing ran at all" if nearest is None else f"the nearest is {nearest}"
        asked = ", ".join(f"{name} {bound:g}" for name, bound in budget.limits.items())
        message = f"none of {len(trials)} that were tried keeps the budget {asked}; {told}; ask for less, or quantize"
        raise InputError(message, code="over_budget")
    best = min(fitting, key=lambda trial: trial.figures["latency_ms"])
    named: Figures = {name: best.figures[name] for name in (*budget.limits, "bytes")}
    check = best.check
    return Choice(
        check.backend, check.version, check.precision, check.cpu, check.threads, dict(budget.limits), named, len(trials)
    )


def pareto_front(trials: Sequence[Trial], accuracy: str) -> list[Trial]:
    """Return the trials that no other one beats in a figure of accuracy, latency, memory and size at once."""

    def costs(trial: Trial) -> tuple[float, ...]:
        upper = (trial.figures[name] for name in ("latency_ms", "memory_bytes", "bytes"))
        return (-trial.figures.get(accuracy, -math.inf), *upper)

    def beats(one: Trial, other: Trial) -> bool:
        pairs = list(zip(costs(one), costs(other), strict=True))
        return all(mine <= theirs for mine, theirs in pairs) and any(mine < theirs for mine, theirs in pairs)

    return [trial for trial in trials if not any(beats(other, trial) for other in trials)]


def _trial(bundle: Bundle, check: Check) -> Trial:
    run = RunOptions(backend=check.backend, precision=check.precision, threads=check.threads, accept_accuracy=True)
    worst: dict[str, float] = {}
    for name, figure in ((name, figure) for row in check.evidence.rows for name, figure in row.figures.items()):
        if FIGURES[name] == "at least":
            worst[name] = min(worst.get(name, math.inf), -math.inf if figure is None else figure)
    is_semantic = bundle.manifest.task == "semantic"
    scenario, more = ("segment", {"batch": 1}) if is_semantic else ("click", {})
    parameters = {"model": str(bundle.path), "photo": str(demo_photograph()), **more}
    peak = max(row.peak_bytes for row in run_fresh(scenario, parameters, run, processes=1))
    size = sum(bundle.manifest.artifact(spec.name, check.precision).all_bytes for spec in bundle.manifest.graphs)
    return Trial(check, {**worst, "latency_ms": check.milliseconds, "memory_bytes": float(peak), "bytes": float(size)})


def draw_trials(trials: Sequence[Trial], accuracy: str) -> str:
    """Return accuracy over latency as an SVG document: a circle each, filled on the Pareto front, large as memory."""
    front = pareto_front(trials, accuracy)
    slowest = max(trial.figures["latency_ms"] for trial in trials)
    largest = max(trial.figures["memory_bytes"] for trial in trials)
    agree = {id(trial): max(trial.figures.get(accuracy, 0.0), 0.0) for trial in trials}
    least, timed = min(agree.values()), escape(trials[0].check.timed)
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="860" height="460">',
        "<style>text{font:12px system-ui,sans-serif;fill:#222}</style>",
        '<rect width="860" height="460" fill="#fff"/>',
        f'<text x="60" y="24">{accuracy} over milliseconds for {timed}; area: peak memory</text>',
    ]
    for trial in trials:
        x = 60 + 560 * trial.figures["latency_ms"] / slowest
        y = 50 + 360 * (1 - agree[id(trial)]) / max(1 - least, 1e-9)
        radius = 3 + 9 * math.sqrt(trial.figures["memory_bytes"] / largest)
        color = "#2f6f9f" if trial in front else "none"
        told = f"{trial.check.backend} {trial.check.precision}, {trial.check.threads} threads"
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{color}" stroke="#222"/>')
        lines.append(f'<text x="{x + 14:.1f}" y="{y + 4:.1f}">{escape(told)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"
