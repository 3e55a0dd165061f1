# SPDX-License-Identifier: Apache-2.0
"""What is true of a run: which shards are done, by one file each that can be made only once.

Before a shard is worked on, an attempt is noted; a death that a survivor has seen is noted beside it. So deaths are
counted without a server, and a driver that is killed, which nobody sees, counts against nothing. Work is published
under a name that has its digest, and then committed: the first commit of a shard is its truth, and who comes later
finds the same digest there, or raises an alarm.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from segship.errors import BackendUnavailable, BundleError
from segship.run.storage import Folder, left_over

ATTEMPTS, DEATHS, COMMITS, DATA, MANIFEST = "attempts", "deaths", "commits", "data", "manifest.json"
ISOLATED_AFTER = 2
"""Deaths of a shard after which its items are worked on one by one."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An item without an answer.

    Attributes
    ----------
    id, name
        Of the item.
    code
        Why, as errors have it, or ``worker_died``, ``timed_out``, ``changed_since_plan``, ``vanished``.
    message
        The same in words.
    attempts
        How often it was tried.
    """

    id: str
    name: str
    code: str
    message: str
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Commit:
    """The truth about one shard.

    Attributes
    ----------
    shard
        Its number.
    file, sha256, size, rows
        Of the table of its answers.
    done
        Ids of the items that were answered, in the plan's order.
    quarantined
        The others.
    """

    shard: int
    file: str
    sha256: str
    size: int
    rows: int
    done: tuple[str, ...]
    quarantined: tuple[Quarantined, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the file of a commit: the same for the same work, whoever has done it."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Commit:
        """Read the commit in a file of this name, or refuse it as ``bad_commit``."""
        try:
            found = json.loads(data)
            quarantined = tuple(Quarantined(**entry) for entry in found.pop("quarantined"))
            return cls(**{**found, "done": tuple(found["done"])}, quarantined=quarantined)
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(_damaged(name, name), code="bad_commit") from error


@dataclass(slots=True)
class State:
    """Where a run stands."""

    shards: int
    committed: set[int] = field(default_factory=set)
    attempts: Counter[int] = field(default_factory=Counter)
    deaths: Counter[int] = field(default_factory=Counter)

    @property
    def open(self) -> list[int]:
        """Shards that are not done."""
        return [shard for shard in range(self.shards) if shard not in self.committed]


class Ledger:
    """What a run's folder says.

    Parameters
    ----------
    folder
        Of the run.
    shards
        How many there are.
    """

    def __init__(self, folder: Folder, shards: int) -> None:
        self._folder = folder
        self.shards = shards

    def state(self) -> State:
        """Return where the run stands, by the names of its files alone."""
        state = State(self.shards)
        state.committed = {int(name.partition(".")[0]) for name in self._folder.names(COMMITS)}
        for counts, where in ((state.attempts, ATTEMPTS), (state.deaths, DEATHS)):
            counts.update(int(name.partition(".")[0]) for name in self._folder.names(where))
        return state

    def begin(self, shard: int) -> int:
        """Note that a shard is begun, and return which attempt it is, counted from 1."""
        note = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "at": time.time()}).encode()
        number = 1 + len(self._folder.names(ATTEMPTS, f"{shard:08d}."))
        while not self._folder.create(f"{ATTEMPTS}/{shard:08d}.{number}", note):
            number += 1
        return number

    def note_death(self, shard: int, attempt: int, what: Mapping[str, Any]) -> None:
        """Note that a worker has died at a shard, as one that lives has seen."""
        self._folder.create(f"{DEATHS}/{shard:08d}.{attempt}", json.dumps(dict(what)).encode())

    def commit(
        self, shard: int, table: bytes, rows: int, done: Sequence[str], quarantined: Sequence[Quarantined]
    ) -> Commit:
        """Publish the table of a shard and commit it; returns what holds from now on.

        Raises
        ------
        OutputError
            When it cannot be written; the shard is then not committed.
        BackendUnavailable
            ``not_deterministic`` when it was committed before with other bytes.
        """
        digest = hashlib.sha256(table).hexdigest()
        name = f"{DATA}/part-{shard:08d}-{digest[:16]}.parquet"
        commit = Commit(shard, name, digest, len(table), rows, tuple(done), tuple(quarantined))
        self._folder.publish(name, table)
        if self._folder.create(_commit_name(shard), commit.to_bytes()):
            return commit
        earlier = self.read_commit(shard)
        if earlier.sha256 != digest:
            self._folder.remove(name)
            message = (
                f"shard {shard} was committed with other bytes than were found now; the run is not the same on every "
                "machine: use one kind of processor, and one number of threads"
            )
            raise BackendUnavailable(message, code="not_deterministic")
        return earlier

    def read_commit(self, shard: int) -> Commit:
        """Return the commit of a shard; a FileNotFoundError where there is none yet."""
        name = _commit_name(shard)
        return Commit.from_bytes(self._folder.read(name), name)

    def read_commits(self, shards: Iterable[int] | None = None) -> Iterator[Commit]:
        """Yield the commits of shards, of all when left out, in their order; errors as `read_commit`."""
        names = list(map(_commit_name, range(self.shards) if shards is None else shards))
        return map(Commit.from_bytes, self._folder.read_all(names), names)

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest of a finished run, or refuse it as ``bad_commit``."""
        try:
            found = json.loads(self._folder.read(MANIFEST))
            return {**found, "root": str(found["root"]), "files": list(found["files"])}
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(_damaged(MANIFEST), code="bad_commit") from error

    def require_finished(self) -> None:
        """Refuse as ``not_finished`` while shards are open; as ``bad_commit`` where they have been done."""
        open_shards = self.state().open
        if open_shards and self._folder.exists(MANIFEST):
            message = (
                f"{_commit_name(open_shards[0])} is missing, and {MANIFEST} says that the run is finished; put it back "
                f"from a copy, or delete {MANIFEST} and start the run again: what is missing alone is done anew"
            )
            raise BundleError(message, code="bad_commit")
        if open_shards:
            message = f"{len(open_shards)} of {self.shards} shards are not done; start the run again"
            raise BundleError(message, code="not_finished")

    def seal(self, fingerprint: str) -> dict[str, Any]:
        """Write the manifest of a run all of whose shards are committed, and return it; a second time changes nothing.

        Raises
        ------
        BundleError
            ``not_finished`` or, where a table is not what its commit says, ``bad_commit``.
        """
        self.require_finished()
        document = manifest_of(list(self.read_commits()), fingerprint)
        self._folder.create(MANIFEST, json.dumps(document, indent=1, sort_keys=True).encode() + b"\n")
        return document

    def check(self, commit: Commit) -> bytes:
        """Return the table of a commit, or refuse it as ``bad_commit`` where it is not what was committed."""
        mend = (
            f"put it back from a copy, or delete {MANIFEST} and {_commit_name(commit.shard)} and start the run again: "
            "that shard alone is done anew"
        )
        try:
            table = self._folder.read(commit.file)
        except FileNotFoundError:
            raise BundleError(f"{commit.file} is missing; {mend}", code="bad_commit") from None
        if hashlib.sha256(table).hexdigest() != commit.sha256:
            message = (
                f"{commit.file} is not the table that was committed; the disk is damaged, or it was changed; {mend}"
            )
            raise BundleError(message, code="bad_commit")
        return table

    def garbage(self) -> list[str]:
        """Return files that can be deleted: old temporary ones and, in a sealed run, tables without a commit."""
        found = left_over(self._folder)
        if self._folder.exists(MANIFEST):
            self.require_finished()
            kept = {commit.file for commit in self.read_commits()}
            found += [f"{DATA}/{name}" for name in self._folder.names(DATA) if f"{DATA}/{name}" not in kept]
        return found


