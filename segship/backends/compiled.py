# SPDX-License-Identifier: Apache-2.0
"""Compiled graphs in the cache folder, so that a process that loads a graph again neither parses nor optimises it.

A file is named by the digest of the graph it was made of and by the settings it was made for, and ends in its own
size: one that a crash cut short does not fit its name and is not found. Files appear whole or not at all. Like the
checkpoints beside them they are trusted as far as the user's own cache folder is.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from segship.errors import OutputError
from segship.files import atomic_file, cache_folder, open_regular, sha256_of, tidy_directory

_SUFFIX = ".blob"


@dataclass(frozen=True, slots=True)
class CompiledName:
    """What names a compiled graph.

    ``graph`` is the SHA-256 of the graph, weights included, ``kind`` backend and precision, such as ``openvino-bf16``;
    of one kind only the newest file of a graph is kept. ``settings`` are everything else that it depends on, such as
    the runtime's version and the processor.
    """

    graph: str
    kind: str
    settings: Mapping[str, str]

    @property
    def family(self) -> str:
        """What the names of all files of this graph and kind begin with."""
        return f"{self.graph[:32]}-{self.kind}-"

    @property
    def stem(self) -> str:
        """What the file's name begins with."""
        lines = (self.graph, *(f"{key}={value}" for key, value in sorted(self.settings.items())))
        return self.family + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def graph_digest(graph: bytes | str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a graph; of a path, that of the file followed by that of its sidecar, if it has one."""
    if isinstance(graph, bytes):
        return hashlib.sha256(graph).hexdigest()
    sidecar = Path(f"{os.fspath(graph)}.data")
    return sha256_of(graph) + (sha256_of(sidecar) if sidecar.exists() else "")


def find_compiled(name: CompiledName) -> Path | None:
    """Return the file of a compiled graph; None if there is none, or no folder to keep it in."""
    with suppress(OSError, OutputError):
        for path in _folder().glob(f"{name.stem}-*{_SUFFIX}"):
            if path.stem == f"{name.stem}-{path.stat().st_size}":
                return path
    return None


def store_compiled(name: CompiledName, write: Callable[[BinaryIO], None]) -> Path | None:
    """Write a compiled graph and return its file, or None where nothing can be written: then there is no cache.

    Older files of the same graph and kind go, so that updates of a runtime do not pile up.
    """
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        tidy_directory(folder)
        # Its size, which is part of the name, is known only afterwards.
        unsized = folder / f"{name.stem}{_SUFFIX}"
        with atomic_file(unsized, overwrite=True) as stream:
            write(stream)
        path = folder / f"{name.stem}-{unsized.stat().st_size}{_SUFFIX}"
        os.replace(unsized, path)
    except (OSError, OutputError):
        return None
    for other in folder.glob(f"{name.family}*{_SUFFIX}"):
        if other != path:
            remove_compiled(other)
    return path


def remove_compiled(path: Path) -> None:
    """Remove a file that is of no use; where it is still open and the system does not allow it, it stays."""
    with suppress(OSError):
        path.unlink()


class MappedFile:
    """A file as bytes that the system reads when they are used, and may forget again; unmapped when it is dropped.

    ``array`` is (bytes,) uint8; writing to it changes neither the file nor what others see of it.
    """

    def __init__(self, path: Path) -> None:
        with open_regular(path) as stream:
            # Private pages: a runtime that takes only writable memory gets it, and the file stays as it is.
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        self.array: NDArray[Any] = np.frombuffer(self._map, np.uint8)

    def forget(self) -> None:
        """Give the memory of pages that were read back to the system; they are read again when they are needed."""
        # Only where nothing wrote to them, which holds for a runtime that is given constants. Not on Windows.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def _folder() -> Path:
    return cache_folder() / "compiled"
