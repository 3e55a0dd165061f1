# SPDX-License-Identifier: Apache-2.0
"""Make image lists: pictures are found or drawn, and objects are asked for in each as people do, by a seed.

Where the truth of a picture is at hand, its segments are asked for: the point farthest from a segment's border, as the
usual measure of ambiguous clicks has it, and the box drawn tightly around. Elsewhere prompts lie at seeded places.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

import segship
from segship.arrays import AnyArray, BoolArray, Size
from segship.datasets.folders import MAX_LABEL_BYTES, encode_label_image, read_label_image
from segship.datasets.image_list import (
    DOCUMENT,
    IMAGES,
    LABEL_MODES,
    LABELS,
    LIST_FILE,
    ImageList,
    ListedFile,
    ListedImage,
    ListedObject,
    Listing,
    is_image_list,
    read_image_list,
)
from segship.errors import ImageError, InputError, OutputError
from segship.files import check_target, read_bytes, real_path, walk_folder, write_directory, write_file
from segship.images import ImageLimits, read_image
from segship.images.comparison import draw_labelled_scene
from segship.images.file_bytes import PICTURE_SUFFIXES
from segship.options import check_types, check_whole

SCENES = 32
"""Pictures that are drawn where none are given and no limit is."""
SCENE_SIZES_HW: tuple[Size, ...] = ((480, 640), (640, 480), (400, 600), (768, 1024), (900, 600), (512, 512))
SMALLEST, LARGEST = 0.01, 0.60
"""Parts of a picture between which a segment is asked for."""
MOST_CLICKS = 4
MOST_TEXT_BYTES = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateOptions:
    """How an image list is made.

    Attributes
    ----------
    task
        Of the models that it is for: ``promptable`` pictures come with prompts, ``semantic`` ones as they are.
    truth
        Folder with NAME.png for each picture, or with such a folder ``labels``: the number of a segment at each pixel,
        8 or 16 bits, or of a class, 8 bits.
    seed
        Of every choice.
    limit
        Most pictures, chosen by the seed; 32 where scenes are drawn.
    objects
        Most objects of each kind (a click, several clicks, a box, a mask refined) in a picture.
    overwrite
        Replace an image list that is there.
    """

    task: Literal["promptable", "semantic"] = "promptable"
    truth: Path | None = None
    seed: int = 0
    limit: int | None = None
    objects: int = 4
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_whole(self, 0, 2**63 - 1, "seed")
        check_whole(self, 1, 100_000, "limit")
        check_whole(self, 1, 1000, "objects")


@dataclass(frozen=True, slots=True)
class _Source:
    """A picture to list: its name and bytes, those of its truth, and what stands in that."""

    name: str
    data: bytes
    truth: tuple[bytes, AnyArray] | None


def calibrate(images: Sequence[str | Path], out: str | Path, options: CalibrateOptions | None = None) -> ImageList:
    """Make an image list of pictures; needs no model.

    Parameters
    ----------
    images
        Picture files, folders of them, and text files with a path a line; an image list alone is copied as it is. With
        none, scenes are drawn, and their shapes are the truth.
    out
        The folder to make.
    options
        See `CalibrateOptions`.

    Raises
    ------
    InputError
        ``no_images``, ``missing_truth``, ``bad_label_image``; `segship.errors.ImageError` for a picture that cannot be
        read.
    OutputError
        When the folder is there, or cannot be written; ``not_an_image_list`` when it is none and was to be replaced.
    """
    options, target = options or CalibrateOptions(), Path(out)
    _refuse_stranger(target, options)
    given = read_image_list(images[0]) if len(images) == 1 and is_image_list(images[0]) else None

    def fill(folder: Path) -> None:
        for name in (IMAGES, LABELS):
            (folder / name).mkdir()
        listing = _copied(given, folder) if given else _listed(_sources(images, options), folder, options)
        write_file(folder / LIST_FILE, DOCUMENT.write(Listing, listing))

    write_directory(target, fill, overwrite=options.overwrite)
    return read_image_list(target)


def _refuse_stranger(target: Path, options: CalibrateOptions) -> None:
    check_target(target, overwrite=options.overwrite, folder=True)
    if target.is_dir() and any(target.iterdir()) and not is_image_list(target):
        message = f"{target} is no image list, so it is not replaced; choose another folder"
        raise OutputError(message, code="not_an_image_list")


def _copied(source: ImageList, folder: Path) -> Listing:
    source.check()
    for entry in source.listing.images:
        for part, file in ((IMAGES, entry.file), (LABELS, entry.truth)):
            if file is not None:
                write_file(folder / part / file.name, read_bytes(source.path / part / file.name, limit=file.bytes))
    return source.listing


def _listed(sources: Iterable[_Source], folder: Path, options: CalibrateOptions) -> Listing:
    entries: list[ListedImage] = []
    for source in sources:
        name = _file_name(source.name, {entry.file.name.lower() for entry in entries})
        file = _write(folder / IMAGES / name, source.data)
        size_hw = _size_of(source)
        truth, labels = None, None
        if source.truth is not None:
            truth = _write(folder / LABELS / f"{name}.png", source.truth[0])
            labels = source.truth[1]
            _require_size(source.name, labels, size_hw)
        objects: list[ListedObject] = []
        if options.task == "promptable":
            # By the picture itself, so that its prompts do not depend on what else is listed.
            rng = np.random.default_rng((options.seed, int(file.sha256[:16], 16)))
            objects = list(_objects(size_hw, labels, rng, options.objects))
        entries.append(ListedImage(file, size_hw, tuple(objects), truth))
    return Listing(task=options.task, seed=options.seed, segship=segship.__version__, images=tuple(entries))


def _size_of(source: _Source) -> Size:
    try:
        return read_image(source.data).size_hw
    except ImageError as error:
        raise ImageError(f"{source.name}: {error}", code=error.code) from error


def _file_name(name: str, taken: set[str]) -> str:
    """Return the name of a copy: the picture's own where that is plain and free, else one with a number."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".")[-100:]
    stem, suffix = os.path.splitext(plain)
    names = itertools.chain((plain,), (f"{stem}-{number}{suffix}" for number in itertools.count(2)))
    return next(free for free in names if free.lower() not in taken)


