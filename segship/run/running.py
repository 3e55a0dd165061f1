# SPDX-License-Identifier: Apache-2.0
"""A run from its plan to its end: what it will take, start or go on, where it stands, and that it is what it says."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from segship.errors import BundleError, InputError, SegshipError, option, way
from segship.machine import describe_machine, in_order, usable_cores
from segship.run.ledger import ATTEMPTS, COMMITS, DATA, MANIFEST, Commit, Ledger, manifest_of
from segship.run.local import ITEM_TIMEOUT, Executor, LocalExecutor
from segship.run.plan import Items, Plan, read_plan, require_pyarrow, versions
from segship.run.sources import Item
from segship.run.stages import Schedule
from segship.run.storage import Folder, open_folder
from segship.run.work import Worker

STARTS = "starts"
"""Where each start that has worked leaves a note of the machine, its versions, and how busy the stages were."""
_MOST_WORKERS = 1_024

Told = Callable[[int, int], None]
"""Is told how many shards are done, and of how many."""


# The rate of now is that of so many seconds of work, and of no fewer commits.
_RECENT_SECONDS, _RECENT_COMMITS = 600.0, 8


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run stands.

    Attributes
    ----------
    items, done, quarantined
        How many pictures there are, were answered, and were not, by reason.
    shards, committed
        The same in shards.
    rows, size
        Of the tables.
    seconds
        In which shards were worked on that are done; what lies between an end and the next start does not count.
    per_hour_now
        Pictures an hour of the last ten minutes of these, or of the last eight commits.
    since_commit
        Seconds since the last commit.
    sealed
        Whether it is finished.
    root
        Of the manifest, once it is.
    """

    items: int
    done: int
    quarantined: dict[str, int]
    shards: int
    committed: int
    rows: int
    size: int
    seconds: float
    per_hour_now: float | None
    since_commit: float | None
    sealed: bool
    root: str | None

    @property
    def left(self) -> int:
        """Pictures that are neither answered nor without an answer."""
        return self.items - self.done - sum(self.quarantined.values())

    @property
    def per_hour(self) -> float | None:
        """Pictures an hour so far."""
        return 3600 * (self.items - self.left) / self.seconds if self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """How long it will take at the rate of now; None before the first commit."""
        if not self.left:
            return 0.0
        return 3600 * self.left / self.per_hour_now if self.per_hour_now else None

    def to_dict(self) -> dict[str, Any]:
        """Return it for `json.dumps`."""
        more = {name: getattr(self, name) for name in ("per_hour", "per_hour_now", "seconds_left", "since_commit")}
        return {**asdict(self), **{name: None if value is None else round(value) for name, value in more.items()}}


def start(
    place: str | os.PathLike[str],
    *,
    workers: int | None = None,
    schedule: Schedule = "serial",
    item_timeout: float = ITEM_TIMEOUT,
    executor: Executor | None = None,
    max_quarantine: float | None = None,
    told: Told = lambda done, of: None,
) -> Status:
    """Begin a run that was planned, or go on with one, until it is done; a run that is done is left as it is.

    An interrupt ends it within seconds; shards that were being worked on are done again by the next start.

    Parameters
    ----------
    place
        Folder of the run, or its address.
    workers
        Processes of this machine; one for each usable core when left out.
    schedule
        Of the stages of each worker: one picture after the other, each stage in a thread of its own, or all but the
        last beside the last. Results do not depend on it.
    item_timeout
        Seconds after which a picture is given up: its worker is ended, and the second time it is left out as
        ``timed_out``.
    executor
        What works instead of these processes.
    max_quarantine
        End when more pictures than this are without an answer; below 1 it is a share of all. Looked at with each
        shard that is done.
    told
        Is told of progress.

    Raises
    ------
    BundleError
        ``no_plan``; ``bad_commit`` for a finished run of which files are missing.
    InputError
        ``bad_option`` for numbers that cannot be; ``too_many_quarantined``.
    SegshipError
        When the machine fails: another start goes on where it stands.
    """
    _check(workers, item_timeout, max_quarantine)
    folder = open_folder(place)
    plan = read_plan(folder)
    require_pyarrow()
    ledger = Ledger(folder, plan.shards)
    if folder.exists(MANIFEST):
        _require_tables(folder, ledger)
        return status(place)
    state = ledger.state()
    # Those first that nobody has begun: another driver may be at the others.
    todo = sorted(state.open, key=lambda shard: (state.attempts[shard], shard))
    count = _Count(ledger, plan, len(state.committed), max_quarantine, told)
    if max_quarantine is not None:
        for commit in ledger.read_commits(state.committed):
            count.look_at(commit)
    if todo:
        folder.require_exclusive()
        executor = executor or LocalExecutor(workers or usable_cores(), schedule, item_timeout)
        with _noted(folder, executor):
            executor.run(os.fspath(place), todo, count)
    ledger.seal(plan.fingerprint)
    return status(place)


