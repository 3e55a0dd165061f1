# SPDX-License-Identifier: Apache-2.0
"""Which pictures the words of a command line mean: files, folders of them, and patterns that no shell has expanded."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from segship.cli.output import STANDARD_INPUT
from segship.errors import InputError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")


def expand_pictures(words: Sequence[str]) -> list[str]:
    """Return the pictures that the words mean, in their order.

    A folder stands for the pictures right in it, by name; a pattern such as ``day*/*.png`` that is no file for those
    it fits. Any other word stays as it is, and is refused when it is read.

    Raises
    ------
    InputError
        ``no_images``: there is no word, or a folder or pattern has no picture.
    """
    if not words:
        raise InputError("no image was given; name one or more files, or - for standard input", code="no_images")
    return [picture for word in words for picture in _meant_by(word)]


def _meant_by(word: str) -> list[str]:
    path = Path(word)
    if word == STANDARD_INPUT or path.is_file():
        return [word]
    if path.is_dir():
        found = sorted(str(file) for file in path.iterdir() if _is_picture(file))
        if not found:
            message = f"{word} holds no picture ({', '.join(PICTURE_SUFFIXES)}); name its files, or another folder"
            raise InputError(message, code="no_images")
        return found
    if not glob.has_magic(word):
        return [word]
    found = sorted(name for name in glob.glob(word, recursive=True) if _is_picture(Path(name)))
    if not found:
        raise InputError(f"no picture fits {word!r}; check the pattern", code="no_images")
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
