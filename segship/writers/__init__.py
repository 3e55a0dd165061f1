# SPDX-License-Identifier: Apache-2.0
"""Results as files: every format of every kind of result in one table, `WRITERS`.

Last step of the use road. A writer turns what there is of one image into named bytes: a `Result` (prompted masks),
`segship.promptable.everything.records.ImageRecords` (everything in a picture), `Instances`, the one view that formats
have of both, or a `ClassMapResult`. `encode_result` gives the bytes, `write_files` puts them on disk through
`segship.files`, all together or not at all, and `write_result` does both; `output_paths` says beforehand where.
`merge_results` makes one data set of many images, and `save` one file of what a model found. Nothing of an input file
but its name and its pixels reaches an output: no EXIF, no color profile, no path but the one that leads LabelMe to its
image. `read_mask_input` reads back what the npz format keeps for refining a mask, and `to_supervision` gives masks to a
library instead of a file. What each format keeps and loses is in docs/files.md, of class maps in docs/semantic.md.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segship.arrays import Pixels, Size
from segship.errors import InputError, OutputError, way
from segship.files import check_ending, check_target, is_possible_path, make_directory, write_together
from segship.images import FileAsRead, ImageSource, read_image
from segship.promptable.everything.records import ImageRecords, MaskRecords
from segship.semantic.class_map import ClassMap
from segship.writers.documents import (
    class_map_document,
    coco_document,
    encode_json,
    prediction_document,
    sa1b_document,
)
from segship.writers.instances import (
    ClassMapResult,
    Instance,
    Instances,
    Kind,
    Result,
    Source,
    as_instances,
    check_reduced,
    kind_of,
    label_instances,
)
from segship.writers.merged import MergedWriter, merge_results
from segship.writers.names import check_stem, storable_text
from segship.writers.pictures import (
    METADATA,
    PANOPTIC_DOCUMENT,
    PANOPTIC_PICTURE,
    FolderWriter,
    PanopticWriter,
    PngWriter,
    encode_class_map_overlay,
    encode_classes,
    encode_colors,
    encode_instances,
    encode_label_ids,
    encode_overlay,
    written_masks,
)
from segship.writers.shapes import LabelMeWriter, Outlines, YoloWriter, labelme_document
from segship.writers.tables import (
    encode_npz,
    encode_parquet,
    has_pyarrow,
    pyarrow_missing,
    read_mask_input,
    to_supervision,
)

if TYPE_CHECKING:
    from segship.promptable.prediction import MaskPrediction

__all__ = [
    "WRITERS",
    "ClassMapResult",
    "Instance",
    "Instances",
    "LabelMeWriter",
    "MergedWriter",
    "Outlines",
    "Result",
    "Source",
    "Writer",
    "YoloWriter",
    "as_instances",
    "check_formats",
    "class_map_document",
    "coco_document",
    "encode_result",
    "label_instances",
    "labelme_document",
    "merge_results",
    "output_paths",
    "prediction_document",
    "read_mask_input",
    "sa1b_document",
    "save",
    "to_supervision",
    "write_files",
    "write_result",
]


class Writer(Protocol):
    """A format."""

    @property
    def extension(self) -> str:
        """What the names of its files end with, or the name of its folder; none is the end of another one."""

    @property
    def loses(self) -> str:
        """What the format cannot keep; the tables of docs/files.md and docs/semantic.md repeat it."""

    # Of the kind of result under which the writer stands in `WRITERS`.
    def write(self, result: Any, /) -> dict[str, bytes]:
        """Return the files of one image: name to bytes.

        A name with one ``/`` is a file inside a folder, which is written whole or not at all.
        """


@dataclass(frozen=True, slots=True)
class FileWriter:
    """A format of one file an image, made by a function; what is no bytes is a document for JSON."""

    extension: str
    loses: str
    make: Callable[[Any], bytes | dict[str, Any]]

    def write(self, result: Any, /) -> dict[str, bytes]:
        """Return the file of one image: name to bytes."""
        made = self.make(result)
        return {f"{result.stem}.{self.extension}": made if isinstance(made, bytes) else encode_json(made)}


WRITERS: dict[Kind, dict[str, Writer]] = {
    "masks": {
        "overlay": FileWriter("overlay.jpg", "everything but the look; it is for people", encode_overlay),
        "png": PngWriter(),
        "coco": FileWriter("coco.json", "pixels, prompts, low-resolution logits, notes", coco_document),
        "npz": FileWriter("prediction.npz", "pixels, names of files, notes", encode_npz),
        "json": FileWriter("prediction.json", "pixels, low-resolution logits", prediction_document),
        "sa1b": FileWriter(
            "sa1b.json",
            "pixels, labels of points, categories, notes; a prompted mask has null for its stability score",
            sa1b_document,
        ),
        "labelme": LabelMeWriter(),
        "yolo": YoloWriter(),
        "instances": FileWriter(
            "instances.png",
            "what a smaller mask covers, scores, boxes, points, categories, pixels; holds 65,535 masks",
            encode_instances,
        ),
        "panoptic": PanopticWriter(),
        "parquet": FileWriter("parquet", "pixels, labels of points, boxes that prompted, notes", encode_parquet),
        "folder": FolderWriter(),
    },
    "class maps": {
        "overlay": FileWriter("semantic.jpg", "everything but the look; it is for people", encode_class_map_overlay),
        "classes": FileWriter("classes.png", "pixels, names of classes, probabilities, notes", encode_classes),
        "label-ids": FileWriter("label_ids.png", "pixels, names of classes, probabilities, notes", encode_label_ids),
        "colours": FileWriter("colours.png", "all but the colours", encode_colors),
        "json": FileWriter("semantic.json", "pixels, which of them has which class", class_map_document),
    },
}

# What the folders of formats hold, and nothing else: only a folder with no other entry is replaced.
_INSIDE = re.compile("|".join([r"[0-9]+\.png", *map(re.escape, (METADATA, PANOPTIC_DOCUMENT, PANOPTIC_PICTURE))]))


def check_formats(formats: Iterable[str], kind: Kind = "masks") -> tuple[str, ...]:
    """Return the formats, each once; refuses what cannot be written, so that it is refused before any work is done.

    Raises
    ------
    OutputError
        ``unknown_format``.
    BackendUnavailable
        ``pyarrow_missing``: the format needs an extra that is not installed.
    """
    wanted, known = tuple(dict.fromkeys(formats)), WRITERS[kind]
    for name in wanted:
        if name not in known:
            message = f"there is no output format {name!r} for {kind}; accepted are "
            raise OutputError(message + ", ".join(known), code="unknown_format")
    if "parquet" in wanted and not has_pyarrow():
        raise pyarrow_missing()
    return wanted


def encode_result(
    result: Source | ClassMapResult,
    formats: Iterable[str],
    *,
    outlines: Outlines | None = None,
    image_path: str | None = None,
) -> dict[str, bytes]:
    """Return the files of one image in some formats of its kind in `WRITERS`: name to bytes, in their order.

    ``outlines`` are those of `Outlines` when left out. ``image_path`` is where the image lies, seen from the files, for
    LabelMe, which opens it; its name alone when left out.

    Raises
    ------
    OutputError
        ``unknown_format``, ``cannot_write`` for a stem that cannot name files, or what a format cannot hold:
        ``too_many_masks``, ``cannot_encode``, ``no_label_ids``.
    InputError
        ``bad_source``: there is no such result; ``bad_option``: the image was read reduced, and the format names it.
    BackendUnavailable
        ``pyarrow_missing``.
    """
    kind = kind_of(result)
    check_stem(result.stem)
    encoded: dict[str, bytes] = {}
    wanted = check_formats(formats, kind)
    if not isinstance(result, ClassMapResult):
        check_reduced(wanted, (*result.notes, *(result.prediction.notes if isinstance(result, Result) else ())))
    for name in wanted:
        writer = _with_outlines(WRITERS[kind][name], outlines or Outlines())
        if image_path is not None and isinstance(writer, LabelMeWriter):
            writer = replace(writer, image_path=image_path)
        encoded.update(writer.write(result))
    return encoded


def _with_outlines(writer: Writer, outlines: Outlines) -> Writer:
    tolerance = outlines.tolerance
    if isinstance(writer, LabelMeWriter):
        writer = replace(writer, shape=outlines.labelme_shape)
    if isinstance(writer, LabelMeWriter | YoloWriter):
        return writer if tolerance is None else replace(writer, tolerance=tolerance)
    if outlines.coco_polygons and isinstance(writer, FileWriter) and writer.make is coco_document:
        return replace(writer, make=partial(coco_document, polygons=True, tolerance=tolerance or 0.0))
    return writer


def _image_seen_from(directory: Path, name: str) -> str | None:
    """Return the path of an image as seen from a directory, if its name is that of a file."""
    if not is_possible_path(name) or not os.path.isfile(name):
        return None
    folder, file = os.path.split(name)
    # Links resolved, since dots lead up from where a folder really lies.
    seen = os.path.relpath(os.path.join(os.path.realpath(folder), file), os.path.realpath(directory))
    return storable_text(Path(seen).as_posix())


def save(
    found: MaskPrediction | MaskRecords | ClassMap,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    image: ImageSource | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write what a model found under one name; `segship.MaskPrediction.save` says what the parameters mean."""
    target = Path(path)
    kind: Kind = "class maps" if isinstance(found, ClassMap) else "masks"
    name, stem = _format_of(target.name, kind, format)
    source = found.image_path if image is None else image
    shape = found.array.shape if isinstance(found, ClassMap) else _size_of(found)
    size = (shape[0], shape[1])
    # Of most formats only the size is asked: a view of one pixel is an image of any.
    pixels: Pixels = np.broadcast_to(np.uint8(0), (*size, 3))
    if name == "overlay":
        pixels = _read_for_overlay(source, size)
    image_name = os.fspath(source) if isinstance(source, str | Path | FileAsRead) else stem
    result: Source | ClassMapResult
    if isinstance(found, ClassMap):
        result = ClassMapResult(stem, image_name, pixels, found)
    elif isinstance(found, MaskRecords):
        result = ImageRecords(stem, image_name, pixels, tuple(found), found.notes)
    else:
        result = Result(stem, image_name, pixels, found, found.objects)
    make_directory(target.parent)
    if name == "png":
        return write_result(result, target.parent, [name], overwrite=overwrite)
    # One file, or one folder, under the very name that was given.
    ending = f"{stem}.{WRITERS[kind][name].extension}"
    encoded = encode_result(result, [name], image_path=_image_seen_from(target.parent, image_name))
    written = {target.name + file.removeprefix(ending): data for file, data in encoded.items()}
    return write_files(written, target.parent, overwrite=overwrite)