def _check(workers: int | None, item_timeout: float, max_quarantine: float | None) -> None:
    if workers is not None and not 1 <= workers <= _MOST_WORKERS:
        message = f"{option('workers')} is {workers}; accepted is a whole number from 1 to {_MOST_WORKERS}"
        raise InputError(message, code="bad_option")
    if not 0 < item_timeout < math.inf:
        message = f"{option('item_timeout')} is {item_timeout}; accepted are seconds above 0"
        raise InputError(message, code="bad_option")
    if max_quarantine is not None and not (
        0 <= max_quarantine < 1 or (max_quarantine >= 1 and float(max_quarantine).is_integer())
    ):
        message = (
            f"{option('max_quarantine')} is {max_quarantine}; accepted are a whole number of pictures, and a share of "
            "all of them below 1, such as 0.05"
        )
        raise InputError(message, code="bad_option")


class _Count:
    """Counts shards that are done, and ends all when too much of them is in quarantine."""

    def __init__(self, ledger: Ledger, plan: Plan, done: int, most: float | None, told: Told) -> None:
        self._ledger, self._items, self._shards = ledger, plan.items, plan.shards
        self._done, self._told = done, told
        self._most = most if most is None or most >= 1 else int(most * plan.items)
        self._reasons: Counter[str] = Counter()

    def __call__(self, shard: int) -> None:
        self._done += 1
        self._told(self._done, self._shards)
        if self._most is not None:
            self.look_at(self._ledger.read_commit(shard))

    def look_at(self, commit: Commit) -> None:
        """Count the quarantine of a shard."""
        self._reasons.update(entry.code for entry in commit.quarantined)
        found = self._reasons.total()
        if self._most is not None and found > self._most:
            reasons = ", ".join(f"{count:,} {name}" for name, count in self._reasons.most_common())
            look = way("status and `commits/*.json`", "`segship run status` and `segship run report`")
            message = (
                f"{found:,} of {self._items:,} pictures are without an answer ({reasons}), and "
                f"{option('max_quarantine')} allows {self._most:,}; look at them with {look}, and start the run again "
                "with a higher bound to go on"
            )
            raise InputError(message, code="too_many_quarantined")


def _require_tables(folder: Folder, ledger: Ledger) -> None:
    """Refuse a finished run of which files are missing; their bytes are looked at by `verify`."""
    ledger.require_finished()
    there = {f"{DATA}/{name}" for name in folder.names(DATA)}
    for name in ledger.read_manifest()["files"]:
        if name not in there:
            ledger.check(ledger.read_commit(int(name.split("-")[1])))


@contextlib.contextmanager
def _noted(folder: Folder, executor: Executor) -> Iterator[None]:
    """Note of a start that ends, however it does, what has worked and how busy its stages were."""
    began, how = time.time(), "interrupted"
    try:
        yield
        how = "done"
    except Exception as error:
        how = getattr(error, "code", type(error).__name__)
        raise
    finally:
        document = {
            "began": round(began),
            "seconds": round(time.time() - began, 3),
            "ended": how,
            "executor": type(executor).__name__.removesuffix("Executor").lower(),
            "workers": executor.workers,
            "schedule": executor.schedule,
            "occupancy": executor.occupancy.to_dict(),
            "machine": describe_machine().to_dict(),
            "versions": versions(),
        }
        data = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
        # It is no part of the truth: a disk without space for it loses nothing, nor does a store that is gone.
        with contextlib.suppress(SegshipError):
            number = len(folder.names(STARTS))
            while not folder.create(f"{STARTS}/{number:08d}.json", data):
                number += 1


def read_starts(folder: Folder) -> list[dict[str, Any]]:
    """Return the notes of the starts of a run, in their order; one that is damaged is no part of the truth."""
    found = []
    for data in folder.read_all(f"{STARTS}/{name}" for name in folder.names(STARTS)):
        with contextlib.suppress(ValueError):
            found.append(json.loads(data))
    return found


