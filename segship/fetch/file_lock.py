# SPDX-License-Identifier: Apache-2.0
"""A lock between processes, so that two of them never fetch the same file at once.

The system drops the lock when its holder ends, however it ends; there is no stale lock to clear away.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.1

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _take(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs; waits for as long as another process or thread holds it."""
    descriptor = _wait_for(path)
    try:
        yield
    finally:
        # Removed while still held: whoever waited for it sees that its file is gone and starts anew. Windows does not
        # remove open files; there the empty file stays.
        with suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _wait_for(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        if _take(descriptor) and _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)
        time.sleep(POLL_SECONDS)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
