# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine that work on shards; they are watched, and started anew when they die.

A worker commits by itself, so that nothing is lost with the driver. It says which picture it is about to begin: a death
is noted with that picture, one that takes too long is ended, and a picture that has ended two workers is left out, with
a reason, so that the rest of its shard is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

from segship import errors
from segship.errors import BackendUnavailable, SegshipError
from segship.run.ledger import DEATHS, ISOLATED_AFTER, Ledger, Quarantined
from segship.run.plan import read_plan
from segship.run.sources import Item
from segship.run.stages import Occupancy, Schedule
from segship.run.storage import open_folder
from segship.run.work import Worker

ITEM_TIMEOUT = 3600.0
"""Seconds after which a picture that is still worked on is given up: more than the largest model takes for one."""
# A worker that dies before it has begun anything cannot be helped by starting it again for ever.
_MOST_FAILED_STARTS = 3
# What is left to one that is just committing when all shall end.
_GRACE_SECONDS = 10.0
_MAIN = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from segship.run.local import main; main()"


class Executor(Protocol):
    """What works on shards of a run, in any order, until all are committed or something fails.

    Attributes
    ----------
    workers, schedule
        How many shards are worked on at once, and how the stages of each follow each other.
    occupancy
        How busy these were.
    """

    workers: Any
    schedule: Schedule
    occupancy: Occupancy

    def run(self, place: str, shards: Iterable[int], told: Callable[[int], None]) -> None:
        """Work on shards; ``told`` is called with each that is committed, one at a time, and may raise to end all."""


@dataclass(slots=True)
class LocalExecutor:
    """Works in so many processes of this machine.

    Attributes
    ----------
    workers
        How many.
    schedule
        How a worker's stages follow each other.
    item_timeout
        Seconds after which a picture is given up.
    occupancy
        How busy the stages were.
    """

    workers: int
    schedule: Schedule = "serial"
    item_timeout: float = ITEM_TIMEOUT
    occupancy: Occupancy = field(default_factory=Occupancy)

    def run(self, place: str, shards: Iterable[int], told: Callable[[int], None]) -> None:
        """Work on shards; errors are those of the first worker that failed, and end the others within seconds.

        Raises
        ------
        SegshipError
            What a worker has raised, or ``worker_died`` when workers die without having begun anything.
        """
        processes = [Process(place, self.schedule, self.item_timeout) for _ in range(max(1, self.workers))]
        crew = _Crew(shards, told, len(processes))
        for process in processes:
            threading.Thread(target=crew.serve, args=(process,)).start()
        try:
            # Not by joining threads: an interrupt there takes them for ended in Python 3.11.
            while not (crew.is_over.is_set() or crew.is_idle.wait(0.1)):
                pass
        finally:
            crew.is_over.set()
            _end(processes, crew.is_idle)
            for process in processes:
                self.occupancy.add(process.occupancy.to_dict())
        if crew.errors:
            raise crew.errors[0]


class _Crew:
    """What threads share that hold a process each: shards that wait, and whether all is over."""

    def __init__(self, shards: Iterable[int], told: Callable[[int], None], members: int) -> None:
        self._members = members
        self._waiting = list(shards)
        self._waiting.reverse()
        self._told = told
        self._lock = threading.Lock()
        self.is_over, self.is_idle = threading.Event(), threading.Event()
        self.errors: list[BaseException] = []

    def _next(self) -> int | None:
        with self._lock:
            return self._waiting.pop() if self._waiting and not self.is_over.is_set() else None

    def serve(self, process: Process) -> None:
        """Have a process work on shards until there are none, or all is over."""
        try:
            while (shard := self._next()) is not None and process.finish(shard, self.is_over.is_set):
                with self._lock:
                    self._told(shard)
        except BaseException as error:
            self.errors.append(error)
            self.is_over.set()
        finally:
            process.close()
            with self._lock:
                self._members -= 1
                if not self._members:
                    self.is_idle.set()


def _end(processes: Iterable[Process], is_idle: threading.Event) -> None:
    """End processes within seconds; a second interrupt, at once."""
    until = time.monotonic() + _GRACE_SECONDS
    try:
        while not is_idle.wait(0.05):
            for process in processes:
                process.stop(even_a_commit=time.monotonic() > until)
    except BaseException:
        for process in processes:
            process.stop(even_a_commit=True)
        raise


@dataclass(frozen=True, slots=True)
class _Outcome:
    committed: bool
    item: str | None = None
    how: str = ""
    error: SegshipError | None = None