def status(place: str | os.PathLike[str]) -> Status:
    """Return where a run stands, by its files."""
    folder = open_folder(place)
    plan = read_plan(folder)
    ledger = Ledger(folder, plan.shards)
    commits = list(ledger.read_commits(sorted(ledger.state().committed)))
    reasons = Counter(entry.code for commit in commits for entry in commit.quarantined)
    sealed = folder.exists(MANIFEST)
    spans = _spans(folder, commits)
    seconds, now = pace(spans)
    return Status(
        items=plan.items,
        done=sum(len(commit.done) for commit in commits),
        quarantined=dict(sorted(reasons.items())),
        shards=plan.shards,
        committed=len(commits),
        rows=sum(commit.rows for commit in commits),
        size=sum(commit.size for commit in commits),
        seconds=seconds,
        per_hour_now=now,
        since_commit=-spans[-1][1] if spans else None,
        sealed=sealed,
        root=ledger.read_manifest()["root"] if sealed else None,
    )


Span = tuple[float, float, int]
"""When a shard was begun the last time before it was committed, when it was committed, and how many pictures it has."""


def _spans(folder: Folder, commits: Iterable[Commit]) -> list[Span]:
    """Return the spans of commits in the order of their ends, in seconds before now."""
    begun: dict[int, list[float]] = {}
    for name, age in folder.ages(ATTEMPTS).items():
        begun.setdefault(int(name.partition(".")[0]), []).append(-age)
    ages = {int(name.partition(".")[0]): age for name, age in folder.ages(COMMITS).items()}
    spans = []
    for commit in commits:
        end = -ages[commit.shard]
        # A second driver may have begun it later. Clocks of file systems are not exact to the millisecond.
        before = [at for at in begun.get(commit.shard, ()) if at <= end]
        spans.append((max(before, default=end), end, len(commit.done) + len(commit.quarantined)))
    return sorted(spans, key=lambda span: span[1])


def pace(spans: Sequence[Span]) -> tuple[float, float | None]:
    """Return in how many seconds shards were worked on, and pictures an hour of the last of them.

    Examples
    --------
    >>> pace([(0, 10, 5), (0, 12, 5), (1000, 1010, 10)])
    (22, 3272.7272727272725)
    """
    if not spans:
        return 0.0, None
    # Times at which anybody was at work: spans of workers that overlap are one.
    busy: list[list[float]] = []
    for begin, end, _ in sorted(spans):
        if busy and begin <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], end)
        else:
            busy.append([begin, end])

    def worked(since: float) -> float:
        return sum(max(0.0, end - max(begin, since)) for begin, end in busy)

    # Back to a commit, so that what was done since then was done in that time.
    since = busy[0][0]
    for _, end, _ in reversed(spans[:-_RECENT_COMMITS]):
        if worked(end) >= _RECENT_SECONDS:
            since = end
            break
    recent, seconds = sum(count for _, end, count in spans if end > since), worked(since)
    return worked(busy[0][0]), 3600 * recent / seconds if seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take, by pictures of it that were worked on and thrown away.

    Attributes
    ----------
    items
        Pictures that are not done yet.
    samples, without_answer
        How many of them were worked on, evenly over the plan, and how many of these have no answer.
    seconds_each
        Mean time of a picture on one worker, while others were at work beside it.
    workers
        Shards that are worked on at once.
    seconds
        Of the whole, and its 95% interval: low and high. It holds if the others are like the samples, and each worker
        has what these had.
    price_per_hour, price
        Of all workers together, and of the run: expected, low, high.
    """

    items: int
    samples: int
    without_answer: int
    seconds_each: float
    workers: int
    seconds: tuple[float, float, float]
    price_per_hour: float | None = None

    @property
    def price(self) -> tuple[float, ...] | None:
        """What the run will cost: expected, low, high."""
        if self.price_per_hour is None:
            return None
        return tuple(self.price_per_hour * seconds / 3600 for seconds in self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return it for `json.dumps`."""
        return {**asdict(self), "price": self.price}


