# SPDX-License-Identifier: Apache-2.0
"""Reading and writing files whole or not at all; every write of the package passes through here.

One exception: the ``.part`` of a download, which must outlive its process to be resumed (`segship.fetch.download`).

A write goes to a temporary file of a random name, created exclusively beside its target, which is synced and renamed
into place; then the directory is synced. So a reader sees the old file or the new one, never half of one, and a link
that somebody planted at the target is refused instead of followed. Names are opened relative to a descriptor of their
directory where the system has such calls (not on Windows), so that swapping the directory midway changes nothing.

Several files are one unit in `write_together`: all are written and synced aside, then put in place, one process a
directory at a time, the last old one gone before the first new one comes. What is still to be put in place lies in the
folder `PUBLISHING`; it is there for milliseconds, or after a process was killed in them, and then the next one that
writes in the directory, or `tidy_directory`, finishes what it finds.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from segship.errors import InputError, OutputError, way

try:
    import fcntl
except ImportError:
    # Windows.
    fcntl = None  # type: ignore[assignment]

CHUNK_BYTES = 1 << 20
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
# Opening a FIFO must not wait for its other end.
_READ_FLAGS = os.O_RDONLY | _NO_FOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW | getattr(os, "O_BINARY", 0)
_HAS_DIRECTORY_DESCRIPTORS = {os.open, os.stat, os.unlink, os.mkdir, os.rename} <= os.supports_dir_fd
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
# EPERM is how some sandboxes refuse a call that they do not know; if it is a real one, the fallback meets it too.
_NO_SUCH_RENAME = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
# Of linux/fs.h.
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2

PUBLISHING = ".segship.publishing"
"""The folder of what is still to be put in place: ``new``, ``old`` if it replaces something, ``gone`` for what goes."""
_NEW, _OLD, _GONE = (f"{PUBLISHING}/{part}" for part in ("new", "old", "gone"))
_PARTIAL = re.compile(r"\..*\.[0-9a-f]{16}\.partial", re.DOTALL)
_KEPT_SECONDS = 24 * 3600
"""A partial that did not change for so long is of a process that was killed."""
_TURN_SECONDS = 60
"""How long a turn is waited for; it takes milliseconds unless the one who has it was stopped."""


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

    def rename_new(self, old: str, new: str) -> None:
        """Rename to a name that nobody has; where the system cannot say that in one step, it is looked up before."""
        if not self._renamed(old, new, _RENAME_NOREPLACE):
            if self.kind(new) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            self.rename(old, new)

    def exchange(self, old: str, new: str) -> bool:
        """Exchange two entries in one step; False if the system or the file system cannot."""
        return self._renamed(old, new, _RENAME_EXCHANGE)

    def _renamed(self, old: str, new: str, how: int) -> bool:
        call = _renameat2()
        if call is None or self.descriptor is None:
            return False
        if call(self.descriptor, os.fsencode(old), self.descriptor, os.fsencode(new), how) == 0:
            return True
        code = ctypes.get_errno()
        if code in _NO_SUCH_RENAME:
            return False
        raise OSError(code, os.strerror(code), new)

    def mkdir(self, name: str) -> None:
        os.mkdir(self.name(name), dir_fd=self.descriptor)

    def list(self, name: str) -> list[str]:
        """Return the names in a folder; none if there is no such folder."""
        try:
            return sorted(os.listdir(self.path / name))
        except FileNotFoundError:
            return []

    def link(self, old: str, new: str) -> None:
        source, target = self.name(old), self.name(new)
        os.link(source, target, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self.name(name), dir_fd=self.descriptor)

    def sync(self) -> None:
        if self.descriptor is not None:
            os.fsync(self.descriptor)


@functools.cache
def _renameat2() -> Any:
    """Return Linux's renameat2, which Python does not have; None on other systems."""
    if platform.system() != "Linux":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


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
def explained(target: Path) -> Iterator[None]:
    """Turn what the system says in the block about a failed write into an `OutputError` that names the target."""
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
    message = f"{target} exists; replace it with {way('overwrite=True', '--overwrite')}, or choose another name"
    return OutputError(message, code="output_exists")