# What an ending says that no format has for itself alone.
_ENDINGS: dict[Kind, dict[str, str]] = {
    "masks": {".jpg": "overlay", ".jpeg": "overlay", ".json": "json", ".npz": "npz"},
    "class maps": {".jpg": "overlay", ".jpeg": "overlay", ".json": "json", ".png": "classes"},
}


def _format_of(name: str, kind: Kind, wanted: str | None) -> tuple[str, str]:
    """Return the format that a name means, and the stem in the name."""
    if wanted is not None:
        check_formats([wanted], kind)
        own = os.path.splitext(f"x.{WRITERS[kind][wanted].extension}")[1]
        check_ending(name, [".jpg", ".jpeg"] if own == ".jpg" else [own], f"the format {wanted}")
    # The files of "png" have the number of their mask before their ending.
    for known, writer in WRITERS[kind].items():
        if known != "png" and name.endswith(f".{writer.extension}") and wanted in (None, known):
            return check_formats([known], kind)[0], name.removesuffix(f".{writer.extension}")
    stem, suffix = os.path.splitext(name)
    found = wanted or _ENDINGS[kind].get(suffix.lower())
    if found is None:
        message = (
            f"the name {name!r} does not say in which format to write; give format=, one of "
            f"{', '.join(WRITERS[kind])}, or an ending such as {', '.join(_ENDINGS[kind])}"
        )
        raise OutputError(message, code="unknown_format")
    return found, stem


