# SPDX-License-Identifier: Apache-2.0
"""The inputs of a model's graphs as raw files, a folder for each input: what vendors' offline tools calibrate on.

The layout is that of the Ascend guides: ``amct_onnx`` reads ``x`` for the encoder, and ``image_embedding``,
``point_coord``, ``point_label``, ``mask_input`` and ``has_mask_input`` for a decoder of one object; for semantic models
the pictures as the graph takes them, which the guide's inference reads too. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from segship.arrays import AnyArray
from segship.backends import DEFAULT_BACKEND
from segship.backends.opening import open_sessions
from segship.backends.session import RunOptions
from segship.bundle import Bundle
from segship.bundle.manifest import task_module
from segship.catalog import find_model
from segship.datasets.image_list import ImageList
from segship.files import write_directory, write_file
from segship.spec import LABEL_EMPTY, LABEL_NOT_A_POINT

SHAPES_FILE = "shapes.json"
ENCODER_INPUT = "x"
DECODER_FOLDERS = {
    "image_embeddings": "image_embedding",
    "point_coords": "point_coord",
    "point_labels": "point_label",
    "mask_input": "mask_input",
    "has_mask_input": "has_mask_input",
}
"""Input of the decoder -> the folder of its files."""


def write_bins(
    images: ImageList, model: str | Path, folder: Path, *, threads: int | None = None
) -> dict[str, list[int]]:
    """Write what a model's graphs are given for a list, little-endian, one file a call, numbered alike in all folders.

    Every object of the decoder has as many points, those that lack filled with SAM's "not a point" token, since such
    tools take one shape. ``shapes.json`` holds the shapes.

    Returns
    -------
    dict
        Folder -> the shape of each of its files, all of them float32.

    Raises
    ------
    InputError, BundleError
        When the list or the bundle cannot be used; ``other_family`` when they are of different tasks.
    OutputError
        When the folder is there, or cannot be written.
    """
    bundle = Bundle.open(find_model(model))
    sessions = open_sessions(bundle, RunOptions(backend=DEFAULT_BACKEND, threads=threads))
    places = 1 + max((len(entry.points) for image in images.listing.images for entry in image.objects), default=0)
    shapes: dict[str, list[int]] = {}

    def fill(target: Path) -> None:
        counts: dict[str, int] = {}
        for feed in task_module(bundle.manifest.task).feeds(bundle.manifest, images, sessions):
            written: dict[str, Path] = {}
            for sample in _samples(feed, max(2, places)):
                for name, array in sample.items():
                    number = counts[name] = counts.get(name, -1) + 1
                    shapes[name] = list(array.shape)
                    (target / name).mkdir(exist_ok=True)
                    _write(target / name / f"{number:06d}.bin", array, written)
        write_file(target / SHAPES_FILE, (json.dumps(shapes, indent=2) + "\n").encode())

    try:
        write_directory(folder, fill)
    finally:
        for session in sessions.values():
            session.close()
    return shapes


def _samples(feed: Mapping[str, list[dict[str, AnyArray]]], places: int) -> Iterator[dict[str, AnyArray]]:
    """Yield the files of a picture, by folder: its own, then those of each of its objects."""
    for call in feed.get("semantic", ()):
        yield call
    for call in feed.get("image_encoder", ()):
        yield {ENCODER_INPUT: call["image"]}
    for call in feed.get("mask_decoder", ()):
        coords, labels = call["point_coords"], call["point_labels"]
        missing = places - labels.shape[1]
        coords = np.pad(coords, ((0, 0), (0, missing), (0, 0)))
        labels = np.pad(labels, ((0, 0), (0, missing)), constant_values=LABEL_NOT_A_POINT)
        labels[labels == LABEL_EMPTY] = LABEL_NOT_A_POINT
        rows = {"point_coords": coords, "point_labels": labels}
        rows |= {name: call[name] for name in ("mask_input", "has_mask_input")}
        for row in range(len(labels)):
            objects = {DECODER_FOLDERS[name]: array[row : row + 1] for name, array in rows.items()}
            yield {DECODER_FOLDERS["image_embeddings"]: call["image_embeddings"], **objects}


def _write(path: Path, array: AnyArray, written: dict[str, Path]) -> None:
    """Write an array; bytes that stand in another file already, as an embedding's do for every object, are linked."""
    data = np.ascontiguousarray(array, "<f4").tobytes()
    same = written.setdefault(f"{path.parent.name} {hashlib.sha256(data).hexdigest()}", path)
    if same is not path:
        with suppress(OSError):
            os.link(same, path)
            return
    path.write_bytes(data)
