# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine that work on shards; they are watched, and started anew when they die.

A worker commits by itself, so that nothing is lost with the driver. It says which picture it is about to begin: a death
is noted with that picture, and one that has killed two workers is left out, with a reason, so that the rest of its
shard is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from segship.errors import BackendUnavailable, SegshipError
from segship.run.ledger import DEATHS, ISOLATED_AFTER, Ledger, Quarantined
from segship.run.plan import read_plan
from segship.run.stages import Occupancy, Schedule
from segship.run.storage import open_folder
from segship.run.work import Worker

# A worker that dies before it has begun anything cannot be helped by starting it again for ever.
_MOST_FAILED_STARTS = 3


class Executor(Protocol):
    """What works on shards of a run, in any order, until all are committed or something fails."""

    def run(self, place: str, shards: Iterable[int], told: Callable[[int], None]) -> None:
        """Work on shards; ``told`` is called with each that is committed."""


@dataclass(slots=True)
class LocalExecutor:
    """Works in so many processes of this machine.

    Attributes
    ----------
    workers
        How many.
    schedule
        How a worker's stages follow each other.
    occupancy
        How busy they were.
    """

    workers: int
    schedule: Schedule = "serial"
    occupancy: Occupancy = field(default_factory=Occupancy)
    _stop: threading.Event = field(default_factory=threading.Event)
    _errors: list[BaseException] = field(default_factory=list)

    def run(self, place: str, shards: Iterable[int], told: Callable[[int], None]) -> None:
        """Work on shards; errors are those of the first worker that failed.

        Raises
        ------
        SegshipError
            What a worker has raised, or ``worker_died`` when workers die without having begun anything.
        """
        waiting, lock = list(shards), threading.Lock()
        waiting.reverse()

        def next_shard() -> int | None:
            with lock:
                return waiting.pop() if waiting and not self._stop.is_set() else None

        threads = [threading.Thread(target=self._serve, args=(place, next_shard, told)) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self._stop.set()
            raise
        if self._errors:
            raise self._errors[0]

    def _serve(self, place: str, next_shard: Callable[[], int | None], told: Callable[[int], None]) -> None:
        process = Process(place, self.schedule, self.occupancy)
        try:
            while (shard := next_shard()) is not None:
                if not process.finish(shard, self._stop.is_set):
                    break
                told(shard)
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()
        finally:
            process.close()


@dataclass(frozen=True, slots=True)
class _Outcome:
    committed: bool
    item: str | None = None
    how: str = ""
    error: SegshipError | None = None


class Process:
    """One worker process, started when it is needed and anew when it has died; whoever holds it sees its deaths."""

    def __init__(self, place: str, schedule: Schedule = "serial", occupancy: Occupancy | None = None) -> None:
        self._place = place
        self._schedule = schedule
        self._occupancy = occupancy or Occupancy()
        self._folder = open_folder(place)
        self._ledger = Ledger(self._folder, read_plan(self._folder).shards)
        self._process: subprocess.Popen[str] | None = None

    def finish(self, shard: int, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Have a shard worked on until it is committed; returns False where it is over before.

        Raises
        ------
        SegshipError
            What the worker has raised, or ``worker_died`` when it dies again and again without having begun anything.
        """
        failed_starts = 0
        while not is_over():
            outcome = self._work(shard)
            if outcome.error is not None:
                raise outcome.error
            if outcome.committed:
                return True
            failed_starts = failed_starts + 1 if outcome.item is None else 0
            if failed_starts >= _MOST_FAILED_STARTS:
                message = f"workers die before they begin ({outcome.how}); look at what they print"
                raise BackendUnavailable(message, code="worker_died")
        return False

    def _work(self, shard: int) -> _Outcome:
        """Have one shard worked on once; a death is noted."""
        process, attempt, item = self._started(), self._ledger.begin(shard), None
        assert process.stdin is not None and process.stdout is not None
        notes = self._deaths(shard)
        skipped = [dict(zip(_SKIP_FIELDS, one, strict=True)) for one in _killers(notes)]
        # After a death pictures come one by one, so that it is clear which one the next belongs to.
        told = {"shard": shard, "skipped": skipped, "schedule": "serial" if notes else self._schedule}
        try:
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                said = json.loads(line)
                if "item" in said:
                    item = said
                elif "committed" in said:
                    self._occupancy.add(said["occupancy"])
                    return _Outcome(True)
                elif "error" in said:
                    return _Outcome(False, None, "", _error(said["error"]))
        except (BrokenPipeError, ValueError):
            process.kill()
        code = process.wait()
        process.stdout.close()
        # What was written to nobody is lost with it.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        self._process = None
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._ledger.note_death(shard, attempt, {"item": item, "how": how})
        return _Outcome(False, None if item is None else str(item["item"]), how)

    def _deaths(self, shard: int) -> list[dict[str, Any]]:
        names = self._folder.names(DEATHS, f"{shard:08d}.")
        return [json.loads(data) for data in self._folder.read_all(f"{DEATHS}/{name}" for name in names)]

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "segship.run.local", self._place]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._process

    def close(self) -> None:
        """End the process after what it is at."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()


def _killers(notes: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str, int]]:
    """Return pictures that have killed two workers: id, name, how, how often."""
    seen: Counter[str] = Counter()
    last: dict[str, Mapping[str, Any]] = {}
    for note in notes:
        if note["item"] is not None:
            seen[note["item"]["item"]] += 1
            last[note["item"]["item"]] = note
    found = [(item, count) for item, count in seen.items() if count >= ISOLATED_AFTER]
    return [(item, last[item]["item"]["name"], last[item]["how"], count) for item, count in found]


_SKIP_FIELDS = ("id", "name", "how", "count")


def _error(said: dict[str, str]) -> SegshipError:
    return BackendUnavailable(said["message"], code=said["code"])


def main() -> None:
    """Work on shards of a run as they are named on standard input, a line of JSON each, until its end."""
    # An interrupt is the driver's, which closes the line; a shard that is begun is worth finishing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = open_folder(sys.argv[1])
    out = sys.stdout

    def say(document: dict[str, Any]) -> None:
        out.write(json.dumps(document) + "\n")
        out.flush()

    # What libraries print must not be taken for answers.
    sys.stdout = sys.stderr
    worker: Worker | None = None
    for line in sys.stdin:
        told = json.loads(line)
        skipped = {
            one["id"]: Quarantined(one["id"], one["name"], "worker_died", f"it ended {one['how']}", one["count"])
            for one in told["skipped"]
        }
        try:
            if worker is None:
                plan = read_plan(folder)
                worker = Worker(folder, plan, lambda item: say({"item": item.id, "name": item.name}))
            worker.work(told["shard"], skipped, told["schedule"])
            say({"committed": told["shard"], "occupancy": worker.occupancy.to_dict()})
        except SegshipError as error:
            say({"error": {"code": error.code, "message": error.on_command_line}})


if __name__ == "__main__":
    try:
        main()
    # Nobody listens any more: another driver goes on where this one stood.
    except BrokenPipeError:
        os._exit(1)