class Process:
    """One worker process, started when it is needed and anew when it has died; whoever holds it sees its deaths."""

    def __init__(self, place: str, schedule: Schedule = "serial", item_timeout: float = ITEM_TIMEOUT) -> None:
        self._place = place
        self._schedule = schedule
        self._item_timeout = item_timeout
        self.occupancy = Occupancy()
        self._folder = open_folder(place)
        self._ledger = Ledger(self._folder, read_plan(self._folder).shards)
        self._process: subprocess.Popen[str] | None = None
        self._is_over = False
        self._is_committing = False
        # Which process shall have gone on when; it is ended if it has not.
        self._due: tuple[subprocess.Popen[str], float] | None = None
        self._late: subprocess.Popen[str] | None = None
        self._is_watched = False
        self._closed = threading.Event()

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
                message = f"workers die where no picture is to blame ({outcome.how}); look at what they print"
                raise BackendUnavailable(message, code="worker_died")
        return False

    def _work(self, shard: int) -> _Outcome:
        """Have one shard worked on once; a death is noted."""
        process, attempt, item = self._started(), self._ledger.begin(shard), None
        assert process.stdin is not None and process.stdout is not None
        notes = self._deaths(shard)
        # After a death pictures come one by one, so that it is clear which one the next belongs to.
        schedule: Schedule = "serial" if notes else self._schedule
        told = {"shard": shard, "skipped": [asdict(one) for one in _killers(notes)], "schedule": schedule}
        try:
            process.stdin.write(json.dumps(told) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                said = json.loads(line)
                if "item" in said:
                    # None when all are answered, and the rest is no picture's.
                    item = said["item"]
                    self._is_committing = item is None
                    self._due = process, time.monotonic() + self._item_timeout
                    continue
                self._due, self._is_committing = None, False
                if "committed" in said:
                    self.occupancy.add(said["occupancy"])
                    return _Outcome(True)
                return _Outcome(False, error=read_error(said["error"]))
        except (BrokenPipeError, ValueError):
            process.kill()
        self._due, self._is_committing = None, False
        how = self._buried(process)
        if self._is_over:
            return _Outcome(False)
        if self._late is process:
            note = {"code": "timed_out", "how": f"it took more than {self._item_timeout:g} seconds"}
        else:
            note = {"code": "worker_died", "how": f"its process ended with {how}"}
        # Side by side, the one that was begun last need not be the one.
        self._ledger.note_death(shard, attempt, {"item": item if schedule == "serial" else None, **note})
        return _Outcome(False, None if item is None else str(item["item"]), how)

    def _buried(self, process: subprocess.Popen[str]) -> str:
        """Return how a process has ended."""
        assert process.stdin is not None and process.stdout is not None
        code = process.wait()
        process.stdout.close()
        # What was written to nobody is lost with it.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        self._process = None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _deaths(self, shard: int) -> list[dict[str, Any]]:
        names = self._folder.names(DEATHS, f"{shard:08d}.")
        return [json.loads(data) for data in self._folder.read_all(f"{DEATHS}/{name}" for name in names)]

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, daemon=True).start()
            # An interrupt is the driver's from its first moment on.
            command = [sys.executable, "-c", _MAIN, self._place]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self._process

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._item_timeout / 4)):
            due = self._due
            if due is not None and time.monotonic() > due[1]:
                self._late = due[0]
                due[0].kill()

    def stop(self, *, even_a_commit: bool) -> None:
        """End the process now, which is no death; a commit it is at may be let pass. Work on the shard is lost."""
        self._is_over = True
        process = self._process
        if process is not None and (even_a_commit or not self._is_committing):
            process.kill()

    def close(self) -> None:
        """End the process after what it is at."""
        self._closed.set()
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()


def _killers(notes: Iterable[Mapping[str, Any]]) -> list[Quarantined]:
    """Return pictures that have ended two workers."""
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for note in notes:
        if note["item"] is not None:
            seen.setdefault(note["item"]["item"], []).append(note)
    return [
        Quarantined(item, found[-1]["item"]["name"], found[-1]["code"], found[-1]["how"], len(found))
        for item, found in seen.items()
        if len(found) >= ISOLATED_AFTER
    ]


def read_error(said: Mapping[str, str]) -> SegshipError:
    """Return the error that a worker has raised, of its own kind, on which the exit code depends."""
    kind = getattr(errors, said["kind"])
    return cast(SegshipError, kind(said["message"], code=said["code"]))


def told_error(error: SegshipError) -> dict[str, str]:
    """Return an error as lines between processes carry it."""
    return {"kind": type(error).__name__, "code": error.code, "message": error.on_command_line}


def main() -> None:
    """Work on shards of a run as they are named on standard input, a line of JSON each, until its end."""
    # Nobody listens any more: another driver goes on where this one stood.
    try:
        _listen()
    except BrokenPipeError:
        os._exit(1)


def _listen() -> None:
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
        skipped = {one["id"]: Quarantined(**one) for one in told["skipped"]}
        try:
            if worker is None:
                worker = Worker(folder, read_plan(folder), lambda item: say({"item": _told_item(item)}))
            worker.work(told["shard"], skipped, told["schedule"])
            say({"committed": told["shard"], "occupancy": worker.occupancy.to_dict()})
        except SegshipError as error:
            say({"error": told_error(error)})


def _told_item(item: Item | None) -> dict[str, str] | None:
    return None if item is None else {"item": item.id, "name": item.name}
