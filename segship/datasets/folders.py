# SPDX-License-Identifier: Apache-2.0
"""The official folders of Cityscapes and ADE20K: which pictures a split has, and where the truth of each lies.

ROOT/leftImg8bit/val/CITY/STEM_leftImg8bit.png             ROOT[/ADEChallengeData2016]/images/validation/STEM.jpg
ROOT/gtFine/val/CITY/STEM_gtFine_polygons.json                          .../annotations/validation/STEM.png
                         _gtFine_labelIds.png
                         _gtFine_labelTrainIds.png
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin

from segship.arrays import AnyArray, Pixels
from segship.datasets.classes import ClassTable
from segship.datasets.known import (
    ADE20K,
    CITYSCAPES,
    LABELS,
    annotation_to_classes,
    label_ids_to_train_ids,
    polygons_to_train_ids,
)
from segship.errors import InputError, SegshipError, way
from segship.files import read_bytes, real_path, walk_folder
from segship.images.file_bytes import picture_end

TruthKind = Literal["labelTrainIds", "labelIds", "polygons", "annotation"]
Truth = Literal["auto", "labelTrainIds", "labelIds", "polygons"]
"""Which files of Cityscapes are the truth; ``auto`` takes for each picture the first of the others that is there."""

TRUTH_FILES: dict[TruthKind, str] = {
    "labelTrainIds": "_gtFine_labelTrainIds.png",
    "labelIds": "_gtFine_labelIds.png",
    "polygons": "_gtFine_polygons.json",
}
"""In the order of ``auto``: what was converted first. All three say the same."""

IMAGE_SUFFIX = "_leftImg8bit.png"
ADE20K_FOLDER = "ADEChallengeData2016"
_ADE20K_SPLITS = {"train": "training", "val": "validation"}
# How many names a message lists.
_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture of a data set and its truth; either file may be missing.

    The name is its folder and stem, such as ``frankfurt/frankfurt_000000_000294``.
    """

    name: str
    image: Path | None
    truth: Path | None
    truth_kind: TruthKind

    @property
    def stem(self) -> str:
        """The part of the name that files share."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class FailedSample:
    """A sample that cannot be used, and the code and message of the error that says why.

    ``on_command_line`` is the message in the words of the command line, where they differ.
    """

    name: str
    code: str
    message: str
    on_command_line: str = ""

    @classmethod
    def of(cls, name: str, error: SegshipError) -> FailedSample:
        """Return the sample that an error tells of."""
        message, command = str(error), error.on_command_line
        return cls(name, error.code, message, "" if command == message else command)

    @property
    def both(self) -> str:
        """The message for an error that is raised again, in the words of both doors."""
        return way(self.message, self.on_command_line or self.message)

    def to_dict(self, *, command_line: bool = False) -> dict[str, str]:
        """Return name, code and message for `json.dumps`."""
        message = self.on_command_line or self.message if command_line else self.message
        return {"name": self.name, "code": self.code, "message": message}


Finder = Callable[[Path, str, Truth], list[Sample]]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set whose folders are known.

    ``find`` takes root, split and kind of truth, and gives samples sorted by name. ``largest_label`` is the largest
    number in the files of its own numbering, ids of Cityscapes or annotations of ADE20K, and ``labels_to_classes``
    leads from there to classes.
    """

    table: ClassTable
    find: Finder
    largest_label: int
    labels_to_classes: Callable[[Pixels], Pixels]


def find_samples(data_set: str, root: str | Path, split: str = "val", truth: Truth = "auto") -> list[Sample]:
    """Return the samples of a split, sorted by name; a picture without truth, or the reverse, is a sample too.

    Parameters
    ----------
    data_set
        ``cityscapes`` or ``ade20k``.
    root
        Folder that holds the official ones.
    split
        ``train``, ``val``, or another folder's name.
    truth
        Which files are the truth, of Cityscapes alone.

    Raises
    ------
    InputError
        ``unknown_data_set``, ``missing_folder`` or ``no_samples``, naming what is there instead.
    """
    if data_set not in DATA_SETS:
        message = f"there is no data set {data_set!r}; known are {', '.join(DATA_SETS)}"
        raise InputError(message, code="unknown_data_set")
    samples = DATA_SETS[data_set].find(Path(root), split, truth)
    if not samples:
        message = f"the split {split!r} of {data_set} in {root} holds no picture and no truth; check the folders' names"
        raise InputError(message, code="no_samples")
    return samples


def _find_cityscapes(root: Path, split: str, truth: Truth) -> list[Sample]:
    names = TRUTH_FILES if truth == "auto" else {truth: TRUTH_FILES[truth]}
    folders = [root / "leftImg8bit" / split, root / "gtFine" / split]
    if not any(os.path.isdir(folder) for folder in folders):
        raise _missing(folders[1], root / "gtFine", "leftImg8bit/SPLIT and gtFine/SPLIT")
    images = {name.removesuffix(IMAGE_SUFFIX): path for name, path in _files(folders[0], IMAGE_SUFFIX)}
    truths: dict[str, tuple[TruthKind, Path]] = {}
    found = dict(_files(folders[1], *names.values()))
    # Backwards, so that the first kind stays.
    for kind, ending in reversed(names.items()):
        for name, path in found.items():
            if name.endswith(ending):
                truths[name.removesuffix(ending)] = kind, path
    wanted = next(iter(names))
    samples = []
    for name in sorted(images.keys() | truths.keys()):
        kind, file = truths.get(name, (wanted, None))
        samples.append(Sample(name, images.get(name), file, kind))
    return samples