def _size_of(found: MaskPrediction | MaskRecords) -> Size:
    return found.size if isinstance(found, MaskRecords) else found.original_size


def _read_for_overlay(source: ImageSource | None, size: Size) -> Pixels:
    if source is None:
        message = "an overlay needs the image, which was not read from a file; give image=, or save as .json or .npz"
        raise InputError(message, code="needs_image")
    loaded = read_image(source)
    if loaded.size_hw != size:
        message = f"the image has {loaded.size_hw} pixels, height and width, and the masks {size}; give the same image"
        raise InputError(message, code="bad_source")
    return loaded.pixels


def output_paths(
    of: type[Source | ClassMapResult], directory: str | os.PathLike[str], stem: str, formats: Iterable[str]
) -> list[Path]:
    """Return where the files of an image will be, a path for each format, without anything being computed.

    ``of`` is the type of what will be written. Of ``png``, which has a file a mask, it is the path of the first one.
    The files of one image come together: if one of these paths is there, `write_result` refuses to write without
    ``overwrite``; if all are, nothing is missing.

    Examples
    --------
    >>> [path.as_posix() for path in output_paths(Result, "out", "photo", ["overlay", "png"])]
    ['out/photo.overlay.jpg', 'out/photo.object0.mask0.png']
    """
    kind: Kind = "class maps" if issubclass(of, ClassMapResult) else "masks"
    first = {"png": "object0.mask0.png" if issubclass(of, Result) else "mask0.png"}
    endings = [first.get(name, WRITERS[kind][name].extension) for name in check_formats(formats, kind)]
    return [Path(directory) / f"{check_stem(stem)}.{ending}" for ending in endings]


