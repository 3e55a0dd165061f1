# SPDX-License-Identifier: Apache-2.0
"""Class maps as files: numbers for programs, colours and an overlay for people, areas as JSON; one class a format.

The last step of the use road of the semantic family; bytes reach the disk through `segship.writers.write_files`, whole
or not at all. Files are named so that ``segship evaluate --predictions`` finds them by the stem of their picture.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segship.datasets.folders import encode_label_image
from segship.datasets.known import classes_to_label_ids, label_ids
from segship.draw import draw_class_map
from segship.errors import OutputError
from segship.semantic.class_map import ClassMap
from segship.writers import write_files
from segship.writers.documents import encode_json
from segship.writers.names import safe_file_name
from segship.writers.pictures import encode_jpeg, encode_png


@dataclass(frozen=True, slots=True, eq=False)
class ClassMapResult:
    """One image with its class map, ready to be written.

    Attributes
    ----------
    stem
        What the names of its files begin with; `segship.writers.names.output_stems` makes safe ones.
    name
        The input's file name, as documents repeat it; directories in it are left out.
    pixels
        (H, W, 3) uint8 RGB, upright.
    class_map
        Of that size.
    made_by
        What made it, for the JSON document: architecture, backend, precision, how it was looked at.
    """

    stem: str
    name: str
    pixels: NDArray[np.uint8]
    class_map: ClassMap
    made_by: Mapping[str, Any] = field(default_factory=dict)


class ClassMapWriter(Protocol):
    """A format."""

    @property
    def extension(self) -> str:
        """What the names of its files end with."""

    def write(self, result: ClassMapResult) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""


class ClassesWriter:
    """An 8-bit PNG whose palette indices are the classes (train ids), 255 for none; the palette is the data set's."""

    extension = "classes.png"

    def write(self, result: ClassMapResult) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        image = Image.fromarray(result.class_map.array)
        colours = [channel for colour in result.class_map.palette for channel in colour]
        image.putpalette(colours + [0] * (768 - len(colours)))
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return {f"{result.stem}.{self.extension}": stream.getvalue()}


class LabelIdsWriter:
    """An 8-bit gray PNG of the data set's own numbers, as its annotations and its evaluation server have them."""

    extension = "label_ids.png"

    def write(self, result: ClassMapResult) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        labels = classes_to_label_ids(result.class_map.array, result.class_map.table)
        return {f"{result.stem}.{self.extension}": encode_label_image(labels)}


class ColoursWriter:
    """A PNG in the data set's colours; black where there is no class."""

    extension = "colours.png"

    def write(self, result: ClassMapResult) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        bgr = np.ascontiguousarray(result.class_map.coloured()[..., ::-1])
        return {f"{result.stem}.{self.extension}": encode_png(bgr)}


class SemanticOverlayWriter:
    """A JPEG of the image with its classes over it and a legend below or beside it."""

    extension = "semantic.jpg"

    def write(self, result: ClassMapResult) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        overlay = draw_class_map(result.pixels, result.class_map)
        return {f"{result.stem}.{self.extension}": encode_jpeg(cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR))}


class AreasWriter:
    """The classes that occur with their pixels and shares, what made the map, and all notes, as JSON."""

    extension = "semantic.json"

    def write(self, result: ClassMapResult) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        return {f"{result.stem}.{self.extension}": encode_json(class_map_document(result))}


CLASS_MAP_WRITERS: dict[str, ClassMapWriter] = {
    "overlay": SemanticOverlayWriter(),
    "classes": ClassesWriter(),
    "label-ids": LabelIdsWriter(),
    "colours": ColoursWriter(),
    "json": AreasWriter(),
}


def class_map_document(result: ClassMapResult) -> dict[str, Any]:
    """Return what a class map says for `json.dumps`.

    There are ``image`` (file_name, width, height), ``made_by``, ``data_set``, ``classes`` (the ones that occur, the
    largest first: class, name, label_id where the data set has one, color, pixels, share of all pixels from 0 to 1),
    ``unclassified_pixels`` and ``notes``.
    """
    class_map = result.class_map
    height, width = class_map.array.shape
    numbers = {name: number for number, name in enumerate(class_map.classes)}
    own = label_ids(class_map.table)
    areas = class_map.areas()
    classes = [
        {
            "class": numbers[name],
            "name": name,
            **({} if own is None else {"label_id": own[numbers[name]]}),
            "color": list(class_map.palette[numbers[name]]),
            "pixels": pixels,
            "share": round(pixels / class_map.array.size, 6),
        }
        for name, pixels in areas.items()
    ]
    return {
        "image": {"file_name": safe_file_name(result.name), "width": width, "height": height},
        "made_by": dict(result.made_by),
        "data_set": class_map.table.name,
        "classes": classes,
        "unclassified_pixels": class_map.array.size - sum(areas.values()),
        "notes": list(class_map.notes),
    }


def check_class_map_formats(formats: Iterable[str]) -> tuple[str, ...]:
    """Return the formats, each once.

    Raises
    ------
    OutputError
        ``unknown_format``.
    """
    wanted = tuple(dict.fromkeys(formats))
    for name in wanted:
        if name not in CLASS_MAP_WRITERS:
            message = f"there is no format {name!r} for class maps; accepted are {', '.join(CLASS_MAP_WRITERS)}"
            raise OutputError(message, code="unknown_format")
    return wanted


def write_class_map(
    result: ClassMapResult, directory: str | os.PathLike[str], formats: Iterable[str], *, overwrite: bool = False
) -> list[Path]:
    """Write a class map in some formats.

    Parameters
    ----------
    result
        See `ClassMapResult`.
    directory
        Where the files shall be; it must exist.
    formats
        Keys of `CLASS_MAP_WRITERS`.
    overwrite
        Replace files that are there. Otherwise nothing at all is written if one of them is.

    Returns
    -------
    list
        The files, in the order of the formats.

    Raises
    ------
    OutputError
        ``unknown_format``, ``no_label_ids`` where the data set has no numbers of its own, ``output_exists``, or what
        `segship.files` says about the place.
    """
    written: dict[str, bytes] = {}
    for name in check_class_map_formats(formats):
        written.update(CLASS_MAP_WRITERS[name].write(result))
    return write_files(written, directory, overwrite=overwrite)
