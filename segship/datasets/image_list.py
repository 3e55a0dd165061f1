# SPDX-License-Identifier: Apache-2.0
"""Image lists: pictures and prompts for each as people give them, as data; what quantizes and what proves runs on them.

A folder holds ``list.json``, the pictures in ``images/`` and, where there is a truth, ``labels/``: one PNG a picture,
16-bit numbers of segments for promptable models, 8-bit numbers of classes for semantic ones. Every file is listed with
its digest, and the list ends with its own, so that one digest names the whole. `segship.datasets.calibration` makes
them; they belong to no model.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from segship.arrays import AnyArray, Size
from segship.bundle.artifacts import FileBytes, Sha256
from segship.bundle.documents import Document
from segship.bundle.evidence import Text
from segship.datasets.folders import read_label_image
from segship.errors import InputError, way
from segship.files import read_bytes, sha256_of
from segship.images import LoadedImage, read_image
from segship.spec import Side

LIST_FILE = "list.json"
IMAGES, LABELS = "images", "labels"
DOCUMENT = Document(
    file=LIST_FILE,
    key="list_sha256",
    version=1,
    most_bytes=1 << 28,
    code="bad_image_list",
    mend="make it anew with `segship calibrate`",
    mend_older="make it anew with `segship calibrate`",
    error=InputError,
)

PromptKind = Literal["click", "clicks", "box", "refined"]
KINDS: tuple[PromptKind, ...] = ("click", "clicks", "box", "refined")
"""One foreground point; two to four points of both labels; a box; one point, and as mask input the mask that the model
itself first gives for it."""
LABEL_MODES = {"promptable": ("L", "I;16"), "semantic": ("L", "P")}
"""Task -> kinds of PNG that its truth may be, in Pillow's words."""

# No folders, nothing hidden: a list cannot point elsewhere.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,119}$")]
XY = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file beside the list."""

    name: FileName
    bytes: FileBytes
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class ListedObject:
    """The prompts of one object, in the image frame; ``segment`` is its number in the truth."""

    kind: PromptKind
    points: Annotated[tuple[XY, ...], Field(max_length=64)] = ()
    labels: Annotated[tuple[Literal[0, 1], ...], Field(max_length=64)] = ()
    box: tuple[float, float, float, float] | None = None
    segment: int | None = None


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A picture: its file, (height, width) when upright, its objects, and the file of its truth."""

    file: ListedFile
    size_hw: tuple[Side, Side]
    objects: Annotated[tuple[ListedObject, ...], Field(max_length=10_000)] = ()
    truth: ListedFile | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What ``list.json`` says; ``seed`` is of the choices that were made, ``segship`` the version that made them."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    task: Literal["promptable", "semantic"]
    seed: int
    segship: Text
    images: Annotated[tuple[ListedImage, ...], Field(min_length=1, max_length=100_000)]


@dataclass(frozen=True, slots=True, eq=False)
class ListedPicture:
    """A picture of a list as it was read: ``truth`` is (H, W) whole numbers, or None."""

    entry: ListedImage
    loaded: LoadedImage
    truth: AnyArray | None


@dataclass(frozen=True, slots=True)
class ImageList:
    """A list on disk: its folder, what it says, and the digest that names it with all its files."""

    path: Path
    listing: Listing
    sha256: str

    def __len__(self) -> int:
        return len(self.listing.images)

    def pictures(self) -> Iterator[ListedPicture]:
        """Read one picture after the other, each checked against its digest.

        Raises
        ------
        InputError
            ``changed_file`` for a file that is not the listed one; ``file_missing``; ``bad_label_image``.
        """
        for entry in self.listing.images:
            loaded = read_image(self._read(IMAGES, entry.file))
            self._check_size(entry, loaded.size_hw, entry.file.name)
            yield ListedPicture(entry, loaded, self._truth(entry))

    def check(self) -> None:
        """Check every byte of every file; errors are those of `pictures`."""
        for entry in self.listing.images:
            for folder, file in ((IMAGES, entry.file), (LABELS, entry.truth)):
                if file is not None and sha256_of(self.path / folder / file.name) != file.sha256:
                    raise self._changed(file.name)

    def _truth(self, entry: ListedImage) -> AnyArray | None:
        if entry.truth is None:
            return None
        self._read(LABELS, entry.truth)
        truth = read_label_image(self.path / LABELS / entry.truth.name, LABEL_MODES[self.listing.task])
        self._check_size(entry, (truth.shape[0], truth.shape[1]), entry.truth.name)
        return truth

    def _read(self, folder: str, file: ListedFile) -> bytes:
        try:
            data = read_bytes(self.path / folder / file.name, limit=file.bytes)
        except InputError as error:
            if error.code != "file_too_large":
                raise
            raise self._changed(file.name) from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise self._changed(file.name)
        return data

    def _changed(self, name: str) -> InputError:
        message = f"{name} is not the file that {self.path / LIST_FILE} lists: its SHA-256 differs; {DOCUMENT.mend}"
        return InputError(message, code="changed_file")

    def _check_size(self, entry: ListedImage, size_hw: Size, name: str) -> None:
        if size_hw != entry.size_hw:
            found, listed = (f"{width} x {height}" for height, width in (size_hw, entry.size_hw))
            message = f"{name} has {found} pixels, and {self.path / LIST_FILE} lists {listed}; {DOCUMENT.mend}"
            raise InputError(message, code="bad_image_list")


def is_image_list(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder is an image list."""
    return os.path.isfile(os.path.join(folder, LIST_FILE))


def read_image_list(folder: str | os.PathLike[str]) -> ImageList:
    """Read a list, but not yet its pictures.

    Raises
    ------
    InputError
        ``not_an_image_list``; ``bad_image_list``, ``unknown_format_version`` or ``changed_file`` as of any document.
    """
    path = Path(folder)
    if not is_image_list(path):
        message = f"{path} holds no {LIST_FILE}; make an image list of pictures with `segship calibrate`"
        raise InputError(message, code="not_an_image_list")
    data = read_bytes(path / LIST_FILE, limit=DOCUMENT.most_bytes)
    DOCUMENT.parse(data)
    listing = DOCUMENT.validate(Listing, data)
    return ImageList(path, listing, DOCUMENT.digest(data))


def open_image_list(images: ImageList | str | os.PathLike[str], task: str) -> ImageList:
    """Return a list for the models of a task, from its folder where it was not read yet.

    Raises
    ------
    InputError
        ``other_family`` for one that was made for the other task; what `read_image_list` says.
    """
    found = images if isinstance(images, ImageList) else read_image_list(images)
    if found.listing.task != task:
        advice = f"make one with {way(f'task={task!r}', f'--task {task}')}"
        message = f"{found.path} is a list for {found.listing.task} models, and this one is {task}; {advice}"
        raise InputError(message, code="other_family")
    return found
