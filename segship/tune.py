# SPDX-License-Identifier: Apache-2.0
"""Measure every installed backend on a bundle, on this machine, and write the result into the bundle's manifest.

Stands beside both roads: an export ends with it, and whoever carries a bundle to another machine runs it there, without
torch. Backends are held, on the cases of the export, against the graphs in ONNX Runtime in fp32, or against the model
itself where an export has its answers at hand. `segship.backends.choice` decides by what is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from segship.backends import DEFAULT_BACKEND, backends_of, installed_version, load_backend
from segship.backends.choice import processor_name
from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions, Session, thread_count
from segship.bundle import Bundle
from segship.bundle.evidence import EXACT, Check, Evidence
from segship.bundle.folder import renew_file
from segship.bundle.manifest import MANIFEST_FILE, task_module
from segship.catalog import find_model
from segship.errors import BackendUnavailable, SegshipError
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
        return replace(bundle.manifest, checks=measure(bundle, options, report, known)).to_json()

    return renew_file(bundle, MANIFEST_FILE, renewed, out)


def measure(
    bundle: Bundle, options: TuneOptions | None = None, report: Report | None = None, known: Known | None = None
) -> tuple[Check, ...]:
    """Compare and time every installed backend that runs graphs, in every precision that this chip has.

    Each is loaded alone, so that idle threads of one do not slow the next.
    """
    options = options or TuneOptions()
    known = known or _answer(bundle, options)
    checks: list[Check] = []
    for backend, precision in candidates():
        checks.append(_check(bundle, backend, precision, known, options))
        if report is not None:
            report(checks[-1])
    for _ in range(ROUNDS - 1):
        checks = [_time_again(bundle, check, options) for check in checks]
    return tuple(checks)


def _answer(bundle: Bundle, options: TuneOptions) -> Known:
    task = task_module(bundle.manifest.task)
    cases = task.cases(bundle.manifest)
    with _opened(bundle, DEFAULT_BACKEND, EXACT, options) as sessions:
        expected = task.answer(cases, sessions)
    return Known(cases, expected, expected)


def candidates() -> tuple[tuple[str, str], ...]:
    """Return every backend that runs graphs and is installed, with every precision that it has on this chip."""
    found: list[tuple[str, str]] = []
    for backend in backends_of():
        if installed_version(backend) is not None:
            try:
                found.extend((backend, precision) for precision in load_backend(backend).precisions())
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