def _write(path: Path, data: bytes) -> ListedFile:
    write_file(path, data)
    return ListedFile(path.name, len(data), hashlib.sha256(data).hexdigest())


def _require_size(name: str, labels: AnyArray, size_hw: Size) -> None:
    if labels.shape != size_hw:
        found, upright = (f"{width} x {height}" for height, width in (labels.shape, size_hw))
        message = f"the truth of {name} has {found} pixels, and the picture is {upright} when upright"
        raise InputError(f"{message}; give a label for each of its pixels", code="bad_label_image")


def _sources(images: Sequence[str | Path], options: CalibrateOptions) -> Iterator[_Source]:
    rng = np.random.default_rng(options.seed)
    if not images:
        for place in range(options.limit or SCENES):
            pixels, labels = draw_labelled_scene(SCENE_SIZES_HW[place % len(SCENE_SIZES_HW)], (options.seed, place))
            truth = (encode_label_image(labels), labels) if options.task == "promptable" else None
            yield _Source(f"scene{place}.png", encode_label_image(pixels), truth)
        return
    found = list(dict.fromkeys(path for image in images for path in _meant_by(Path(image))))
    if options.limit is not None and options.limit < len(found):
        found = [found[place] for place in sorted(rng.choice(len(found), options.limit, replace=False))]
    for path in found:
        truth = None if options.truth is None else _truth_of(path, options.truth, LABEL_MODES[options.task])
        yield _Source(path.name, read_bytes(real_path(path), limit=ImageLimits().bytes), truth)


