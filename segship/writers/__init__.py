# SPDX-License-Identifier: Apache-2.0
"""Results as files: one small class a format, all of them in `WRITERS`.

Last step of the use road. A writer turns what there is of one image into named bytes: a `Result` (prompted masks),
`segship.promptable.everything.records.ImageRecords` (everything in a picture), or `Instances`, the one view that
formats have of both. `write_result` puts the bytes on disk through `segship.files`, whole or not at all. Nothing of an
input file but its name and its pixels reaches an output: no EXIF, no colour profile, no path. `read_mask_input` reads
back what the npz format keeps for refining a mask, and `to_supervision` gives masks to a library instead of a file.
What each format keeps and loses is in docs/files.md.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from segship.errors import OutputError
from segship.files import write_directory, write_file
from segship.writers.documents import (
    CocoWriter,
    JsonWriter,
    Sa1bWriter,
    coco_document,
    prediction_document,
    sa1b_document,
)
from segship.writers.instances import (
    Instance,
    Instances,
    Prediction,
    Result,
    Source,
    Writer,
    as_instances,
    check_source,
    label_instances,
)
from segship.writers.label_maps import PANOPTIC_DOCUMENT, PANOPTIC_PICTURE, InstancesWriter, PanopticWriter
from segship.writers.pictures import METADATA, FolderWriter, OverlayWriter, PngWriter
from segship.writers.shapes import LabelMeWriter, YoloWriter, labelme_document
from segship.writers.tables import (
    NpzWriter,
    ParquetWriter,
    has_pyarrow,
    pyarrow_missing,
    read_mask_input,
    to_supervision,
)

__all__ = [
    "WRITERS",
    "Instance",
    "Instances",
    "LabelMeWriter",
    "Prediction",
    "Result",
    "Source",
    "Writer",
    "YoloWriter",
    "as_instances",
    "check_formats",
    "coco_document",
    "label_instances",
    "labelme_document",
    "prediction_document",
    "read_mask_input",
    "sa1b_document",
    "to_supervision",
    "write_files",
    "write_result",
]

WRITERS: dict[str, Writer] = {
    "overlay": OverlayWriter(),
    "png": PngWriter(),
    "coco": CocoWriter(),
    "npz": NpzWriter(),
    "json": JsonWriter(),
    "sa1b": Sa1bWriter(),
    "labelme": LabelMeWriter(),
    "yolo": YoloWriter(),
    "instances": InstancesWriter(),
    "panoptic": PanopticWriter(),
    "parquet": ParquetWriter(),
    "folder": FolderWriter(),
}

# What the folders of formats hold, and nothing else: only a folder with no other entry is replaced.
_INSIDE = re.compile("|".join([r"[0-9]+\.png", *map(re.escape, (METADATA, PANOPTIC_DOCUMENT, PANOPTIC_PICTURE))]))


def check_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """Return the formats, each once; refuses what cannot be written, so that it is refused before any work is done.

    Raises
    ------
    OutputError
        ``unknown_format``.
    BackendUnavailable
        ``pyarrow_missing``: the format needs an extra that is not installed.
    """
    wanted = tuple(dict.fromkeys(formats))
    for name in wanted:
        if name not in WRITERS:
            message = f"there is no output format {name!r}; accepted are {', '.join(WRITERS)}"
            raise OutputError(message, code="unknown_format")
    if "parquet" in wanted and not has_pyarrow():
        raise pyarrow_missing()
    return wanted


def write_result(
    result: Source, directory: str | os.PathLike[str], formats: Iterable[str], *, overwrite: bool = False
) -> list[Path]:
    """Write what there is of one image in some formats.

    Parameters
    ----------
    result
        `Result`, `segship.promptable.everything.records.ImageRecords` or `Instances`.
    directory
        Where the files shall be; it must exist.
    formats
        Keys of `WRITERS`.
    overwrite
        Replace files that are there, and folders that hold nothing but files of a format. Otherwise nothing at all is
        written if one of them is there.

    Returns
    -------
    list
        The files, and the folders of formats that are folders, in the order of the formats.

    Raises
    ------
    OutputError
        ``unknown_format``, ``output_exists``, ``output_not_ours``, or what `segship.files` says about the place.
    InputError
        ``bad_source``: there is no such result.
    BackendUnavailable
        ``pyarrow_missing``.
    """
    check_source(result)
    written: dict[str, bytes] = {}
    for name in check_formats(formats):
        written.update(WRITERS[name].write(result))
    return write_files(written, directory, overwrite=overwrite)


def write_files(
    written: Mapping[str, bytes], directory: str | os.PathLike[str], *, overwrite: bool = False
) -> list[Path]:
    """Put what writers gave on disk: all of it or, if one of the files is there, nothing.

    Parameters
    ----------
    written
        Name to bytes; a name with one ``/`` is a file inside a folder of ours.
    directory
        Where the files shall be; it must exist.
    overwrite
        Replace files that are there, and folders that hold nothing but files of a format.

    Raises
    ------
    OutputError
        ``output_exists``, ``output_not_ours``, or what `segship.files` says about the place.
    """
    files = {Path(directory) / name: data for name, data in _group_folders(written).items()}
    taken = [path for path in files if os.path.lexists(path)]
    if taken and not overwrite:
        message = f"{taken[0]} exists, and nothing was written; ask for it to be overwritten, or choose another folder"
        raise OutputError(message, code="output_exists")
    for path in taken:
        _refuse_foreign_folder(path)
    for path, data in files.items():
        if isinstance(data, bytes):
            write_file(path, data, overwrite=overwrite)
        else:
            _write_folder(path, data, overwrite=overwrite)
    return list(files)


def _group_folders(written: Mapping[str, bytes]) -> dict[str, bytes | dict[str, bytes]]:
    """Return files by name, and the files of a folder by their names inside it under the name of the folder."""
    grouped: dict[str, bytes | dict[str, bytes]] = {}
    for name, data in written.items():
        outer, slash, inner = name.partition("/")
        if not slash:
            grouped[outer] = data
            continue
        assert _INSIDE.fullmatch(inner), f"a writer has the file {name!r}, which no folder of ours holds"
        folder = grouped.setdefault(outer, {})
        assert isinstance(folder, dict), f"{outer!r} is a file and a folder"
        folder[inner] = data
    return grouped


def _refuse_foreign_folder(path: Path) -> None:
    # Links, and files where a folder shall be, are refused by `segship.files` itself.
    if not stat.S_ISDIR(path.lstat().st_mode):
        return
    foreign = [entry.name for entry in os.scandir(path) if not _is_ours(entry)]
    if foreign:
        message = f"{path} holds {min(foreign)!r}, which is not of this format, and is not replaced; move it away"
        raise OutputError(message, code="output_not_ours")


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and _INSIDE.fullmatch(entry.name) is not None


def _write_folder(path: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    def fill(folder: Path) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)

    write_directory(path, fill, overwrite=overwrite)
