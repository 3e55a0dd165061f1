# SPDX-License-Identifier: Apache-2.0
"""Zip containers and pickles made by hand, as a hostile author would."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path


def write_archive(path: Path, pickle: bytes, members: dict[str, bytes] | None = None, root: str = "archive") -> Path:
    """Write what ``torch.save`` would have written around a pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        archive.writestr(f"{root}/byteorder", b"little")
        for name, data in (members or {}).items():
            archive.writestr(f"{root}/{name}", data)
    return path


def text(value: str | Path) -> bytes:
    """Return the opcode that pushes a string (BINUNICODE)."""
    raw = str(value).encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def short(value: str) -> bytes:
    """Return the opcode that pushes a short string (SHORT_BINUNICODE)."""
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def whole(value: int) -> bytes:
    """Return the opcode that pushes a whole number (LONG1)."""
    raw = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tensor(
    shape: tuple[int, ...] = (2, 2),
    strides: tuple[int, ...] = (2, 1),
    offset: int = 0,
    elements: int = 4,
    key: str = "0",
    kind: str = "FloatStorage",
) -> bytes:
    """Return the opcodes that rebuild a tensor from a storage."""
    sizes, steps = (b"(" + b"".join(map(whole, values)) + b"t" for values in (shape, strides))
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + whole(elements) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(offset) + sizes + steps + b"\x89" + hooks + b"tR"


def state_dict(value: bytes, name: str = "weight") -> bytes:
    """Return the pickle of a dict with one item."""
    return b"\x80\x02}" + text(name) + value + b"s."
