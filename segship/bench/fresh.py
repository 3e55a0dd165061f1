# SPDX-License-Identifier: Apache-2.0
"""What a fresh process takes: the time to its first answers, and the most memory that it has held."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segship.bench.report import FreshRow
from segship.errors import BackendUnavailable, SegshipError

if TYPE_CHECKING:
    from segship.backends.session import RunOptions, RunSettings

_STATUS = Path("/proc/self/status")


def peak_resident_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes.

    On Linux this is the kernel's high-water mark of this very program. What ``getrusage`` says begins at the size of
    the process that started this one, so a small program that a large one starts would seem large; it is used where
    there is nothing better.

    Raises
    ------
    BackendUnavailable
        ``no_memory_figure`` on systems that do not say.

    Examples
    --------
    >>> peak_resident_bytes() > 1_000_000
    True
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError as error:
        message = f"{sys.platform} does not say how much memory a process has held; leave the memory rows out"
        raise BackendUnavailable(message, code="no_memory_figure") from error
    # macOS counts bytes, others kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


Tell = Callable[[str], None]


def run_fresh(scenario: str, parameters: Mapping[str, Any], run: RunOptions, *, processes: int) -> list[FreshRow]:
    """Start processes one after the other and return the median of each event.

    The scenario is a key of `SCENARIOS`, its parameters are fit for JSON, and ``run`` has a number of threads. A
    process that does not finish is an error, ``fresh_failed``, with its last words.
    """
    assert run.threads is not None
    runs = [_run_once(scenario, {**parameters, "run": asdict(run)}) for _ in range(processes)]
    rows = []
    for index, (event, _, _) in enumerate(runs[0]):
        milliseconds = statistics.median(run[index][1] for run in runs)
        peak = int(statistics.median(run[index][2] for run in runs))
        rows.append(FreshRow(scenario, event, run.threads, milliseconds, peak, processes))
    return rows


def _run_once(scenario: str, parameters: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    command = [sys.executable, "-m", "segship.bench.fresh", scenario, json.dumps(parameters)]
    # One clock for all processes of the machine.
    started = time.monotonic()
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        words = (process.stderr.strip().splitlines() or ["no words"])[-1]
        raise BackendUnavailable(f"a fresh process for {scenario!r} failed: {words}", code="fresh_failed")
    events = [json.loads(line) for line in process.stdout.splitlines()]
    return [(event["event"], 1e3 * (event["at"] - started), event["peak_bytes"]) for event in events]


def _click(tell: Tell, model: str, photo: str, run: RunSettings) -> None:
    import segship

    tell("segship imported")
    predictor = segship.load(model, **run)
    tell("model loaded")
    embedding = predictor.encode(photo)
    tell("first image encoded")
    height, width = embedding.original_size
    point = segship.Prompts(points=[[width / 2, height / 2]])
    # Masks may be made when they are first looked at.
    assert predictor.decode(embedding, point).masks.size
    tell("first click decoded")
    predictor.encode(photo)
    tell("second image encoded")


def _everything(tell: Tell, model: str, photo: str, run: RunSettings, points_per_side: int) -> None:
    import segship

    predictor = segship.load(model, **run)
    tell("model loaded")
    segship.generate_masks(predictor, photo, segship.AmgOptions(points_per_side=points_per_side))
    tell("everything found")


def _segment(tell: Tell, model: str, photo: str, run: RunSettings, batch: int) -> None:
    import segship

    predictor = segship.load_semantic(model, **run)
    tell(f"model loaded, batch {batch}")
    predictor.segment_batch([photo] * batch)
    tell(f"first call of {batch}")
    predictor.segment_batch([photo] * batch)
    tell(f"second call of {batch}")


def _graph(tell: Tell, graph: str, run: RunSettings, shapes: Mapping[str, list[int]]) -> None:
    from segship.backends.opening import open_session
    from segship.backends.session import RunOptions
    from segship.bench.graphs import graph_spec, make_inputs

    path, options = Path(graph), RunOptions(**run)
    spec = graph_spec(path)
    inputs = make_inputs(spec, {name: tuple(shape) for name, shape in shapes.items()})
    tell("inputs made")
    opened = open_session(path, spec, options)
    tell("graph loaded")
    opened.run(inputs)
    tell("first run")
    opened.run(inputs)
    tell("second run")


SCENARIOS: dict[str, Callable[..., None]] = {
    "click": _click,
    "everything": _everything,
    "segment": _segment,
    "graph": _graph,
}
"""Name -> what the process does; a family's scenarios begin where its user would."""


def main(arguments: list[str]) -> int:
    """Do one scenario and print what was done when, as JSON lines; the end of the command line is its parameters."""

    def tell(event: str) -> None:
        entry = {"event": event, "at": time.monotonic(), "peak_bytes": peak_resident_bytes()}
        print(json.dumps(entry), flush=True)

    scenario, parameters = arguments
    try:
        SCENARIOS[scenario](tell, **json.loads(parameters))
    except SegshipError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
