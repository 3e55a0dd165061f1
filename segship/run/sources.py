# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run, wherever they lie: a folder, a list, a table with prompts, or tar archives, read in place; in an
object store each of these too.

Of each is noted where its bytes are and what they looked like when the run was planned; what has changed since is told
when it is read, and never answered for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from segship.errors import BackendUnavailable, ImageError, InputError, shown
from segship.files import open_regular, read_bytes, walk_folder
from segship.promptable.prompt_text import parse_prompts_json
from segship.run.objects import (
    SCHEME,
    Changed,
    Found,
    Objects,
    in_parallel,
    is_address,
    object_at,
    parse_address,
    parse_prefix,
)

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
_MOST_LIST_BYTES = 2**30
_IMAGE_COLUMNS = ("image", "path", "file_name", "filename")
_ID_BYTES = 16


class Item(NamedTuple):
    """One picture of a run.

    Attributes
    ----------
    id
        32 hexadecimal digits: of the SHA-256 of its name's bytes.
    name
        Its path below the source, or in its archive; bytes that are no text are escaped as Python does.
    place
        The file that its bytes are in, or the address of an object.
    offset, bytes
        Where in the file, and how many; the offset of what is a file of its own is -1.
    changed
        When the file was changed last, in nanoseconds, as the file system says; of an object a number of its ETag.
    prompts
        JSON as `segship.promptable.prompt_text` reads it; empty where there are none.
    """

    id: str
    name: str
    place: str
    offset: int
    bytes: int
    changed: int
    prompts: str = ""


def item_id(name: str) -> str:
    """Return the id of a name.

    Examples
    --------
    >>> item_id("a.jpg")
    '509b0d4641a7c3ba088ffa28559d1f57'
    """
    return hashlib.sha256(os.fsencode(name)).hexdigest()[: 2 * _ID_BYTES]


def find_items(source: str | os.PathLike[str]) -> Iterator[Item]:
    """Yield the pictures of a source in no particular order.

    Parameters
    ----------
    source
        A folder, with all below it; a ``.txt`` with a path a line; a ``.csv`` or ``.parquet`` with a column ``image``
        and, for prompts, ``prompts`` with JSON, or ``x`` and ``y`` (and ``label``), or ``x0``, ``y0``, ``x1``, ``y1``;
        a ``.tar``, or a folder in which there are such. Paths are relative to the folder of the file that names them,
        or addresses. ``s3://bucket/prefix`` is a folder of a store, and may be one of the files too.

    Raises
    ------
    InputError
        ``no_source``, ``bad_source``, ``bad_address``, or where two pictures have one name, ``same_name``.
    BackendUnavailable
        What `segship.run.objects.Objects` says of a store.
    """
    text = os.fspath(source)
    suffix = PurePosixPath(text).suffix.lower()
    if is_address(text) and suffix not in _FILES:
        yield from _below(text)
    elif not is_address(text) and os.path.isdir(text):
        yield from _in_folder(Path(text))
    elif not is_address(text) and not os.path.exists(text):
        raise InputError(f"there is no source {shown(text)}; check the name", code="no_source")
    elif suffix == ".tar":
        yield from _in_tar(text, "")
    elif suffix == ".txt":
        yield from _named(((name, "") for name in _lines(text)), text)
    elif suffix in _TABLES:
        yield from _named(_rows(text), text)
    else:
        message = (
            f"{shown(text)} is no source; accepted are a folder, a .txt with a path a line, a .csv or .parquet "
            "with a column image, a .tar, and s3://bucket/prefix"
        )
        raise InputError(message, code="bad_source")


_TABLES = (".csv", ".parquet")
_FILES = (".tar", ".txt", *_TABLES)


def _in_folder(folder: Path) -> Iterator[Item]:
    for path in walk_folder(folder):
        suffix = path.suffix.lower()
        name = path.relative_to(folder).as_posix()
        if suffix in PICTURES:
            yield _file_item(os.fspath(path), name)
        elif suffix == ".tar":
            yield from _in_tar(os.fspath(path), name)


def _below(address: str) -> Iterator[Item]:
    bucket, prefix = parse_prefix(address)
    archives = []
    for found in Objects(bucket).list(prefix):
        suffix, name = PurePosixPath(found.key).suffix.lower(), found.key.removeprefix(prefix)
        if suffix in PICTURES:
            place = f"{SCHEME}{bucket}/{found.key}"
            yield Item(item_id(name), name, place, -1, found.size, found.version)
        elif suffix == ".tar":
            archives.append((f"{SCHEME}{bucket}/{found.key}", name))
    for items in in_parallel(lambda one: list(_in_tar(*one)), archives, _ARCHIVES):
        yield from items


# Of a store that are looked through at once.
_ARCHIVES = 4