def _split(path: str | os.PathLike[str]) -> Path:
    """Return an absolute path whose last part names an entry; links in its directories are the user's own."""
    target = Path(path)
    if target.name in ("", "..") or not is_possible_path(path):
        raise OutputError(f"cannot write {str(path)!r}: it does not name a file or folder", code="cannot_write")
    return target.absolute()


def is_possible_path(path: str | os.PathLike[str]) -> bool:
    """Whether a path has no character that no file system takes: NUL, or a lone surrogate that is no byte."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


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
    finish_publishing(target.parent)
    with explained(target), _directory(target.parent) as directory:
        _refuse_target(directory, target, overwrite=overwrite, wanted=stat.S_ISDIR if folder else stat.S_ISREG)


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing, in a directory that exists, that appears under its name only if the block ends well.

    ``overwrite`` replaces a regular file of that name; a link, a folder or a device is never replaced.
    """
    target = _split(path)
    with explained(target), _directory(target.parent) as directory:
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


_ENDINGS = set(".jpg .jpeg .png .webp .tif .tiff .bmp .gif .json .npz .txt .csv .parquet".split())


def check_ending(path: str | os.PathLike[str], accepted: Collection[str], what: str) -> None:
    """Refuse the ending of another format as ``unknown_format``; ``what`` is written and has the accepted endings."""
    ending = os.path.splitext(path)[1].lower()
    if ending in _ENDINGS and ending not in accepted:
        message = f"{os.fspath(path)!r} ends with {ending}, and {what} is written; give {' or '.join(accepted)}"
        raise OutputError(message, code="unknown_format")


def write_file(path: str | os.PathLike[str], data: bytes | Iterable[bytes], *, overwrite: bool = False) -> None:
    """Write bytes, or pieces of them, to a file that appears whole or not at all."""
    with atomic_file(path, overwrite=overwrite) as stream:
        for piece in (data,) if isinstance(data, bytes) else data:
            stream.write(piece)


