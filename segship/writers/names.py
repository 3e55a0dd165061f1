# SPDX-License-Identifier: Apache-2.0
"""Names for output files, made from the names of the inputs.

On the use road just before the writers. Names of inputs are other people's: they may hold control characters, text
direction overrides, bytes that are no UTF-8, or begin with a dash that a shell takes for an option. What comes out can
be made on every usual file system and seen for what it is. Spaces and letters of every script stay.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from pathlib import PurePath

from segship.errors import OutputError
from segship.files import is_possible_path

MAX_STEM_BYTES = 200
"""Leaves room for what a writer adds: most file systems take names of 255 bytes."""

NAMELESS = "image"
"""The stem of an input whose name has nothing that can be kept, such as standard input."""

_FORBIDDEN_ON_WINDOWS = frozenset('<>:"/\\|?*')
_WINDOWS_DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", *(f"{port}{digit}" for port in ("COM", "LPT") for digit in "123456789")]
)
# Control, surrogate (a byte that is no UTF-8), line and paragraph separators, unassigned.
_FORBIDDEN_CATEGORIES = frozenset(["Cc", "Cs", "Zl", "Zp", "Cn"])
# Invisible, and they make a name read other than it is: text direction marks, overrides, isolates, byte order mark.
_DIRECTION_MARKS = frozenset("\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


def output_stems(inputs: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return for every input a stem for its output files, all different.

    Stems count as equal if a file system could take them for the same: with letters of another case or another
    composition of accents. The second of equal ones gets ``-2``, and so on, so the result depends on the order.

    Examples
    --------
    >>> output_stems(["cats/photo.jpg", "dogs/photo.png", "-"])
    ['photo', 'photo-2', 'image']
    """
    taken: set[str] = set()
    stems = []
    for name in inputs:
        stem = free_stem(safe_stem(name), taken)
        taken.add(compared(stem))
        stems.append(stem)
    return stems


def free_stem(stem: str, taken: Container[str]) -> str:
    """Return a stem, or the first one with a number behind it that is not `compared` among those taken."""
    number, candidate = 1, stem
    while compared(candidate) in taken:
        number += 1
        ending = f"-{number}"
        candidate = _cut(stem, MAX_STEM_BYTES - len(ending)) + ending
    return candidate


def output_places(pictures: Sequence[tuple[str, PurePath]]) -> list[PurePath]:
    """Return where the files of pictures go: folders below the one for all, and a stem; all different.

    Pictures come with a path and with the part of it that names their files: the file's name of one that was given, the
    path inside it of one that was found in a folder. So a picture's place does not depend on the others. Only those
    that would have one place get more of their paths: the folders in which they differ, then their extension, and if
    they are one picture a number.

    Examples
    --------
    >>> found = [("a/sub/b.jpg", PurePath("sub/b.jpg")), ("x/b.jpg", PurePath("b.jpg")), ("y/b.png", PurePath("b.png"))]
    >>> [place.as_posix() for place in output_places(found)]
    ['sub/b', 'x/b', 'y/b']
    """
    paths = [PurePath(os.path.abspath(name)) for name, _ in pictures]
    named = [inside for _, inside in pictures]
    for twins in _twins([_safe_place(inside) for inside in named]):
        common = os.path.commonpath([path.parent for path in {paths[index] for index in twins}])
        for index in twins:
            named[index] = max(named[index], paths[index].relative_to(common), key=lambda path: len(path.parts))
    places = [_safe_place(inside) for inside in named]
    for twins in _twins(places):
        if len({paths[index] for index in twins}) > 1:
            for index in twins:
                # What a stem loses is added, so that it keeps the whole name.
                places[index] = _safe_place(named[index].with_name(f"{named[index].name}.x"))
    while again := _twins(places):
        for twins in again:
            stems = output_stems(f"{places[index].name}.x" for index in twins)
            for index, stem in zip(twins, stems, strict=True):
                places[index] = places[index].with_name(stem)
    return places


def _safe_place(inside: PurePath) -> PurePath:
    return PurePath(*(safe_stem(f"{part}.x") for part in inside.parts[:-1]), safe_stem(inside))


def _twins(places: Sequence[PurePath]) -> list[list[int]]:
    """Return the positions of places that a file system could take for one another."""
    same = defaultdict(list)
    for index, place in enumerate(places):
        same[compared(place.as_posix())].append(index)
    return [indices for indices in same.values() if len(indices) > 1]


def safe_stem(name: str | os.PathLike[str]) -> str:
    """Return the last part of a path without its extension, fit to name a file; `NAMELESS` if nothing is left.

    Examples
    --------
    >>> safe_stem("holiday/-été 2024.jpeg")
    'été 2024'
    """
    shown = "".join("_" if _is_forbidden(character) else character for character in PurePath(name).stem)
    # A leading dash is an option to a shell, a leading dot hides; Windows drops dots and spaces at the end.
    stem = _cut(shown.lstrip("-. "), MAX_STEM_BYTES - 1)
    if stem.split(".")[0].rstrip(" ").upper() in _WINDOWS_DEVICES:
        stem = "_" + stem
    return stem or NAMELESS


def safe_file_name(name: str | os.PathLike[str]) -> str:
    """Return the last part of a path as text that can be shown and stored: forbidden characters are ``_``."""
    return "".join("_" if _is_forbidden(character) else character for character in PurePath(name).name)


def check_stem(stem: str) -> str:
    """Return a stem; refuses as ``cannot_write`` what no file's name can begin with."""
    if PurePath(f"{stem}.x").name != f"{stem}.x" or not is_possible_path(stem):
        message = (
            f"the stem {stem!r} cannot begin the name of a file; `segship.writers.names.safe_stem` makes one that can"
        )
        raise OutputError(message, code="cannot_write")
    return stem


def storable_text(text: str) -> str:
    """Return text that UTF-8 can hold: bytes of a file's name that are no text stand in it as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_forbidden(character: str) -> bool:
    return (
        character in _FORBIDDEN_ON_WINDOWS
        or character in _DIRECTION_MARKS
        or unicodedata.category(character) in _FORBIDDEN_CATEGORIES
    )


def _cut(text: str, limit: int) -> str:
    """Return as much of the text as takes at most ``limit`` bytes of UTF-8, with no dot or space at its end."""
    return text.encode("utf-8")[:limit].decode("utf-8", "ignore").rstrip(". ")


def compared(stem: str) -> str:
    """Return what is equal of stems that a file system could take for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
