# SPDX-License-Identifier: Apache-2.0
"""Reading and writing files whole or not at all; every write of the package passes through here.

One exception: the ``.part`` of a download, which must outlive its process to be resumed (`segship.fetch.download`).

A write goes to a temporary file of a random name, created exclusively beside its target, which is synced and renamed
into place; then the directory is synced. So a reader sees the old file or the new one, never half of one, and a link
that somebody planted at the target is refused instead of followed. Names are opened relative to a descriptor of their
directory where the system has such calls (not on Windows), so that swapping the directory midway changes nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from segship.errors import InputError, OutputError

CHUNK_BYTES = 1 << 20
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# Opening a FIFO must not wait for its other end.
_READ_FLAGS = os.O_RDONLY | _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | getattr(os, "O_BINARY", 0)
_HAS_DIRECTORY_DESCRIPTORS = {os.open, os.stat, os.unlink, os.mkdir, os.rename} <= os.supports_dir_fd
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class _Directory:
    """A directory that names are resolved in: by descriptor where the system can, by path elsewhere."""

    path: Path
    descriptor: int | None

    def name(self, name: str) -> str:
        return name if self.descriptor is not None else str(self.path / name)

    def kind(self, name: str) -> int | None:
        """Return the mode of an entry itself, links not followed; None if there is no such entry."""
        try:
            return os.stat(self.name(name), dir_fd=self.descriptor, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return None

    def open(self, name: str, flags: int) -> int:
        return os.open(self.name(name), flags, 0o666, dir_fd=self.descriptor)

    def rename(self, old: str, new: str) -> None:
        os.replace(self.name(old), self.name(new), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def link(self, old: str, new: str) -> None:
        source, target = self.name(old), self.name(new)
        os.link(source, target, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.name(name), dir_fd=self.descriptor)

    def sync(self) -> None:
        if self.descriptor is not None:
            os.fsync(self.descriptor)


@contextmanager
def _directory(path: Path) -> Iterator[_Directory]:
    if not _HAS_DIRECTORY_DESCRIPTORS:
        yield _Directory(path, None)
        return
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        yield _Directory(path, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn what the system says about a failed write into an `OutputError` that names the target."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _DISK_FULL:
            raise OutputError(f"cannot write {target}: {reason}; free some space", code="disk_full") from error
        if not os.path.isdir(target.parent):
            message = f"cannot write {target}: there is no directory {target.parent}; make it first"
            raise OutputError(message, code="output_directory_missing") from error
        raise OutputError(f"cannot write {target}: {reason}; choose another place", code="cannot_write") from error


def _exists(target: Path) -> OutputError:
    message = f"{target} exists; ask for it to be overwritten, or choose another name"
    return OutputError(message, code="output_exists")


def _split(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path whose last part names an entry; links in its directories are the user's own."""
    target = Path(path)
    if target.name in ("", "..") or "\0" in str(path):
        raise OutputError(f"cannot write {str(path)!r}: it does not name a file or folder", code="cannot_write")
    return target.absolute()