def _file_item(place: str, name: str, prompts: str = "") -> Item:
    size, changed = -1, 0
    if is_address(place):
        with contextlib.suppress(FileNotFoundError):
            found = _found(place)
            size, changed = found.size, found.version
    else:
        place = os.path.abspath(place)
        with contextlib.suppress(OSError, ValueError):
            # Not opened: what is no file, such as a pipe, would make a reader wait.
            status = os.stat(place)
            size, changed = (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (-1, 0)
    return Item(item_id(name), name, place, -1, size, changed, prompts)


def _found(address: str) -> Found:
    objects, key = object_at(address)
    return objects.head(key)


def _in_tar(place: str, prefix: str) -> Iterator[Item]:
    """Yield the pictures in an archive; it is never unpacked."""
    place = place if is_address(place) else os.path.abspath(place)
    file, changed = _opened(place)
    try:
        with file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse() and Path(member.name).suffix.lower() in PICTURES:
                    name = f"{prefix}/{member.name}" if prefix else member.name
                    yield Item(item_id(name), name, place, member.offset_data, member.size, changed)
                # What tarfile remembers of each grows without bound.
                archive.members = []  # type: ignore[attr-defined]
            # tarfile takes a header that is cut or damaged for the end.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no member and no end at byte {archive.offset:,}")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        message = (
            f"{shown(place)} is no tar archive, or is cut off or damaged: {shown(str(error))}; make it again with tar, "
            "and not compressed"
        )
        raise InputError(message, code="bad_source") from None
    except Changed:
        raise InputError(f"{shown(place)} was changed while it was read; plan again", code="bad_source") from None


def _opened(place: str) -> tuple[BinaryIO, int]:
    """Return a file or object that can be sought in, and when or how it was changed last."""
    if is_address(place):
        ranges = _Ranges(*object_at(place))
        return cast(BinaryIO, io.BufferedReader(ranges, _READ_AHEAD)), ranges.found.version
    file = open(place, "rb")
    return file, os.fstat(file.fileno()).st_mtime_ns


# Pictures in archives are mostly smaller: fewer requests are faster than fewer bytes.
_READ_AHEAD = 2**20


class _Ranges(io.RawIOBase):
    """An object as a file that is read here and there."""

    def __init__(self, objects: Objects, key: str) -> None:
        self._objects, self._at = objects, 0
        try:
            self.found = objects.head(key)
        except FileNotFoundError as error:
            raise InputError(f"there is no source {error}; check the name", code="no_source") from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.found.size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self.found.size - self._at)
        if size <= 0:
            return 0
        buffer[:size] = self._objects.get(self.found.key, self._at, size, self.found.version)
        self._at += size
        return size


def _whole(place: str) -> bytes:
    """Return the bytes of a list or a table."""
    if not is_address(place):
        return read_bytes(place, limit=_MOST_LIST_BYTES)
    file, _ = _opened(place)
    with file:
        data = file.read(_MOST_LIST_BYTES + 1)
    if len(data) > _MOST_LIST_BYTES:
        message = f"{shown(place)} has more than {_MOST_LIST_BYTES:,} bytes; make several of it"
        raise InputError(message, code="bad_source")
    return data


_PART = 1_024


def _named(named: Iterable[tuple[str, str]], beside: str) -> Iterator[Item]:
    """Yield the pictures that a list or a table names, with their prompts."""
    entries = ((_place(name, beside), name, prompts) for name, prompts in named)
    while part := list(islice(entries, _PART)):
        # Each of a store is a request, which mostly waits.
        apply = in_parallel if any(is_address(place) for place, _, _ in part) else map
        yield from apply(lambda entry: _file_item(*entry), part)


def _place(name: str, beside: str) -> str:
    """Return where a name leads that stands in a file, or in an object."""
    if is_address(name):
        return name
    if not is_address(beside):
        return os.path.join(os.path.dirname(beside), name)
    bucket, key = parse_address(beside)
    there = posixpath.join("/", posixpath.dirname(key), name)
    # Keys are no paths, and may have what a path would not; but ways up are meant as such.
    there = posixpath.normpath(there) if {".", ".."} & set(name.split("/")) else there
    return f"{SCHEME}{bucket}{there}"


def _lines(place: str) -> Iterator[str]:
    for line in _whole(place).split(b"\n"):
        name = os.fsdecode(line.strip(b"\r"))
        if name.strip() and not name.startswith("#"):
            yield name


def _rows(place: str) -> Iterator[tuple[str, str]]:
    """Yield name and prompts of each row of a table."""
    table = _read_table(place)
    names = table.column_names
    twice = [name for name in (*_IMAGE_COLUMNS, *_PROMPT_COLUMNS) if names.count(name) > 1]
    if twice:
        raise InputError(f"{place} has the column {twice[0]} twice; leave one of them", code="bad_source")
    column = next((name for name in _IMAGE_COLUMNS if name in names), None)
    if column is None:
        message = f"{place} has no column image; it has {', '.join(map(shown, names))}"
        raise InputError(message, code="bad_source")
    for batch in table.select([name for name in names if name == column or name in _PROMPT_COLUMNS]).to_batches():
        for row in batch.to_pylist():
            found = row[column]
            if found in (None, "", b""):
                raise InputError(f"{place} has a row without an image; name one in each", code="bad_source")
            # Names of files need not be text.
            name = os.fsdecode(found) if isinstance(found, bytes) else str(found)
            yield name, _prompts_of(row, name)