def _meant_by(path: Path) -> list[Path]:
    """Return the pictures of a folder or of a text file, or the path itself."""
    if path.is_dir():
        found = [file for file in walk_folder(path, deep=False) if file.suffix.lower() in PICTURE_SUFFIXES]
    elif path.suffix.lower() == ".txt":
        text = read_bytes(real_path(path), limit=MOST_TEXT_BYTES).decode("utf-8", "surrogateescape")
        found = [path.parent / line.strip() for line in text.splitlines() if line.strip()]
    else:
        return [path]
    if not found:
        accepted = f"a folder of pictures ({', '.join(PICTURE_SUFFIXES)}) or a text file with a path a line"
        raise InputError(f"{path} names no picture; give {accepted}", code="no_images")
    return found


def _truth_of(picture: Path, folder: Path, modes: Sequence[str]) -> tuple[bytes, AnyArray]:
    # What lies in the folder itself may be the pictures.
    for place in (folder / LABELS, folder):
        path = place / f"{picture.stem}.png"
        if path.is_file():
            return read_bytes(real_path(path), limit=MAX_LABEL_BYTES), read_label_image(path, modes)
    message = f"there is no truth {picture.stem}.png of {picture} in {folder}; copy it there, or leave the picture out"
    raise InputError(message, code="missing_truth")


def _objects(size_hw: Size, labels: AnyArray | None, rng: np.random.Generator, most: int) -> Iterator[ListedObject]:
    """Yield objects of every kind: of segments of the truth, or at seeded places."""
    areas: list[tuple[int | None, BoolArray]]
    if labels is None:
        areas = [(None, _ellipse(size_hw, rng)) for _ in range(most)]
    else:
        numbers, counts = np.unique(labels, return_counts=True)
        parts = counts / labels.size
        numbers = numbers[(parts >= SMALLEST) & (parts <= LARGEST)]
        chosen = rng.choice(numbers, min(most, len(numbers)), replace=False) if len(numbers) else numbers
        areas = [(int(number), labels == number) for number in sorted(chosen.tolist())]
    for segment, area in areas:
        inmost = _inmost(area)
        yield ListedObject("click", (inmost,), (1,), segment=segment)
        points, signs = _clicks(area, rng)
        yield ListedObject("clicks", (inmost, *points), (1, *signs), segment=segment)
        yield ListedObject("box", box=_tight_box(area), segment=segment)
        yield ListedObject("refined", (inmost,), (1,), segment=segment)


def _ellipse(size_hw: Size, rng: np.random.Generator) -> BoolArray:
    """Return a seeded area (H, W) where nothing is known of what is there."""
    height, width = size_hw
    x, y = rng.uniform(0.15, 0.85, 2) * (width, height)
    a, b = rng.uniform(0.05, 0.25, 2) * (width, height)
    rows, columns = np.ogrid[:height, :width]
    area = ((columns + 0.5 - x) / max(a, 1)) ** 2 + ((rows + 0.5 - y) / max(b, 1)) ** 2 <= 1
    area[int(y), int(x)] = True
    return np.asarray(area, np.bool_)


def _inmost(area: BoolArray) -> tuple[float, float]:
    """Return the center of the pixel farthest from the border of an area, as x y."""
    depth = cv2.distanceTransform(np.pad(area.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(x) + 0.5, float(y) + 0.5


def _clicks(area: BoolArray, rng: np.random.Generator) -> tuple[list[tuple[float, float]], list[Literal[0, 1]]]:
    """Return one to three more clicks: on an area, or beside it, where people take away what is too much."""
    x0, y0, x1, y1 = (int(side) for side in _tight_box(area))
    margin_x, margin_y = (x1 - x0) // 4 + 1, (y1 - y0) // 4 + 1
    beside = np.zeros_like(area)
    beside[max(0, y0 - margin_y) : y1 + margin_y, max(0, x0 - margin_x) : x1 + margin_x] = True
    beside &= ~area
    points, labels = [], []
    for _ in range(int(rng.integers(1, MOST_CLICKS))):
        label: Literal[0, 1] = 1 if rng.random() < 0.5 or not beside.any() else 0
        ys, xs = np.nonzero(area if label else beside)
        place = int(rng.integers(len(ys)))
        points.append((float(xs[place]) + 0.5, float(ys[place]) + 0.5))
        labels.append(label)
    return points, labels


def _tight_box(area: BoolArray) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(area.any(axis=1)), np.flatnonzero(area.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
