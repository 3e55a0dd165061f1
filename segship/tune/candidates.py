# SPDX-License-Identifier: Apache-2.0
"""What is measured: every backend that runs graphs and is installed, in every precision; and how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from segship.backends import GRAPH_BACKENDS, load_backend
from segship.backends.choice import installed_version, processor_name
from segship.backends.session import SessionOptions, thread_count
from segship.bundle.measured import AnyCheck
from segship.errors import BackendUnavailable

ROUNDS = 2
"""Times that every backend has its turn. Whatever else a machine does only ever adds time, and comes and goes; so the
fastest run counts, and of two turns some minutes apart."""

Report = Callable[[AnyCheck], None]
"""Called with every check when it is done."""


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """How backends are measured.

    Attributes
    ----------
    threads
        Threads of the runtimes; all usable cores when left out.
    repeats
        Timed runs of each of two rounds, of which the fastest counts; the comparison before them warms up.
    """

    threads: int | None = None
    repeats: int = 3


def candidates() -> tuple[tuple[str, str], ...]:
    """Return every backend that runs graphs and is installed, with every precision that it has on this chip."""
    found: list[tuple[str, str]] = []
    for backend in GRAPH_BACKENDS:
        if installed_version(backend) is not None:
            try:
                found.extend((backend, precision) for precision in load_backend(backend).precisions_here())
            except BackendUnavailable:
                # Installed and broken: `segship doctor` says how; it is no candidate.
                continue
    return tuple(found)


def describe_candidate(backend: str, precision: str, options: TuneOptions) -> dict[str, Any]:
    """Return the first fields of a check: what was measured, and on what."""
    return {
        "backend": backend,
        "version": installed_version(backend) or "unknown",
        "precision": precision,
        "cpu": processor_name(),
        "threads": thread_count(SessionOptions(threads=options.threads)),
    }
