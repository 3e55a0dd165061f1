# SPDX-License-Identifier: Apache-2.0
"""Pictures of a command line: files, folders and patterns that no shell has expanded, worked through one by one."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from segship.cli.output import STANDARD_INPUT, FailedImage, errors_console
from segship.errors import InputError, SegshipError
from segship.images import ImageLimits
from segship.writers.names import output_stems

Done = TypeVar("Done")

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


def each_picture(
    pictures: Sequence[str],
    limits: ImageLimits,
    work: Callable[[str | bytes, str, str], Done],
    *,
    description: str = "",
) -> Iterator[Done | FailedImage]:
    """Do some work on one picture after the other; one that cannot be used is told and does not stop the others.

    Parameters
    ----------
    work
        Called with the picture's source, its name, and what the names of its files begin with.
    description
        What stands beside the bar that is shown for several pictures; without it there is none.
    """
    stems = output_stems("-" if picture == STANDARD_INPUT else picture for picture in pictures)
    for picture, stem in zip(_with_progress(pictures, description), stems, strict=True):
        try:
            yield work(picture_source(picture, limits), picture, stem)
        except SegshipError as error:
            if len(pictures) == 1:
                raise
            yield FailedImage(picture, error.code, str(error))


def picture_source(picture: str, limits: ImageLimits) -> str | bytes:
    """Return the path, or the bytes of standard input, one more at most than the limits allow."""
    return sys.stdin.buffer.read(limits.bytes + 1) if picture == STANDARD_INPUT else picture


def _with_progress(pictures: Sequence[str], description: str) -> Iterable[str]:
    if len(pictures) == 1 or not description:
        return pictures
    # Imported here, since one picture needs no bar.
    from rich.progress import track

    return track(pictures, description=description, console=errors_console(), transient=True)
