# SPDX-License-Identifier: Apache-2.0
"""Things and stuff: which classes of a data set can be counted, as panoptic formats ask.

Each data set's own definition. Cityscapes: ``hasInstances`` of cityscapesscripts/helpers/labels.py. ADE20K: the 100
categories of the instance segmentation task of the Places Challenge 2017 (CSAILVision/placeschallenge,
instancesegmentation), the other 50 are stuff. COCO-Stuff: the 80 classes of COCO's instances, which stand before the
91 of stuff.
"""

from __future__ import annotations

from collections.abc import Collection

from segship.datasets.ade20k import ADE20K
from segship.datasets.cityscapes import CITYSCAPES
from segship.datasets.class_table import ClassTable
from segship.datasets.cocostuff import COCO_STUFF
from segship.errors import InputError

_CITYSCAPES_THINGS = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
_COCO_THINGS = 80
_ADE20K_STUFF = frozenset(
    name.strip()
    for name in """
    wall, building, sky, floor, tree, ceiling, road, grass, sidewalk, earth, mountain, plant, water, house, sea, rug,
    field, rock, base, sand, skyscraper, grandstand, path, runway, stairway, river, bridge, blind, hill, bar, hovel,
    tower, dirt track, land, escalator, buffet, poster, stage, conveyer belt, canopy, swimming pool, waterfall, tent,
    cradle, tank, lake, blanket, pier, crt screen, shower
    """.split(",")
)

_THINGS: dict[tuple[str, ...], frozenset[str]] = {
    CITYSCAPES.classes: frozenset(_CITYSCAPES_THINGS),
    ADE20K.classes: frozenset(ADE20K.classes) - _ADE20K_STUFF,
    COCO_STUFF.classes: frozenset(COCO_STUFF.classes[:_COCO_THINGS]),
}


def thing_classes(table: ClassTable, things: Collection[str] | None = None) -> frozenset[str]:
    """Return the names of the classes that are things; all others are stuff.

    Parameters
    ----------
    table
        The classes. Those of Cityscapes, ADE20K and COCO-Stuff are known by their names; of others every class counts
        as a thing unless ``things`` says which do.
    things
        The names, instead of what is known.

    Raises
    ------
    InputError
        ``unknown_class``: one of ``things`` is no class of the table.

    Examples
    --------
    >>> sorted(thing_classes(CITYSCAPES))[:3]
    ['bicycle', 'bus', 'car']
    """
    if things is None:
        return _THINGS.get(table.classes, frozenset(table.classes))
    unknown = sorted(set(things) - set(table.classes))
    if unknown:
        message = f"{unknown[0]!r} is no class of {table.name}; accepted are {', '.join(table.classes)}"
        raise InputError(message, code="unknown_class")
    return frozenset(things)
