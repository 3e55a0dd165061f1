# SPDX-License-Identifier: Apache-2.0
"""Where a run lies: files that are whole, that appear at once, and of which some can be made only once.

Everything that a run believes goes through a `Folder`. On a file system it goes on through the few operations of a
`Disk`: tests put a disk there that forgets what was not synced, or fails at any operation. In an object store an object
is whole by itself, and made once by a conditional put.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Protocol

from segship.errors import BackendUnavailable, InputError, OutputError
from segship.run.objects import Found, Objects, in_parallel, is_address, parse_prefix

TEMPORARY = "tmp"
# What takes longer to write belongs to nobody any more.
LEASE_SECONDS = 3600.0


class Disk(Protocol):
    """What a folder needs of a file system; names are relative to it, with slashes."""

    def write(self, name: str, data: bytes) -> None:
        """Write a new file; whether it outlives a loss of power is not certain before `sync`."""

    def sync(self, name: str) -> None:
        """Make the bytes of a file certain."""

    def link(self, name: str, target: str) -> None:
        """Give a file a second name; a FileExistsError where that is taken."""

    def rename(self, name: str, target: str) -> None:
        """Give a file another name, in the place of what has it."""

    def remove(self, name: str) -> None:
        """Take a name away; nothing happens where there is none."""

    def sync_folder(self, name: str) -> None:
        """Make the names in a folder certain."""

    def make_folder(self, name: str) -> None:
        """Make a folder and those above it, certainly."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a file; a FileNotFoundError where there is none."""

    def names(self, name: str) -> list[str]:
        """Return the names in a folder; none where there is no folder."""

    def age(self, name: str) -> float:
        """Return the seconds since a file was written."""


class RealDisk:
    """The file system itself, below one folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def write(self, name: str, data: bytes) -> None:
        with open(self._path(name), "xb") as file:
            file.write(data)

    def sync(self, name: str) -> None:
        self._sync(self._path(name), os.O_RDWR)

    def link(self, name: str, target: str) -> None:
        os.link(self._path(name), self._path(target))

    def rename(self, name: str, target: str) -> None:
        os.rename(self._path(name), self._path(target))

    def remove(self, name: str) -> None:
        try:
            os.unlink(self._path(name))
        except FileNotFoundError:
            pass

    def sync_folder(self, name: str) -> None:
        # Windows opens no folders, and keeps names by itself.
        if os.name != "nt":
            self._sync(self._path(name), os.O_RDONLY)

    def make_folder(self, name: str) -> None:
        os.makedirs(self._path(name), exist_ok=True)
        for parent in (name, *map(str, PurePosixPath(name).parents)):
            self.sync_folder(parent)

    def read(self, name: str) -> bytes:
        with open(self._path(name), "rb") as file:
            return file.read()

    def names(self, name: str) -> list[str]:
        try:
            return os.listdir(self._path(name))
        except FileNotFoundError:
            return []

    def age(self, name: str) -> float:
        return time.time() - os.stat(self._path(name)).st_mtime

    @staticmethod
    def _sync(path: str, flags: int) -> None:
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class Folder(Protocol):
    """Whole files below one place; names are relative to it, with slashes.

    Errors are OutputErrors ``no_space`` or ``cannot_write`` on a disk, where a file is then not there, or whole; and
    what `segship.run.objects.Objects` raises in a store.
    """

    def create(self, name: str, data: bytes) -> bool:
        """Make a file that there is not, once and for all; returns whether this call has made it.

        False where it was there already, whoever has made it: in a store also this call, whose answer was lost.
        """

    def publish(self, name: str, data: bytes) -> None:
        """Put a file in place whose name says its content, so that it may be there already."""

    def read(self, name: str) -> bytes:
        """Return a file; a FileNotFoundError where there is none."""

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """Yield files in the order of their names; errors as `read`."""

    def names(self, folder: str, beginning: str = "") -> list[str]:
        """Return the names in a folder that begin so, sorted."""

    def exists(self, name: str) -> bool:
        """Return whether there is a file."""

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""

    def ages(self, folder: str) -> dict[str, float]:
        """Return how many seconds ago each file of a folder was made."""

    def require_exclusive(self) -> None:
        """Refuse a place where a file can be made twice."""


class DiskFolder:
    """A `Folder` on a file system.

    Parameters
    ----------
    disk
        What its files are written with.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def create(self, name: str, data: bytes) -> bool:
        with _explained(name):
            temporary = self._temporary(name, data)
            try:
                self._disk.link(temporary, name)
                made = True
            except FileExistsError:
                made = False
            finally:
                self._disk.remove(temporary)
            # Also where another has made it: it shall be certain before anybody builds on it.
            self._disk.sync_folder(_parent(name))
            return made

    def publish(self, name: str, data: bytes) -> None:
        with _explained(name):
            self._disk.rename(self._temporary(name, data), name)
            self._disk.sync_folder(_parent(name))

    def read(self, name: str) -> bytes:
        return self._disk.read(name)

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        return map(self._disk.read, names)

    def names(self, folder: str, beginning: str = "") -> list[str]:
        return sorted(name for name in self._ours(folder) if name.startswith(beginning))

    def exists(self, name: str) -> bool:
        return PurePosixPath(name).name in self._disk.names(_parent(name))

    def remove(self, name: str) -> None:
        self._disk.remove(name)

    def ages(self, folder: str) -> dict[str, float]:
        found = {}
        for name in self._ours(folder):
            with contextlib.suppress(FileNotFoundError):
                found[name] = self._disk.age(f"{folder}/{name}")
        return found

    def _ours(self, folder: str) -> Iterator[str]:
        # Systems leave hidden files of their own: .DS_Store, ._name, .nfs0001.
        return (name for name in self._disk.names(folder) if not name.startswith("."))

    def require_exclusive(self) -> None:
        # A link to a name that is taken fails on every file system that has links.
        pass

    def _temporary(self, name: str, data: bytes) -> str:
        for folder in (TEMPORARY, _parent(name)):
            self._disk.make_folder(folder)
        temporary = f"{TEMPORARY}/{secrets.token_hex(16)}"
        try:
            self._disk.write(temporary, data)
            self._disk.sync(temporary)
        except OSError:
            self._disk.remove(temporary)
            raise
        return temporary