def _commit_name(shard: int) -> str:
    return f"{COMMITS}/{shard:08d}.json"


def _damaged(name: str, *more: str) -> str:
    away = " and ".join((MANIFEST, *more))
    return (
        f"{name} of the run cannot be read; it was changed after it was written, or the disk is damaged; put it back "
        f"from a copy, or delete {away} and start the run again: what is missing alone is done anew"
    )


def manifest_of(commits: Sequence[Commit], fingerprint: str) -> dict[str, Any]:
    """Return the manifest of commits in the order of their shards, with the root of their tree of digests."""
    reasons = Counter(entry.code for commit in commits for entry in commit.quarantined)
    return {
        "fingerprint": fingerprint,
        "root": merkle_root([hashlib.sha256(commit.to_bytes()).digest() for commit in commits]),
        "shards": len(commits),
        "items": sum(len(commit.done) + len(commit.quarantined) for commit in commits),
        "done": sum(len(commit.done) for commit in commits),
        "rows": sum(commit.rows for commit in commits),
        "bytes": sum(commit.size for commit in commits),
        "quarantined": dict(sorted(reasons.items())),
        "files": [commit.file for commit in commits],
    }


def merkle_root(leaves: Sequence[bytes]) -> str:
    """Return the root of a binary tree over digests, as RFC 6962 makes it, in hexadecimal digits.

    Examples
    --------
    >>> merkle_root([]) == __import__("hashlib").sha256(b"").hexdigest()
    True
    """
    return _root(list(leaves)).hex()


def _root(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + _root(leaves[:half]) + _root(leaves[half:])).digest()
