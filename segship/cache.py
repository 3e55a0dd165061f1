# SPDX-License-Identifier: Apache-2.0
"""The folder where fetched checkpoints and the bundles of known models are kept.

The environment is read when a function is called, never at import.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from segship.errors import OutputError

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