def _refuse_target(directory: _Directory, target: Path, *, overwrite: bool, wanted: Callable[[int], bool]) -> None:
    mode = directory.kind(target.name)
    if mode is None:
        return
    if stat.S_ISLNK(mode):
        message = f"{target} is a link, and links are not written through; name the real place or remove the link"
        raise OutputError(message, code="output_is_link")
    if not overwrite:
        raise _exists(target)
    if not wanted(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "file"
        message = f"{target} is a {kind} or a special file, and cannot be replaced by this; choose another name"
        raise OutputError(message, code="output_wrong_kind")


def _temporary_name(name: str) -> str:
    # Cut, so that a long legal name does not become an illegal one (255 bytes is the usual limit).
    kept = name.encode("utf-8", "surrogateescape")[:200].decode("utf-8", "ignore")
    return f".{kept}.{secrets.token_hex(8)}.partial"


def check_target(path: str | os.PathLike[str], *, overwrite: bool = False, folder: bool = False) -> None:
    """Refuse now what `write_file` or, for a folder, `write_directory` would refuse."""
    target = _split(path)
    with _explained(target), _directory(target.parent) as directory:
        _refuse_target(directory, target, overwrite=overwrite, wanted=stat.S_ISDIR if folder else stat.S_ISREG)


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing, in a directory that exists, that appears under its name only if the block ends well.

    ``overwrite`` replaces a regular file of that name; a link, a folder or a device is never replaced.
    """
    target = _split(path)
    with _explained(target), _directory(target.parent) as directory:
        _refuse_target(directory, target, overwrite=overwrite, wanted=stat.S_ISREG)
        temporary = _temporary_name(target.name)
        descriptor = directory.open(temporary, _CREATE_FLAGS)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            _put_in_place(directory, temporary, target, overwrite=overwrite)
        finally:
            # Gone already after a rename; still there after a link or a failure.
            directory.unlink(temporary)
        directory.sync()


def _put_in_place(directory: _Directory, temporary: str, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        directory.rename(temporary, target.name)
        return
    # A hard link fails if the name is taken; a rename would silently replace what came there in the meantime.
    try:
        directory.link(temporary, target.name)
    except FileExistsError as error:
        raise _exists(target) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_HARD_LINKS:
            raise
        _refuse_target(directory, target, overwrite=False, wanted=stat.S_ISREG)
        directory.rename(temporary, target.name)


def write_file(path: str | os.PathLike[str], data: bytes | Iterable[bytes], *, overwrite: bool = False) -> None:
    """Write bytes, or pieces of them, to a file that appears whole or not at all."""
    with atomic_file(path, overwrite=overwrite) as stream:
        for piece in (data,) if isinstance(data, bytes) else data:
            stream.write(piece)


def write_directory(path: str | os.PathLike[str], fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Write a folder, in one that exists, that appears whole or not at all.

    ``fill`` is called once with an empty temporary folder beside the target; everything in it is synced afterwards. If
    it raises, the temporary folder is removed and the target stays as it was. ``overwrite`` replaces a folder of that
    name, with all that is in it: the caller says whether that folder is one of ours.
    """
    target = _split(path)
    with _explained(target), _directory(target.parent) as directory:
        _refuse_target(directory, target, overwrite=overwrite, wanted=stat.S_ISDIR)
        temporary = target.parent / _temporary_name(target.name)
        os.mkdir(directory.name(temporary.name), dir_fd=directory.descriptor)
        try:
            fill(temporary)
            _sync_tree(temporary)
            _swap_folder(directory, temporary, target, overwrite=overwrite)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        directory.sync()


def _sync_tree(folder: Path) -> None:
    for parent, folders, names in os.walk(folder):
        # A link to a folder is listed with the folders, and is refused like one to a file.
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in links + names:
            with open_regular(Path(parent) / name) as stream:
                os.fsync(stream.fileno())
        with _directory(Path(parent)) as directory:
            directory.sync()


def _swap_folder(directory: _Directory, temporary: Path, target: Path, *, overwrite: bool) -> None:
    _refuse_target(directory, target, overwrite=overwrite, wanted=stat.S_ISDIR)
    if directory.kind(target.name) is None:
        directory.rename(temporary.name, target.name)
        return
    # Two renames: there is no portable exchange. A crash in between leaves the old folder under its other name.
    aside = _temporary_name(target.name)
    directory.rename(target.name, aside)
    try:
        directory.rename(temporary.name, target.name)
    except OSError:
        directory.rename(aside, target.name)
        raise
    shutil.rmtree(target.parent / aside, ignore_errors=True)


def make_directory(path: str | os.PathLike[str]) -> None:
    """Make a folder and those above it, unless it is there."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        message = f"cannot make the folder {path}: {reason}; choose another place"
        raise OutputError(message, code="cannot_write") from error


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; a link, folder, FIFO or device is refused and never waited for."""
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}; check the name", code="file_missing") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise InputError(f"{path} is a link; name the real file", code="file_is_link") from error
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _not_regular(path) from error
        raise InputError(f"cannot read {path}: {error.strerror}", code="file_unreadable") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


def _not_regular(path: str | os.PathLike[str]) -> InputError:
    return InputError(f"{path} is not a regular file; name a plain file", code="file_wrong_kind")


def read_bytes(path: str | os.PathLike[str], *, limit: int) -> bytes:
    """Return all bytes of a regular file of at most ``limit`` bytes."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size <= limit:
            # One byte more than allowed, in case that the file grew since.
            data = stream.read(limit + 1)
            size = max(size, len(data))
        if size > limit:
            message = f"{path} has {size} bytes, and at most {limit} are read here; check that it is the right file"
            raise InputError(message, code="file_too_large")
    return data


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a regular file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open_regular(path) as stream:
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


CACHE_VARIABLE = "SEGSHIP_CACHE"


def cache_folder() -> Path:
    """Return the cache folder; it may not exist yet.

    The first of these that is set: ``SEGSHIP_CACHE``; ``XDG_CACHE_HOME/segship``; then by system ``~/.cache/segship``,
    ``~/Library/Caches/segship`` (macOS) or ``%LOCALAPPDATA%\\segship`` (Windows).

    Raises
    ------
    OutputError
        When nothing is set and the system knows no home folder.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    return _system_caches() / "segship"


def checkpoint_folder() -> Path:
    """Return the folder of fetched checkpoints; it may not exist yet."""
    return cache_folder() / "checkpoints"


def _system_caches() -> Path:
    # The XDG specification: a relative path is invalid and must be ignored.
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        return Path(xdg)
    system = platform.system()
    local = os.environ.get("LOCALAPPDATA", "")
    if system == "Windows" and os.path.isabs(local):
        return Path(local)
    try:
        home = Path.home()
    except RuntimeError as error:
        message = f"there is no home folder to keep a cache in; set {CACHE_VARIABLE} to a folder"
        raise OutputError(message, code="no_cache_folder") from error
    return home / ("Library/Caches" if system == "Darwin" else ".cache")
