# SPDX-License-Identifier: Apache-2.0
"""Results as files: one small class a format, all of them in `WRITERS`.

Last step of the use road. A writer turns a `Result` into named bytes, and `write_result` puts those on disk through
`segship.files`, whole or not at all. Nothing of an input file but its name and its pixels reaches an output: no EXIF,
no colour profile, no path. `read_mask_input` reads back what the npz format keeps for refining a mask.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from segship.errors import OutputError
from segship.files import write_file
from segship.writers.arrays import NpzWriter, read_mask_input
from segship.writers.documents import CocoWriter, JsonWriter, coco_document, prediction_document
from segship.writers.pictures import OverlayWriter, PngWriter
from segship.writers.result import Prediction, Result, Writer

__all__ = [
    "WRITERS",
    "Prediction",
    "Result",
    "Writer",
    "check_formats",
    "coco_document",
    "prediction_document",
    "read_mask_input",
    "write_result",
]

WRITERS: dict[str, Writer] = {
    "overlay": OverlayWriter(),
    "png": PngWriter(),
    "coco": CocoWriter(),
    "npz": NpzWriter(),
    "json": JsonWriter(),
}


def check_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """Return the formats, each once; refuses an unknown one, so that it can be refused before any work is done."""
    wanted = tuple(dict.fromkeys(formats))
    for name in wanted:
        if name not in WRITERS:
            message = f"there is no output format {name!r}; accepted are {', '.join(WRITERS)}"
            raise OutputError(message, code="unknown_format")
    return wanted


def write_result(
    result: Result, directory: str | os.PathLike[str], formats: Iterable[str], *, overwrite: bool = False
) -> list[Path]:
    """Write one result in some formats.

    Parameters
    ----------
    directory
        Where the files shall be; it must exist.
    formats
        Keys of `WRITERS`.
    overwrite
        Replace files that are there. Otherwise nothing at all is written if one of them is.

    Returns
    -------
    list
        The files, in the order of the formats.

    Raises
    ------
    OutputError
        ``unknown_format``, ``output_exists``, or what `segship.files` says about the place.
    """
    files: dict[Path, bytes] = {}
    for name in check_formats(formats):
        files.update({Path(directory) / file: data for file, data in WRITERS[name].write(result).items()})
    taken = [] if overwrite else [path for path in files if os.path.lexists(path)]
    if taken:
        message = f"{taken[0]} exists, and nothing was written; ask for it to be overwritten, or choose another folder"
        raise OutputError(message, code="output_exists")
    for path, data in files.items():
        write_file(path, data, overwrite=overwrite)
    return list(files)
