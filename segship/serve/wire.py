# SPDX-License-Identifier: Apache-2.0
"""What the server and its workers say to each other: a JSON header and bytes; arrays lie in files of one folder.

No pickle: a worker that reads hostile pictures could be made to send anything. A header is an object, and what it names
is looked up; files are named by the side that makes them and must lie in the folder.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from segship.arrays import AnyArray

Header = dict[str, Any]

_SIZES = struct.Struct("<II")
SIZES_BYTES = _SIZES.size
_NAME = re.compile(r"[0-9a-f]{32}")
# Cache lines; runtimes copy what is not aligned.
_ALIGNMENT = 64
_MOST_RANK = 8


def pack(header: Mapping[str, Any], body: bytes | memoryview = b"") -> bytes:
    """Return one message."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((_SIZES.pack(len(text), len(body)), text, body))


def sizes(data: bytes) -> tuple[int, int]:
    """Return the lengths of header and body that the first `SIZES_BYTES` of a message announce."""
    header, body = _SIZES.unpack(data)
    return header, body


def read_header(text: bytes) -> Header:
    """Return the header of a message; a ValueError for what is no object."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("a message without an object")
    return found


class Stored(NamedTuple):
    """Arrays in a file: its name, its bytes, and of each array its dtype, shape and offset, as JSON carries them."""

    file: str
    bytes: int
    arrays: dict[str, tuple[str, tuple[int, ...], int]]

    def to_json(self) -> Header:
        """Return what `from_json` reads."""
        return {"file": self.file, "bytes": self.bytes, "arrays": self.arrays}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Stored:
        """Read a header's part, and refuse what names no file of a folder, or arrays that it cannot hold."""
        file, size = found["file"], int(found["bytes"])
        if _NAME.fullmatch(file) is None:
            raise ValueError("no name of a stored file")
        arrays = {}
        for name, (dtype, shape, offset) in found["arrays"].items():
            kind, sides = np.dtype(dtype), tuple(int(side) for side in shape)
            length = kind.itemsize * int(np.prod(sides, dtype=object))
            if (
                kind.hasobject
                or len(sides) > _MOST_RANK
                or min(sides, default=0) < 0
                or not 0 <= offset <= size - length
            ):
                raise ValueError("an array outside its file")
            arrays[str(name)] = (kind.str, sides, int(offset))
        return cls(file, size, arrays)


def store(folder: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> Stored:
    """Write arrays into a new file of a folder; where there is no room, nothing is left of it."""
    name = secrets.token_hex(16)
    try:
        return _write(folder, name, arrays)
    except BaseException:
        (folder / name).unlink(missing_ok=True)
        raise


def _write(folder: Path, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Stored:
    layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
    offset = 0
    with open(folder / name, "xb", opener=_private) as file:
        for key, array in arrays.items():
            file.write(bytes(-offset % _ALIGNMENT))
            offset += -offset % _ALIGNMENT
            contiguous = np.ascontiguousarray(array)
            layout[key] = (contiguous.dtype.str, contiguous.shape, offset)
            file.write(contiguous.data if contiguous.size else b"")
            offset += contiguous.nbytes
    return Stored(name, offset, layout)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def fetch(folder: Path, stored: Stored) -> dict[str, AnyArray]:
    """Return the arrays of a file, mapped into memory and read-only; a FileNotFoundError once it is discarded."""
    path = folder / stored.file
    if stored.bytes == 0:
        path.stat()
        return {name: np.zeros(shape, dtype) for name, (dtype, shape, _) in stored.arrays.items()}
    whole = np.memmap(path, np.uint8, "r", shape=(stored.bytes,))
    found = {}
    for name, (dtype, shape, offset) in stored.arrays.items():
        length = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        # As a plain array: a memmap's own class slows every slice of it.
        found[name] = np.asarray(whole[offset : offset + length]).view(dtype).reshape(shape)
    return found


def discard(folder: Path, stored: Stored) -> None:
    """Delete a file; whoever has mapped it keeps what is in it."""
    (folder / stored.file).unlink(missing_ok=True)
