# SPDX-License-Identifier: Apache-2.0
"""From a file of truth to a class map: train ids, ids or polygons of Cityscapes, annotations of ADE20K."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segship.datasets.ade20k import annotation_to_classes
from segship.datasets.cityscapes import label_ids_to_train_ids, polygons_to_train_ids
from segship.datasets.folders import Sample, TruthKind
from segship.datasets.label_images import MAX_LABEL_BYTES, read_label_image
from segship.errors import InputError
from segship.files import read_bytes


def read_truth(sample: Sample) -> NDArray[np.uint8]:
    """Return the truth of a sample, (H, W) uint8: the class of each pixel, 255 where none is known.

    Raises
    ------
    InputError
        ``missing_truth``, ``bad_label_image``, ``bad_annotation``, or what `segship.files.read_bytes` raises.
    """
    if sample.truth is None:
        message = f"{sample.name} has a picture and no {sample.truth_kind}; copy its file of truth into the data set"
        raise InputError(message, code="missing_truth")
    return _READERS[sample.truth_kind](sample.truth)


def _read_polygons(path: Path) -> NDArray[np.uint8]:
    document = read_bytes(path.resolve(), limit=MAX_LABEL_BYTES)
    try:
        return polygons_to_train_ids(document)
    except InputError as error:
        raise InputError(f"{path}: {error}", code=error.code) from error


_READERS: dict[TruthKind, Callable[[Path], NDArray[np.uint8]]] = {
    "labelTrainIds": read_label_image,
    "labelIds": lambda path: label_ids_to_train_ids(read_label_image(path)),
    "polygons": _read_polygons,
    "annotation": lambda path: annotation_to_classes(read_label_image(path)),
}
