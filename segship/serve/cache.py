# SPDX-License-Identifier: Apache-2.0
"""Embeddings of pictures that were sent, in files of one folder: bounded in bytes, and forgotten after a while.

An entry belongs to whoever sent the picture; for others it is not there. Its handle is random, so that none can be
guessed, and one that was evicted is still known to its owner for a while.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from segship.serve.errors import Refusal
from segship.serve.wire import Header, Stored

_MOST_REMEMBERED = 10_000


@dataclass(slots=True)
class Entry:
    """One picture that is encoded: whose it is, of which model, its bytes and its embedding in files."""

    owner: str
    model: str
    digest: str
    width: int
    height: int
    input_size: tuple[int, int]
    notes: tuple[str, ...]
    source: Stored
    embedding: Stored
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    used: float = 0.0
    users: int = 0
    """Requests that read its files now."""
    is_dropped: bool = False

    @property
    def bytes(self) -> int:
        """What it takes."""
        return self.source.bytes + self.embedding.bytes

    def header(self) -> Header:
        """Return what a worker is told of it."""
        return {
            "stored": self.embedding.to_json(),
            "size": (self.height, self.width),
            "input_size": self.input_size,
            "notes": self.notes,
        }


class EmbeddingCache:
    """What is kept of pictures.

    Parameters
    ----------
    most_bytes, seconds
        What all entries take together, and how long one is kept after its last use.
    drop
        Is called with an entry whose files nobody needs any more.
    """

    def __init__(
        self,
        most_bytes: int,
        seconds: float,
        drop: Callable[[Entry], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.bytes = 0
        self.hits = self.misses = self.evictions = 0
        self._most_bytes = most_bytes
        self._drop = drop
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._by_picture: dict[tuple[str, str, str], str] = {}
        self._evicted: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, owner: str, model: str, digest: str) -> Entry | None:
        """Return what is kept of a picture."""
        self.expire()
        found = self._by_picture.get((owner, model, digest))
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        return self._touch(self._entries[found])

    def get(self, owner: str, handle: str) -> Entry:
        """Return an entry by its handle.

        Raises
        ------
        Refusal
            410 ``embedding_evicted`` to its owner once it is gone, 404 ``unknown_image`` for what never was.
        """
        self.expire()
        entry = self._entries.get(handle)
        if entry is not None and entry.owner == owner:
            return self._touch(entry)
        if self._evicted.get(handle) == owner:
            message = "this picture was forgotten to make room, or after a while without use; send it again"
            raise Refusal(410, "embedding_evicted", message)
        raise Refusal(404, "unknown_image", "there is no such picture; send it to POST /v1/images, which names it")

    def add(self, entry: Entry) -> Entry:
        """Keep an entry, and let go of those that were not used for longest."""
        key = (entry.owner, entry.model, entry.digest)
        if key in self._by_picture:
            self.remove(self._entries[self._by_picture[key]])
        self._entries[entry.id] = entry
        self._by_picture[key] = entry.id
        self.bytes += entry.bytes
        self._touch(entry)
        while self.bytes > self._most_bytes and len(self._entries) > 1:
            self._evict(next(iter(self._entries.values())))
        return entry

    def remove(self, entry: Entry) -> None:
        """Let go of an entry; its handle is unknown from now on."""
        if self._entries.pop(entry.id, None) is None:
            return
        self._by_picture.pop((entry.owner, entry.model, entry.digest), None)
        self.bytes -= entry.bytes
        entry.is_dropped = True
        if not entry.users:
            self._drop(entry)

    def make_room(self) -> None:
        """Let go of the half that was not used for longest: the disk, or the memory, has less room than was allowed."""
        for entry in list(self._entries.values())[: (len(self._entries) + 1) // 2]:
            self._evict(entry)

    def expire(self) -> None:
        """Let go of what was not used for too long."""
        oldest = self._clock() - self.seconds
        while self._entries:
            entry = next(iter(self._entries.values()))
            if entry.used >= oldest:
                return
            self._evict(entry)

    @contextmanager
    def in_use(self, entry: Entry) -> Iterator[None]:
        """Keep the files of an entry while they are read."""
        entry.users += 1
        try:
            yield
        finally:
            entry.users -= 1
            if entry.is_dropped and not entry.users:
                self._drop(entry)

    def clear(self) -> None:
        """Let go of everything."""
        for entry in list(self._entries.values()):
            self.remove(entry)

    def _touch(self, entry: Entry) -> Entry:
        entry.used = self._clock()
        self._entries.move_to_end(entry.id)
        return entry

    def _evict(self, entry: Entry) -> None:
        self.remove(entry)
        self.evictions += 1
        self._evicted[entry.id] = entry.owner
        while len(self._evicted) > _MOST_REMEMBERED:
            self._evicted.popitem(last=False)