_PROMPT_COLUMNS = ("prompts", "x", "y", "label", "x0", "y0", "x1", "y1")


def _read_table(place: str) -> Any:
    source = io.BytesIO(_whole(place)) if is_address(place) else place
    try:
        return _read_csv(source) if place.lower().endswith(".csv") else _read_parquet(source)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        # pyarrow raises a good many.
        message = f"{place} cannot be read as a table: {shown(str(error))}"
        raise InputError(message, code="bad_source") from None


# A row, with all its prompts, must lie in one.
_CSV_BLOCK = 64 * 2**20


def _read_csv(source: Any) -> Any:
    pyarrow, csv = import_module("pyarrow"), import_module("pyarrow.csv")
    # Not guessed from the first rows: 7 is a name there, 3 is not what 3.5 comes after, and 007 is not 7.
    kinds = dict.fromkeys(_IMAGE_COLUMNS, pyarrow.binary()) | {"prompts": pyarrow.string()}
    kinds |= dict.fromkeys(_PROMPT_COLUMNS[1:], pyarrow.float64())
    return csv.read_csv(
        source,
        read_options=csv.ReadOptions(block_size=_CSV_BLOCK),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=kinds),
    )


def _read_parquet(source: Any) -> Any:
    return import_module("pyarrow.parquet").read_table(source)


def _prompts_of(row: dict[str, Any], name: str) -> str:
    """Return the prompts of a row as JSON; of a point or a box one object."""
    if row.get("prompts") not in (None, ""):
        text = str(row["prompts"])
        # Refused now, and not after hours.
        try:
            parse_prompts_json(text)
        except InputError as error:
            raise InputError(f"prompts of {shown(name)}: {error}", code=error.code) from None
        return text
    try:
        return _numbers_of(row)
    except (ValueError, OverflowError):
        message = f"the point or box of {shown(name)} is not of finite numbers; give pixels"
        raise InputError(message, code="bad_source") from None


def _numbers_of(row: dict[str, Any]) -> str:
    found: dict[str, Any] = {}
    if row.get("x") is not None and row.get("y") is not None:
        found["points"] = [[float(row["x"]), float(row["y"])]]
        found["labels"] = [int(row["label"]) if row.get("label") is not None else 1]
    if all(row.get(side) is not None for side in _PROMPT_COLUMNS[4:]):
        found["boxes"] = [[float(row[side]) for side in _PROMPT_COLUMNS[4:]]]
    return json.dumps(found, allow_nan=False) if found else ""


def renewed(item: Item) -> Item:
    """Return an item as its file or object is now, for a new plan."""
    if item.offset < 0:
        return _file_item(item.place, item.name, item.prompts)
    with contextlib.suppress(OSError):
        version = _found(item.place).version if is_address(item.place) else os.stat(item.place).st_mtime_ns
        return item._replace(changed=version)
    return item


def read_item(item: Item, limit: int) -> bytes:
    """Return the bytes of an item.

    Raises
    ------
    ImageError
        ``vanished``, ``changed_since_plan``, ``not_a_file``, ``unreadable_file`` or ``too_many_bytes``.
    BackendUnavailable
        What `segship.run.objects.Objects` says of a store: nothing is wrong with the picture.
    """
    if item.bytes > limit:
        message = f"it has {item.bytes:,} bytes; at most {limit:,} are read"
        raise ImageError(message, code="too_many_bytes")
    data = _read_object(item) if is_address(item.place) else _read_file(item)
    if len(data) != item.bytes:
        raise ImageError("it is shorter than when the run was planned; plan anew", code="changed_since_plan")
    return data


def _read_file(item: Item) -> bytes:
    try:
        with open_regular(item.place) as file:
            found = os.fstat(file.fileno())
            size = found.st_size if item.offset < 0 else item.bytes
            if (size, found.st_mtime_ns) != (item.bytes, item.changed):
                raise ImageError("it was changed since the run was planned; plan anew", code="changed_since_plan")
            file.seek(max(item.offset, 0))
            return file.read(item.bytes)
    except ImageError:
        raise
    except InputError as error:
        code = {"file_missing": "vanished", "file_wrong_kind": "not_a_file", "file_is_link": "not_a_file"}
        raise ImageError(str(error), code=code.get(error.code, "unreadable_file")) from None
    except OSError as error:
        raise ImageError(f"it cannot be read: {error.strerror}", code="unreadable_file") from None


def _read_object(item: Item) -> bytes:
    try:
        objects, key = object_at(item.place)
        if item.offset < 0:
            return objects.get(key, version=item.changed)
        # A range of no bytes cannot be asked for.
        return objects.get(key, item.offset, item.bytes, item.changed) if item.bytes else b""
    except FileNotFoundError:
        raise ImageError("it is in its store no more", code="vanished") from None
    except Changed:
        raise ImageError("it was changed since the run was planned; plan anew", code="changed_since_plan") from None
    except BackendUnavailable as error:
        if error.code != "store_denied":
            raise
        raise ImageError(str(error), code="unreadable_file") from None