def write_directory(path: str | os.PathLike[str], fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Write a folder, in one that exists, that appears whole or not at all.

    ``fill`` is called once with an empty temporary folder in the target's; everything in it is synced afterwards. If it
    raises, the temporary folder is removed and the target stays as it was. ``overwrite`` replaces a folder of that
    name, with all that is in it: the caller says whether that folder is one of ours.
    """
    target = _split(path)
    write_together(target.parent, {target.name: fill}, overwrite=overwrite)


Content = bytes | Path | Callable[[Path], None]
"""The bytes of a file, a file or folder of `partial_folder` that is moved, or what fills a folder."""


@contextmanager
def partial_folder(folder: str | os.PathLike[str], name: str) -> Iterator[Path]:
    """Make a hidden folder for something large that comes piece by piece until `write_together` moves it.

    It is removed with what is left in it, or by `tidy_directory` if the process is killed.
    """
    target = _split(Path(folder) / name)
    with explained(target), _directory(target.parent) as directory:
        staging = _temporary_name(target.name)
        directory.mkdir(staging)
    try:
        yield target.parent / staging
    finally:
        shutil.rmtree(target.parent / staging, ignore_errors=True)


def write_together(
    folder: str | os.PathLike[str],
    entries: Mapping[str, Content],
    *,
    overwrite: bool = False,
    gone: Collection[str] = (),
) -> None:
    """Write files and folders, in a folder that exists, that appear together or not at all.

    Parameters
    ----------
    folder
        Where they shall be.
    entries
        Name to its content: bytes of a file, what fills a folder as in `write_directory`, or what lies in a folder of
        `partial_folder` beside.
    overwrite
        Replace files by files and folders by folders of these names, all of them as one.
    gone
        Names of files that belonged to what is replaced, and go with it.

    Raises
    ------
    OutputError
        Nothing changed then. Only a process that is killed while it puts entries in place leaves some of them and
        others not, though never a new one beside an old one; see `tidy_directory`.
    """
    place = Path(folder).absolute()
    targets = {_split(place / name): _kind_of(content) for name, content in entries.items()}
    if not targets and not gone:
        return
    first = min(targets, default=place / min(gone, default="."))
    with explained(first), _directory(place) as directory:
        _refuse_targets(directory, targets, overwrite=overwrite)
        staging = _temporary_name(first.name)
        directory.mkdir(staging)
        try:
            _stage(directory, staging, entries, overwrite=overwrite, gone=gone)
            _take_turn(directory)
            # Again, since others had their turns meanwhile.
            _refuse_targets(directory, targets, overwrite=overwrite)
            _publish(directory, staging, list(entries), overwrite=overwrite, alone=not gone)
        except FileExistsError as error:
            raise _exists(place / str(error.filename)) from error
        finally:
            # Gone already if it was published; an old folder after an exchange.
            shutil.rmtree(place / staging, ignore_errors=True)


def _kind_of(content: Content) -> Callable[[int], bool]:
    """Return what tells from a mode that something can be replaced by the content."""
    is_file = isinstance(content, bytes) or (isinstance(content, Path) and content.is_file())
    return stat.S_ISREG if is_file else stat.S_ISDIR


def _refuse_targets(directory: _Directory, targets: Mapping[Path, Callable[[int], bool]], *, overwrite: bool) -> None:
    for target, wanted in targets.items():
        _refuse_target(directory, target, overwrite=overwrite, wanted=wanted)


def _stage(
    directory: _Directory,
    staging: str,
    entries: Mapping[str, Content],
    *,
    overwrite: bool,
    gone: Collection[str],
) -> None:
    """Write everything aside and sync it; the folder then says all that is to be done, also to another process."""
    for part in ("new", *(["old"] if overwrite else []), *(["gone"] if gone else [])):
        directory.mkdir(f"{staging}/{part}")
    for name in gone:
        os.close(directory.open(f"{staging}/gone/{name}", _CREATE_FLAGS))
    for name, content in entries.items():
        inside = f"{staging}/new/{name}"
        if isinstance(content, bytes):
            with os.fdopen(directory.open(inside, _CREATE_FLAGS), "wb") as stream:
                stream.write(content)
        elif isinstance(content, Path):
            os.rename(content, directory.path / inside)
        else:
            directory.mkdir(inside)
            content(directory.path / inside)
    for part in ("new", *(["gone"] if gone else [])):
        _sync_tree(directory.path / staging / part)


def _take_turn(directory: _Directory) -> None:
    """Get the turn to publish in a directory, until that is closed; what a killed process left is finished first."""
    _wait_until(functools.partial(_has_turn, directory))


def _wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _TURN_SECONDS
    while not done():
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"another process has been writing here for {_TURN_SECONDS} s")
        time.sleep(0.01)


def _has_turn(directory: _Directory) -> bool:
    locks = fcntl is not None and directory.descriptor is not None
    try:
        if fcntl is not None and directory.descriptor is not None:
            # The system takes it back when the process ends, however it ends.
            fcntl.flock(directory.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        locks = False
    try:
        left = os.stat(directory.path / PUBLISHING, follow_symlinks=False)
    except FileNotFoundError:
        return True
    # Without locks whoever has the folder has the turn, unless it has lain there for longer than a turn takes.
    if not locks and time.time() - left.st_mtime < _TURN_SECONDS / 2:
        return False
    _mend(directory, left)
    return True


def _mend(directory: _Directory, found: os.stat_result) -> None:
    left = directory.path / PUBLISHING
    if not stat.S_ISDIR(found.st_mode) or not _is_own(left):
        # Finishing it would move and remove files in our name as somebody else says.
        message = f"{left} is not of this user; have it finished or removed by its owner, or choose another folder"
        raise OutputError(message, code="cannot_write")
    try:
        _put_all_in_place(directory)
    except FileExistsError as error:
        taken = directory.path / str(error.filename)
        message = f"{taken} came in the way of a run that was killed; move it away, or remove {left} with what it holds"
        raise OutputError(message, code="output_exists") from error


def _is_own(path: Path) -> bool:
    return not hasattr(os, "geteuid") or path.lstat().st_uid == os.geteuid()


def _publish(directory: _Directory, staging: str, names: list[str], *, overwrite: bool, alone: bool) -> None:
    if len(names) == 1 and alone and _put_one_in_place(directory, f"{staging}/new/{names[0]}", names[0], overwrite):
        directory.sync()
        return
    # Where there are no locks, somebody else may have been quicker since the turn was asked for.
    _wait_until(functools.partial(_begin, directory, staging))
    try:
        _put_all_in_place(directory)
    except BaseException:
        _take_all_back(directory, names)
        raise


def _begin(directory: _Directory, staging: str) -> bool:
    """Begin to publish, so that a process that is killed from here on is finished by the next one."""
    # Its age says whether its process can be alive, where nothing else does.
    os.utime(directory.path / staging)
    try:
        directory.rename_new(staging, PUBLISHING)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    return True


def _put_one_in_place(directory: _Directory, staged: str, name: str, overwrite: bool) -> bool:
    """Put one entry in place in one step; False if that cannot be done here."""
    mode = directory.kind(name) if overwrite else None
    if mode is None:
        directory.rename_new(staged, name)
    elif stat.S_ISDIR(mode):
        return directory.exchange(staged, name)
    else:
        directory.rename(staged, name)
    return True


def _put_all_in_place(directory: _Directory) -> None:
    """Move old entries out and new ones in; a process that is killed in it can be followed by another that does it."""
    names = directory.list(_NEW)
    replaced = [name for name in (*directory.list(_GONE), *names) if directory.kind(name) is not None]
    if replaced:
        if directory.kind(_OLD) is None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), replaced[0])
        # On disk too what is to come is there before the first old one goes, and the last of them is gone before the
        # first new one comes.
        directory.sync()
        for name in replaced:
            _remove(directory.path / _OLD / name)
            directory.rename(name, f"{_OLD}/{name}")
        directory.sync()
    for name in names:
        directory.rename_new(f"{_NEW}/{name}", name)
    directory.sync()
    _remove(directory.path / PUBLISHING)


def _take_all_back(directory: _Directory, names: Iterable[str]) -> None:
    left = set(directory.list(_NEW))
    for name in names:
        if name not in left:
            directory.rename(name, f"{_NEW}/{name}")
    for name in directory.list(_OLD):
        directory.rename(f"{_OLD}/{name}", name)
    directory.sync()
    _remove(directory.path / PUBLISHING)


def _remove(path: Path) -> None:
    """Remove what is there, a file or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def finish_publishing(folder: str | os.PathLike[str]) -> bool:
    """Put in place what a killed process left half put in place in a folder, and tell whether there was such a thing.

    A process that is alive is waited for.
    """
    place = Path(folder).absolute()
    if not os.path.lexists(place / PUBLISHING):
        return False
    with explained(place / PUBLISHING), _directory(place) as directory:
        _take_turn(directory)
    return True


def tidy_directory(path: str | os.PathLike[str]) -> list[str]:
    """Finish or remove what killed processes left in a folder, and return for each such thing a line for people.

    Files that were half put in place are put in place. What was half written, ``.NAME.<16 digits>.partial``, is removed
    if nothing in it changed for a day, and left before, since its process may be alive. A folder that is not there has
    nothing to tidy.

    Raises
    ------
    OutputError
        What is left cannot be put in place, since a file is in the way.
    """
    place = Path(path).absolute()
    if not os.path.isdir(place):
        return []
    lines = []
    if finish_publishing(place):
        lines.append(f"{place}: files that a killed run had half put in place are in place now")
    with os.scandir(place) as entries:
        partial = sorted(
            entry.name for entry in entries if _PARTIAL.fullmatch(entry.name) and _is_own(place / entry.name)
        )
    for name in partial:
        # Others may be done with theirs while we look.
        with suppress(FileNotFoundError):
            lines += _tidy_partial(place / name)
    return lines


def _tidy_partial(path: Path) -> list[str]:
    if not _is_own(path):
        return []
    age = time.time() - _last_change(path)
    if age <= _KEPT_SECONDS:
        return [f"{path} is of a run that was killed or still writes; it is removed when a day old"]
    _remove(path)
    return [f"{path} was removed, which a killed run left {age / 3600:.0f} hours ago"]


def _last_change(path: Path) -> float:
    changes = [path.lstat().st_mtime]
    for parent, _, names in os.walk(path):
        for name in (parent, *(os.path.join(parent, name) for name in names)):
            with suppress(OSError):
                changes.append(os.lstat(name).st_mtime)
    return max(changes)


def _sync_tree(folder: Path) -> None:
    for parent, folders, names in os.walk(folder):
        # A link to a folder is listed with the folders, and is refused like one to a file.
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in links + names:
            with open_regular(Path(parent) / name) as stream:
                os.fsync(stream.fileno())
        with _directory(Path(parent)) as directory:
            directory.sync()


def make_directory(path: str | os.PathLike[str]) -> None:
    """Make a folder and those above it, unless it is there."""
    if not is_possible_path(path):
        raise OutputError(f"cannot make the folder {str(path)!r}: no folder can be called so", code="cannot_write")
    try:
        os.makedirs(path, exist_ok=True)
    # RecursionError: a thousand folders in one another.
    except (OSError, ValueError, RecursionError) as error:
        raise _no_directory(path, error) from error


def _no_directory(path: str | os.PathLike[str], error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file is in the way"
    return OutputError(f"cannot make the folder {path}: {reason}; choose another place", code="cannot_write")


def check_directory(path: str | os.PathLike[str]) -> None:
    """Refuse now what `make_directory` and writes into the folder would refuse; nothing is left behind."""
    place, missing = Path(os.path.abspath(path)), None
    try:
        while not os.path.lexists(place):
            # Looked at itself, which says what os.path.lexists does not: a name too long, a loop of links.
            with suppress(FileNotFoundError):
                os.lstat(place)
            place, missing = place.parent, place
        if not stat.S_ISDIR(os.stat(place).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        if missing is not None:
            # Some folders take nothing, whatever they say of it.
            os.mkdir(missing)
            os.rmdir(missing)
    except (OSError, ValueError) as error:
        raise _no_directory(path, error) from error


def walk_folder(folder: str | os.PathLike[str], *, deep: bool = True) -> Iterator[Path]:
    """Yield the files of a folder, and with ``deep`` those of all folders below it, by name.

    Links are followed, since data sets often lie elsewhere and are linked into place, each folder once. Hidden files
    and folders are left out: Mac archives leave files with such names beside the real ones.

    Raises
    ------
    InputError
        ``folder_unreadable``.
    """

    def refuse(error: OSError) -> None:
        message = f"cannot read the folder {error.filename}: {error.strerror}; check who may read it"
        raise InputError(message, code="folder_unreadable") from error

    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        place = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if deep and not name.startswith(".") and place not in seen)
        if place not in seen:
            yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))
        seen.add(place)


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return where links lead; a path that leads nowhere, or in a circle, as far as that goes."""
    try:
        return Path(os.path.realpath(path))
    except ValueError:
        # A NUL, which whoever opens the file refuses.
        return Path(path)


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; a link, folder, FIFO or device is refused and never waited for."""
    if not is_possible_path(path):
        raise InputError(f"there is no file {str(path)!r}, since none can be called so", code="file_missing")
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}; check the name", code="file_missing") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            found = "a link" if os.path.exists(path) else "a link that leads nowhere"
            raise InputError(f"{path} is {found}; name the real file", code="file_is_link") from error
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _not_regular(path) from error
        raise _unreadable(path, error) from error
    except ValueError as error:
        # A NUL.
        raise InputError(f"{str(path)!r} cannot be the name of a file; check the name", code="file_missing") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path)
    return os.fdopen(descriptor, "rb")


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str | os.PathLike[str], error: OSError) -> InputError:
    message = f"cannot read {path}: {error.strerror}; check the name, the disk, and who may read it"
    return InputError(message, code="file_unreadable")


def _not_regular(path: str | os.PathLike[str]) -> InputError:
    return InputError(f"{path} is not a regular file; name a plain file", code="file_wrong_kind")


def read_bytes(path: str | os.PathLike[str], *, limit: int) -> bytes:
    """Return all bytes of a regular file of at most ``limit`` bytes."""
    with open_regular(path) as stream, _readable(path):
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
    with open_regular(path) as stream, _readable(path):
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
