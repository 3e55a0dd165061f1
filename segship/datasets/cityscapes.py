# SPDX-License-Identifier: Apache-2.0
"""Cityscapes: its labels, the 19 classes that are scored, and polygons as maps of classes.

Numbers and colours are those of the data set's own scripts (cityscapesscripts/helpers/labels.py). A label has an id,
which the files ``*_labelIds.png`` hold, and a train id, which is the class; labels that are not scored have the train
id 255.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segship.datasets.class_table import IGNORED, ClassTable
from segship.errors import InputError

Colour = tuple[int, int, int]


class Label(NamedTuple):
    """One label of the annotations."""

    name: str
    id: int
    train_id: int
    colour: Colour


_UNSCORED: tuple[tuple[str, int, Colour], ...] = (
    ("unlabeled", 0, (0, 0, 0)),
    ("ego vehicle", 1, (0, 0, 0)),
    ("rectification border", 2, (0, 0, 0)),
    ("out of roi", 3, (0, 0, 0)),
    ("static", 4, (0, 0, 0)),
    ("dynamic", 5, (111, 74, 0)),
    ("ground", 6, (81, 0, 81)),
    ("parking", 9, (250, 170, 160)),
    ("rail track", 10, (230, 150, 140)),
    ("guard rail", 14, (180, 165, 180)),
    ("bridge", 15, (150, 100, 100)),
    ("tunnel", 16, (150, 120, 90)),
    ("polegroup", 18, (153, 153, 153)),
    ("caravan", 29, (0, 0, 90)),
    ("trailer", 30, (0, 0, 110)),
    # Drawn nowhere.
    ("license plate", -1, (0, 0, 142)),
)
# In the order of the classes.
_SCORED: tuple[tuple[str, int, Colour], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)

LABELS: tuple[Label, ...] = (
    *(Label(name, id, IGNORED, colour) for name, id, colour in _UNSCORED),
    *(Label(name, id, train_id, colour) for train_id, (name, id, colour) in enumerate(_SCORED)),
)
CITYSCAPES = ClassTable("cityscapes", tuple(name for name, _, _ in _SCORED), tuple(colour for _, _, colour in _SCORED))

_BY_NAME = {label.name: label for label in LABELS}
# What Pillow can draw; two corners are a line.
_SMALLEST_POLYGON = 2
_LARGEST_SIDE = 1 << 15


def label_ids_to_train_ids(label_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn a map of ids (H, W) uint8 into one of train ids; unknown ids become 255."""
    table = np.full(256, IGNORED, np.uint8)
    for label in LABELS:
        if label.id >= 0:
            table[label.id] = label.train_id
    return table[label_ids]


def train_ids_to_label_ids(train_ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn a class map (H, W) uint8 into one of ids, which the evaluation server takes; 255 becomes 0, unlabeled."""
    table = np.zeros(256, np.uint8)
    for train_id, (_, id, _) in enumerate(_SCORED):
        table[train_id] = id
    return table[train_ids]


def polygons_to_train_ids(document: str | bytes) -> NDArray[np.uint8]:
    """Draw the polygons of a ``*_gtFine_polygons.json`` as a map of train ids (H, W) uint8.

    Follows cityscapesscripts/preparation/json2labelImg.py: in the file's order, later ones over earlier ones; deleted
    objects and those of negative ids are not drawn, and ``cargroup`` counts as ``car``.

    Raises
    ------
    InputError
        ``bad_annotation`` when the document is no such file, or holds a label that Cityscapes does not have.
    """
    return _draw(document, {label.name: label.train_id for label in LABELS}, IGNORED)


def polygons_to_label_ids(document: str | bytes) -> NDArray[np.uint8]:
    """Draw such polygons as a map of ids (H, W) uint8, 0 where there is none; see `polygons_to_train_ids`."""
    return _draw(document, {label.name: label.id for label in LABELS}, 0)


def _draw(document: str | bytes, numbers: Mapping[str, int], background: int) -> NDArray[np.uint8]:
    try:
        annotation = json.loads(document)
        size = (int(annotation["imgWidth"]), int(annotation["imgHeight"]))
        objects = [
            (str(entry["label"]), entry["polygon"], bool(entry.get("deleted"))) for entry in annotation["objects"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _bad(f"it is no annotation of polygons ({error!r})") from error
    if not all(0 < side <= _LARGEST_SIDE for side in size):
        raise _bad(f"it states a size of {size[0]} x {size[1]}; accepted are 1 to {_LARGEST_SIDE}")
    picture = Image.new("L", size, background)
    drawer = ImageDraw.Draw(picture)
    for name, polygon, deleted in objects:
        label = _label(name)
        if not deleted and label.id >= 0:
            drawer.polygon(_corners(polygon, name), fill=numbers[label.name])
    return np.array(picture)


def _label(name: str) -> Label:
    label = _BY_NAME.get(name) or _BY_NAME.get(name.removesuffix("group"))
    if label is None:
        raise _bad(f"label {name[:60]!r} is none of Cityscapes'")
    return label


def _corners(polygon: Any, name: str) -> list[tuple[float, float]]:
    try:
        corners = [(float(x), float(y)) for x, y in polygon]
    except (TypeError, ValueError) as error:
        raise _bad(f"a polygon of {name!r} is no list of x, y pairs") from error
    if len(corners) < _SMALLEST_POLYGON or not np.isfinite(corners).all():
        raise _bad(
            f"a polygon of {name!r} has {len(corners)} corners; at least {_SMALLEST_POLYGON} finite ones are needed"
        )
    return corners


def _bad(problem: str) -> InputError:
    message = f"the annotation cannot be used: {problem}; give the data set's own *_gtFine_polygons.json"
    return InputError(message, code="bad_annotation")