def left_over(folder: Folder) -> list[str]:
    """Return temporary files that nobody can be writing any more."""
    return sorted(f"{TEMPORARY}/{name}" for name, age in folder.ages(TEMPORARY).items() if age > LEASE_SECONDS)


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)


class _explained:
    """Errors of the system in our words."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"there is no space for {self._name}; make some, and start the run again: nothing is lost"
            raise OutputError(message, code="no_space") from error
        message = f"cannot write {self._name}: {error.strerror}; mend that, and start the run again"
        raise OutputError(message, code="cannot_write") from error


class StoreFolder:
    """A `Folder` in an object store.

    Parameters
    ----------
    objects
        Of its bucket.
    prefix
        Of their keys: empty, or with a slash at its end.
    """

    def __init__(self, objects: Objects, prefix: str) -> None:
        self._objects = objects
        self._prefix = prefix

    def create(self, name: str, data: bytes) -> bool:
        return self._objects.put_new(self._prefix + name, data)

    def publish(self, name: str, data: bytes) -> None:
        self._objects.put(self._prefix + name, data)

    def read(self, name: str) -> bytes:
        return self._objects.get(self._prefix + name)

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        return in_parallel(self.read, names)

    def names(self, folder: str, beginning: str = "") -> list[str]:
        return sorted(name for name, _ in self._listed(folder, beginning))

    def exists(self, name: str) -> bool:
        try:
            self._objects.head(self._prefix + name)
        except FileNotFoundError:
            return False
        return True

    def remove(self, name: str) -> None:
        self._objects.delete(self._prefix + name)

    def ages(self, folder: str) -> dict[str, float]:
        # To a second, and as two clocks have it.
        now = time.time()
        return {name: now - found.written for name, found in self._listed(folder)}

    def require_exclusive(self) -> None:
        """Refuse a store that puts where it was told to put only what is not there.

        Some do not know of the condition, and put, whatever it says: there a run would be done twice. Of puts at once
        and of one afterwards exactly one must be told that it has made the object.

        Raises
        ------
        OutputError
            ``no_conditional_puts``.
        """
        name, asked = f"{TEMPORARY}/{secrets.token_hex(16)}", [str(number).encode() for number in range(_PROBES)]
        try:
            made = [data for data, new in zip(asked, self._probe(name, asked), strict=True) if new]
            made += [b"last"] if self.create(name, b"last") else []
            if len(made) == 1 and self.read(name) == made[0]:
                return
        except BackendUnavailable as error:
            if error.code != "store_failed":
                raise
        finally:
            self.remove(name)
        message = (
            "the store does not make an object exactly once (PutObject with If-None-Match: *), so that two drivers "
            "could both commit; use a store or a version of it that does, or a folder"
        )
        raise OutputError(message, code="no_conditional_puts")

    def _probe(self, name: str, asked: list[bytes]) -> Iterator[bool]:
        return in_parallel(lambda data: self.create(name, data), asked, _PROBES)

    def _listed(self, folder: str, beginning: str = "") -> Iterator[tuple[str, Found]]:
        above = f"{self._prefix}{folder}/"
        for found in self._objects.list(above + beginning):
            yield found.key.removeprefix(above), found


_PROBES = 4


def open_folder(place: str | os.PathLike[str]) -> Folder:
    """Return the folder of a run, which is made when something is written into it.

    Parameters
    ----------
    place
        A folder, or ``s3://bucket/prefix``.

    Raises
    ------
    InputError
        ``bad_address`` for an empty name, and an address that is not understood.
    BackendUnavailable
        ``s3_missing``.
    """
    text = os.fspath(place)
    if not text:
        message = "the folder of the run has an empty name; give a folder, such as ., or s3://bucket/prefix"
        raise InputError(message, code="bad_address")
    if is_address(text):
        bucket, prefix = parse_prefix(text)
        return StoreFolder(Objects(bucket), prefix)
    return DiskFolder(RealDisk(place))