def _find_ade20k(root: Path, split: str, truth: Truth) -> list[Sample]:
    if truth != "auto":
        message = f"truth is {truth!r}; ade20k has annotations alone, so leave it at auto"
        raise InputError(message, code="bad_option")
    base = root / ADE20K_FOLDER if os.path.isdir(root / ADE20K_FOLDER) else root
    folders = [base / "images" / split, base / "annotations" / split]
    if not any(path.is_dir() for path in folders):
        folders = [path.with_name(_ADE20K_SPLITS.get(split, split)) for path in folders]
    if not any(os.path.isdir(path) for path in folders):
        raise _missing(folders[1], base / "annotations", "images/SPLIT and annotations/SPLIT")
    images = {name.removesuffix(".jpg"): path for name, path in _files(folders[0], ".jpg")}
    truths = {name.removesuffix(".png"): path for name, path in _files(folders[1], ".png")}
    return [
        Sample(name, images.get(name), truths.get(name), "annotation") for name in sorted(images.keys() | truths.keys())
    ]


def _files(folder: Path, *endings: str) -> Iterator[tuple[str, Path]]:
    """Yield the files below a folder whose names end so, by their path inside it, written with slashes."""
    if os.path.isdir(folder):
        for path in walk_folder(folder):
            if path.name.endswith(endings):
                yield path.relative_to(folder).as_posix(), path


def _missing(folder: Path, above: Path, wanted: str) -> InputError:
    there = sorted(path.name for path in above.iterdir() if os.path.isdir(path)) if os.path.isdir(above) else []
    if there:
        instead = f"splits there are {', '.join(there[:_NAMES_SHOWN])}"
    else:
        instead = f"{way('the root is', '--data names')} the folder that holds {wanted}"
    return InputError(f"there is no folder {folder}; {instead}", code="missing_folder")


DATA_SETS: dict[str, DataSet] = {
    "cityscapes": DataSet(CITYSCAPES, _find_cityscapes, max(label.id for label in LABELS), label_ids_to_train_ids),
    "ade20k": DataSet(ADE20K, _find_ade20k, len(ADE20K.classes), annotation_to_classes),
}


MAX_LABEL_BYTES = 128 * 2**20
"""Largest file of labels that is read; Cityscapes' polygons have up to some 100 kB, its PNG files less."""
MAX_LABEL_PIXELS = 100_000_000


def read_label_image(path: Path, modes: Sequence[str] = ("L", "P")) -> AnyArray:
    """Return the numbers (H, W) uint8 of a PNG of one 8-bit number a pixel, gray or the indices of a palette.

    Anything else is refused as ``bad_label_image``. ``modes`` are Pillow's names of what is taken; the numbers of
    ``I;16``, 16-bit gray, are uint16.
    """
    data = read_bytes(real_path(path), limit=MAX_LABEL_BYTES)
    try:
        # The plugin itself: Image.open would try every format, and change the process's warnings for large pictures.
        image = PngImagePlugin.PngImageFile(io.BytesIO(data))
        width, height = image.size
        if width * height > MAX_LABEL_PIXELS:
            raise _bad(path, f"has {width} x {height} pixels; at most {MAX_LABEL_PIXELS:,} are read")
        mode = image.mode
        if mode in modes:
            labels = np.array(image)
            # Pillow takes a file whose last chunks are missing.
            if picture_end(data, "png") is None:
                raise ValueError("no end")
            return labels
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        # SyntaxError is what Pillow raises for bytes that are no PNG.
        raise _bad(path, "is damaged or no PNG; copy it again") from error
    accepted = "8-bit gray or palette, one number of a class a pixel"
    if "I;16" in modes:
        accepted = "8-bit or 16-bit gray, one number of a segment a pixel"
    raise _bad(path, f"has pixels of kind {mode!r}; accepted are {accepted}")


def encode_label_image(labels: AnyArray) -> bytes:
    """Return the bytes of a gray PNG of labels (H, W) uint8 or uint16, with as many bits."""
    stream = io.BytesIO()
    Image.fromarray(labels).save(stream, "PNG")
    return stream.getvalue()


def _bad(path: Path, problem: str) -> InputError:
    return InputError(f"{path} {problem}", code="bad_label_image")


def read_truth(sample: Sample) -> Pixels:
    """Return the truth of a sample, (H, W) uint8: the class of each pixel, 255 where none is known.

    Refuses ``missing_truth``, ``bad_label_image`` and ``bad_annotation``.
    """
    if sample.truth is None:
        message = f"{sample.name} has a picture and no {sample.truth_kind}; copy its file of truth into the data set"
        raise InputError(message, code="missing_truth")
    return _READERS[sample.truth_kind](sample.truth)


def _read_polygons(path: Path) -> Pixels:
    document = read_bytes(real_path(path), limit=MAX_LABEL_BYTES)
    try:
        return polygons_to_train_ids(document)
    except InputError as error:
        raise InputError(f"{path}: {error}", code=error.code) from error


_READERS: dict[TruthKind, Callable[[Path], Pixels]] = {
    "labelTrainIds": read_label_image,
    "labelIds": lambda path: label_ids_to_train_ids(read_label_image(path)),
    "polygons": _read_polygons,
    "annotation": lambda path: annotation_to_classes(read_label_image(path)),
}
