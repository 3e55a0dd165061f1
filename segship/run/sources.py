# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run, wherever they lie: a folder, a list, a table with prompts, or tar archives, read in place.

Of each is noted where its bytes are and what they looked like when the run was planned; what has changed since is told
when it is read, and never answered for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from segship.errors import ImageError, InputError, shown
from segship.files import open_regular, read_bytes, walk_folder
from segship.promptable.prompt_text import parse_prompts_json

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
        The file that its bytes are in.
    offset, bytes
        Where in the file, and how many; the offset of what is a file of its own is -1.
    changed
        When the file was changed last, in nanoseconds, as the file system says.
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
        a ``.tar``, or a folder in which there are such. Paths are relative to the folder of the file that names them.

    Raises
    ------
    InputError
        ``no_source``, ``bad_source``, or where two pictures have one name, ``same_name``.
    """
    path = Path(source)
    if path.is_dir():
        yield from _in_folder(path)
    elif not path.exists():
        raise InputError(f"there is no source {shown(str(source))}; check the name", code="no_source")
    elif path.suffix.lower() == ".tar":
        yield from _in_tar(path, "")
    elif path.suffix.lower() == ".txt":
        yield from _in_list(path)
    elif path.suffix.lower() in (".csv", ".parquet"):
        yield from _in_table(path)
    else:
        message = (
            f"{shown(str(source))} is no source; accepted are a folder, a .txt with a path a line, a .csv or .parquet "
            "with a column image, and a .tar"
        )
        raise InputError(message, code="bad_source")


def _in_folder(folder: Path) -> Iterator[Item]:
    for path in walk_folder(folder):
        suffix = path.suffix.lower()
        name = path.relative_to(folder).as_posix()
        if suffix in PICTURES:
            yield _file_item(path, name)
        elif suffix == ".tar":
            yield from _in_tar(path, name)


def _file_item(path: Path, name: str, prompts: str = "") -> Item:
    place = os.path.abspath(path)
    try:
        # Not opened: what is no file, such as a pipe, would make a reader wait.
        found = os.stat(place)
        size, changed = (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, 0)
    except (OSError, ValueError):
        size, changed = -1, 0
    return Item(item_id(name), name, place, -1, size, changed, prompts)


def _in_tar(path: Path, prefix: str) -> Iterator[Item]:
    """Yield the pictures in an archive; it is never unpacked."""
    place, changed = os.path.abspath(path), os.stat(path).st_mtime_ns
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and not member.issparse() and Path(member.name).suffix.lower() in PICTURES:
                    name = f"{prefix}/{member.name}" if prefix else member.name
                    yield Item(item_id(name), name, place, member.offset_data, member.size, changed)
                # What tarfile remembers of each grows without bound.
                archive.members = []  # type: ignore[attr-defined]
    except (tarfile.TarError, ValueError, OverflowError) as error:
        message = f"{path} is no tar archive, or is cut off: {shown(str(error))}; compressed ones are not read"
        raise InputError(message, code="bad_source") from None


def _in_list(path: Path) -> Iterator[Item]:
    folder = path.parent
    for line in read_bytes(path, limit=_MOST_LIST_BYTES).split(b"\n"):
        name = os.fsdecode(line.strip(b"\r"))
        if name.strip() and not name.startswith("#"):
            yield _file_item(folder / name, name)


def _in_table(path: Path) -> Iterator[Item]:
    table = _read_table(path)
    names = table.column_names
    column = next((name for name in _IMAGE_COLUMNS if name in names), None)
    if column is None:
        message = f"{path} has no column image; it has {', '.join(map(shown, names))}"
        raise InputError(message, code="bad_source")
    for batch in table.select([name for name in names if name == column or name in _PROMPT_COLUMNS]).to_batches():
        for row in batch.to_pylist():
            if row[column] in (None, ""):
                raise InputError(f"{path} has a row without an image; name one in each", code="bad_source")
            name = str(row[column])
            yield _file_item(path.parent / name, name, _prompts_of(row, name))


_PROMPT_COLUMNS = ("prompts", "x", "y", "label", "x0", "y0", "x1", "y1")


def _read_table(path: Path) -> Any:
    kind = "pyarrow.csv" if path.suffix.lower() == ".csv" else "pyarrow.parquet"
    try:
        module = import_module(kind)
        return module.read_csv(path) if kind == "pyarrow.csv" else module.read_table(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        # pyarrow raises a good many.
        message = f"{path} cannot be read as a table: {shown(str(error))}"
        raise InputError(message, code="bad_source") from None


def _prompts_of(row: dict[str, Any], name: str) -> str:
    """Return the prompts of a row as JSON; of a point or a box one object."""
    if row.get("prompts") is not None:
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
    """Return an item as its file is now, for a new plan."""
    if item.offset >= 0:
        with contextlib.suppress(OSError):
            return item._replace(changed=os.stat(item.place).st_mtime_ns)
        return item
    return _file_item(Path(item.place), item.name, item.prompts)


def read_item(item: Item, limit: int) -> bytes:
    """Return the bytes of an item.

    Raises
    ------
    ImageError
        ``vanished``, ``changed_since_plan``, ``not_a_file`` or ``too_many_bytes``.
    """
    if item.bytes > limit:
        message = f"it has {item.bytes:,} bytes; at most {limit:,} are read"
        raise ImageError(message, code="too_many_bytes")
    try:
        with open_regular(item.place) as file:
            found = os.fstat(file.fileno())
            size = found.st_size if item.offset < 0 else item.bytes
            if (size, found.st_mtime_ns) != (item.bytes, item.changed):
                raise ImageError("it was changed since the run was planned; plan anew", code="changed_since_plan")
            file.seek(max(item.offset, 0))
            data = file.read(item.bytes)
    except ImageError:
        raise
    except InputError as error:
        code = {"file_missing": "vanished", "file_wrong_kind": "not_a_file", "file_is_link": "not_a_file"}
        raise ImageError(str(error), code=code.get(error.code, "unreadable_file")) from None
    except OSError as error:
        raise ImageError(f"it cannot be read: {error.strerror}", code="unreadable_file") from None
    if len(data) != item.bytes:
        raise ImageError("it is shorter than when the run was planned; plan anew", code="changed_since_plan")
    return data
