# SPDX-License-Identifier: Apache-2.0
"""The most memory that a process has held."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from segship.errors import BackendUnavailable

_STATUS = Path("/proc/self/status")


def peak_resident_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes.

    On Linux this is the kernel's high-water mark of this very program. What ``getrusage`` says begins at the size of
    the process that started this one, so a small program that a large one starts would seem large; it is used where
    there is nothing better.

    Raises
    ------
    BackendUnavailable
        ``no_memory_figure`` on systems that do not say.

    Examples
    --------
    >>> peak_resident_bytes() > 1_000_000
    True
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    try:
        import resource
    except ImportError as error:
        message = f"{sys.platform} does not say how much memory a process has held; leave the memory rows out"
        raise BackendUnavailable(message, code="no_memory_figure") from error
    # macOS counts bytes, others kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
