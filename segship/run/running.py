# SPDX-License-Identifier: Apache-2.0
"""A run from its plan to its end: start or go on, look where it stands, prove that it is what it says."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from segship.errors import BundleError, InputError, option
from segship.machine import usable_cores
from segship.run.ledger import ATTEMPTS, COMMITS, MANIFEST, Ledger, manifest_of
from segship.run.local import Executor, LocalExecutor
from segship.run.plan import Items, read_plan
from segship.run.stages import Schedule
from segship.run.storage import Folder, open_folder

_MOST_WORKERS = 1_024

Told = Callable[[int, int], None]
"""Is told how many shards are done, and of how many."""


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
        From the first attempt to the last commit.
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
    sealed: bool
    root: str | None

    @property
    def per_hour(self) -> float | None:
        """Pictures an hour so far."""
        return 3600 * (self.done + sum(self.quarantined.values())) / self.seconds if self.seconds > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return it for `json.dumps`."""
        rate = self.per_hour
        left = self.items - self.done - sum(self.quarantined.values())
        return {
            **{name: getattr(self, name) for name in self.__dataclass_fields__},
            "per_hour": None if rate is None else round(rate),
            "seconds_left": None if not rate else round(3600 * left / rate),
        }


def start(
    place: str | os.PathLike[str],
    *,
    workers: int | None = None,
    schedule: Schedule = "serial",
    executor: Executor | None = None,
    told: Told = lambda done, of: None,
) -> Status:
    """Begin a run that was planned, or go on with one, until it is done; a run that is done is left as it is.

    Parameters
    ----------
    place
        Folder of the run.
    workers
        Processes of this machine; one for each usable core when left out.
    schedule
        Of the stages of each worker: one picture after the other, each stage in a thread of its own, or all but the
        last beside the last. Results do not depend on it.
    executor
        What works instead of them.
    told
        Is told of progress.

    Raises
    ------
    BundleError
        ``no_plan``.
    InputError
        ``bad_option`` for workers that cannot be.
    SegshipError
        When the machine fails: another start goes on where it stands.
    """
    if workers is not None and not 1 <= workers <= _MOST_WORKERS:
        message = f"{option('workers')} is {workers}; accepted is a whole number from 1 to {_MOST_WORKERS}"
        raise InputError(message, code="bad_option")
    folder = open_folder(place)
    plan = read_plan(folder)
    ledger = Ledger(folder, plan.shards)
    if not folder.exists(MANIFEST):
        state = ledger.state()
        done = len(state.committed)
        # Those first that nobody has begun: another driver may be at the others.
        todo = sorted(state.open, key=lambda shard: (state.attempts[shard], shard))

        def count(shard: int) -> None:
            nonlocal done
            done += 1
            told(done, plan.shards)

        if todo:
            count_of_workers = min(workers or usable_cores(), len(todo))
            (executor or LocalExecutor(count_of_workers, schedule)).run(os.fspath(place), todo, count)
        ledger.seal(plan.fingerprint)
    return status(place)


def status(place: str | os.PathLike[str]) -> Status:
    """Return where a run stands, by its files."""
    folder = open_folder(place)
    plan = read_plan(folder)
    ledger = Ledger(folder, plan.shards)
    commits = list(ledger.read_commits(sorted(ledger.state().committed)))
    reasons = Counter(entry.code for commit in commits for entry in commit.quarantined)
    sealed = folder.exists(MANIFEST)
    return Status(
        items=plan.items,
        done=sum(len(commit.done) for commit in commits),
        quarantined=dict(sorted(reasons.items())),
        shards=plan.shards,
        committed=len(commits),
        rows=sum(commit.rows for commit in commits),
        size=sum(commit.size for commit in commits),
        seconds=_seconds(folder),
        sealed=sealed,
        root=json.loads(folder.read(MANIFEST))["root"] if sealed else None,
    )


def _seconds(folder: Folder) -> float:
    """Return the time between the first attempt and the last commit, as the file system has it."""
    attempts, commits = (list(folder.ages(where).values()) for where in (ATTEMPTS, COMMITS))
    return max(attempts) - min(commits) if attempts and commits else 0.0


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
    commits = []
    for shard, commit in enumerate(ledger.read_commits()):
        ledger.check(commit)
        answered = [*commit.done, *(entry.id for entry in commit.quarantined)]
        if sorted(answered) != [item.id for item in items.of(shard)]:
            message = f"shard {shard} has not each of its pictures exactly once"
            raise BundleError(message, code="bad_commit")
        commits.append(commit)
    found = json.loads(folder.read(MANIFEST))
    if found != manifest_of(commits, plan.fingerprint):
        raise BundleError("the manifest is not that of the commits; it was changed", code="bad_commit")
    return dict(found)


def collect_garbage(place: str | os.PathLike[str]) -> list[str]:
    """Delete what nobody needs: old temporary files and, in a finished run, tables of those who came second."""
    folder = open_folder(place)
    ledger = Ledger(folder, read_plan(folder).shards)
    names = ledger.garbage()
    for name in names:
        folder.remove(name)
    return names