def write_result(
    result: Source | ClassMapResult,
    directory: str | os.PathLike[str],
    formats: Iterable[str],
    *,
    overwrite: bool = False,
    outlines: Outlines | None = None,
) -> list[Path]:
    """Write what there is of one image in some formats; takes and refuses what `encode_result` and `write_files` do.

    The directory is made. What is overwritten is replaced wholly: of ``png``, files of masks that the earlier result
    had and this one has not go too.

    Returns
    -------
    list
        The files, and the folders of formats that are folders, in the order of the formats.
    """
    kind_of(result)
    wanted = tuple(formats)
    image_path = _image_seen_from(Path(directory), result.name)
    written = encode_result(result, wanted, outlines=outlines, image_path=image_path)
    gone: set[str] = set()
    if overwrite and "png" in wanted:
        gone = set(written_masks(Path(directory), result.stem, of_objects=isinstance(result, Result))) - written.keys()
    if written:
        make_directory(directory)
    return _write_together(written, directory, gone, overwrite=overwrite)


def write_files(
    written: Mapping[str, bytes], directory: str | os.PathLike[str], *, overwrite: bool = False
) -> list[Path]:
    """Put what writers gave on disk: all of it or, if one of the files is there, nothing.

    Parameters
    ----------
    written
        Name to bytes, as `encode_result` gives them.
    directory
        Where the files shall be; it must exist.
    overwrite
        Replace files that are there, and folders that hold nothing but files of a format, all as one: a new file never
        stands beside an old one, see `segship.files.write_together`.

    Raises
    ------
    OutputError
        ``output_exists``, ``output_not_ours``, or what `segship.files` says about the place.
    """
    return _write_together(written, directory, (), overwrite=overwrite)


def _write_together(
    written: Mapping[str, bytes], directory: str | os.PathLike[str], gone: Collection[str], *, overwrite: bool
) -> list[Path]:
    entries = _group_folders(written)
    files = [Path(directory) / name for name in entries]
    taken = [path for path in files if os.path.lexists(path)]
    if taken and not overwrite:
        replace_it = way("overwrite=True", "--overwrite")
        message = f"{taken[0]} exists, and nothing was written; give {replace_it}, or choose another folder"
        raise OutputError(message, code="output_exists")
    for path in taken:
        check_target(path, overwrite=overwrite, folder=not isinstance(entries[path.name], bytes))
        _refuse_foreign_folder(path)
    contents = {name: data if isinstance(data, bytes) else partial(_fill, data) for name, data in entries.items()}
    write_together(directory, contents, overwrite=overwrite, gone=gone)
    return files


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
    if not stat.S_ISDIR(path.lstat().st_mode):
        return
    foreign = [entry.name for entry in os.scandir(path) if not _is_ours(entry)]
    if foreign:
        message = f"{path} holds {min(foreign)!r}, which is not of this format, and is not replaced; move it away"
        raise OutputError(message, code="output_not_ours")


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and _INSIDE.fullmatch(entry.name) is not None


def _fill(files: Mapping[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