def estimate(
    place: str | os.PathLike[str],
    *,
    workers: int | None = None,
    price_per_hour: float | None = None,
    samples: int = 10,
) -> Estimate:
    """Work on a few pictures of a plan, evenly over it, and say what all of them will take; nothing is written.

    Parameters
    ----------
    place
        Folder of the run; of one that was begun, what is left is estimated.
    workers
        Of the run; one for each usable core when left out. No more than there are cores work on samples.
    price_per_hour
        Of all workers together.
    samples
        How many pictures.

    Raises
    ------
    BundleError
        ``no_plan``.
    InputError
        ``bad_option``; ``nothing_found`` for a run that is done.
    BackendUnavailable
        ``worker_died`` when a sample ends its process.
    """
    _check(workers, ITEM_TIMEOUT, None)
    if price_per_hour is not None and not 0 <= price_per_hour < math.inf:
        message = f"{option('price_per_hour')} is {price_per_hour}; accepted are numbers from 0"
        raise InputError(message, code="bad_option")
    folder = open_folder(place)
    plan = read_plan(folder)
    chosen, left = _samples(plan, Ledger(folder, plan.shards), Items(folder, plan), samples)
    if not chosen:
        raise InputError("every picture of the run is done; there is nothing to estimate", code="nothing_found")
    count = workers or usable_cores()
    beside = min(count, usable_cores(), len(chosen))
    found, began = [], time.monotonic()
    for each in in_order(partial(_time_sample, os.fspath(place)), chosen, beside):
        found.append(each)
        if len(found) >= _FEWEST_SAMPLES and time.monotonic() - began > _MOST_SAMPLE_SECONDS:
            break
    times = [seconds for seconds, _ in found]
    mean = statistics.fmean(times)
    # Student's t: few samples say little about how much pictures differ.
    spread = _STUDENT[min(len(times), len(_STUDENT)) - 1] * _deviation(times) / math.sqrt(len(times))
    low, high = max(mean - spread, min(times)), mean + spread
    whole = [left * value / min(count, left) for value in (mean, low, high)]
    lost = sum(not answered for _, answered in found)
    return Estimate(left, len(times), lost, mean, count, (whole[0], whole[1], whole[2]), price_per_hour)


# Of a 95% interval, for 1, 2, 3 ... samples; of one, as of two, it is as good as nothing.
_STUDENT = (12.71, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
_FEWEST_SAMPLES, _MOST_SAMPLE_SECONDS = 3, 120.0


def _deviation(times: Sequence[float]) -> float:
    return statistics.stdev(times) if len(times) > 1 else times[0]


def _samples(plan: Plan, ledger: Ledger, items: Items, samples: int) -> tuple[list[Item], int]:
    """Return items of open shards, evenly over them, and how many these have; ids are as good as drawn at random."""
    still_open = ledger.state().open
    commits = ledger.read_commits(ledger.state().committed)
    done = sum(len(commit.done) + len(commit.quarantined) for commit in commits)
    left = plan.items - done
    shards = [still_open[number * len(still_open) // samples] for number in range(samples)] if still_open else []
    taken = Counter(shards)
    chosen = []
    for shard, count in taken.items():
        of_shard = items.of(shard)
        count = min(count, len(of_shard))
        chosen += [of_shard[number * len(of_shard) // count] for number in range(count)]
    return chosen, left


_sampling: dict[str, Worker] = {}


def _time_sample(place: str, item: Item) -> tuple[float, bool]:
    """Return the seconds that a picture takes, and whether it has an answer; the first is worked on twice."""
    if place not in _sampling:
        folder = open_folder(place)
        _sampling[place] = Worker(folder, read_plan(folder))
        _sampling[place].answer(item)
    began = time.perf_counter()
    answered = _sampling[place].answer(item)
    return time.perf_counter() - began, answered.quarantined is None


def verify(place: str | os.PathLike[str]) -> dict[str, Any]:
    """Prove that a finished run has each picture of its plan exactly once, and every byte that it committed.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    BundleError
        ``not_finished``, or ``bad_commit`` with what is wrong.
    """
    folder = open_folder(place)
    plan = read_plan(folder)
    ledger, items = Ledger(folder, plan.shards), Items(folder, plan)
    if not folder.exists(MANIFEST):
        raise BundleError("the run is not finished; start it again", code="not_finished")
    ledger.require_finished()
    commits = []
    for shard, commit in enumerate(ledger.read_commits()):
        ledger.check(commit)
        answered = [*commit.done, *(entry.id for entry in commit.quarantined)]
        if sorted(answered) != [item.id for item in items.of(shard)]:
            message = f"shard {shard} has not each of its pictures exactly once"
            raise BundleError(message, code="bad_commit")
        commits.append(commit)
    found = ledger.read_manifest()
    if found != manifest_of(commits, plan.fingerprint):
        message = (
            f"{MANIFEST} is not that of the commits; one of them was changed: put them back from a copy, or delete "
            f"{MANIFEST} and start the run again"
        )
        raise BundleError(message, code="bad_commit")
    return found


def collect_garbage(place: str | os.PathLike[str]) -> list[str]:
    """Delete what nobody needs: old temporary files and, in a finished run, tables of those who came second."""
    folder = open_folder(place)
    ledger = Ledger(folder, read_plan(folder).shards)
    names = ledger.garbage()
    for name in names:
        folder.remove(name)
    return names
