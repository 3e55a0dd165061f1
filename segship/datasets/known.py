# SPDX-License-Identifier: Apache-2.0
"""The classes of Cityscapes, ADE20K and COCO-Stuff: names, colors, label ids, and which of them can be counted."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from segship.arrays import Color, Pixels
from segship.datasets.classes import IGNORED, OWN_CLASSES, ClassTable, make_palette, read_table
from segship.errors import InputError, OutputError

COCO_STUFF: ClassTable = read_table(
    "cocostuff",
    """
    00c040 person, 00c040 bicycle, 004060 car, 80c0c0 motorcycle, 004040 airplane, 00c0e0 bus, 00c0c0 train,
    80c040 truck, 00c060 boat, 80c040 traffic light, 8020c0 fire hydrant, 0000e0 stop sign,
    000040 parking meter, 00a0c0 bench, 800060 bird, 8000c0 cat, 0020c0 dog, 8080e0 horse, 0000c0 sheep,
    80a0c0 cow, 808000 elephant, 800020 bear, 802000 zebra, 800080 giraffe, 408020 backpack, 00a000 umbrella,
    000000 handbag, c080a0 tie, 002000 suitcase, 008080 frisbee, 4080a0 skis, 80a000 snowboard,
    008000 sports ball, c08020 kite, 806080 baseball bat, 000080 baseball glove, 400020 skateboard,
    00e080 surfboard, 800000 tennis racket, c000a0 bottle, 006080 wine glass, 808080 cup, 4000a0 fork,
    80e080 knife, 808040 spoon, c00020 bowl, 806000 banana, 8000c0 apple, 008020 sandwich, 40e000 orange,
    000040 broccoli, 8080a0 carrot, 406000 hot dog, 0080c0 pizza, 0080a0 donut, c0e000 cake, 008040 chair,
    808020 couch, c02080 potted plant, 0040c0 bed, 000020 dining table, 40a080 toilet, 804040 tv,
    8000a0 laptop, 402080 mouse, 80c0c0 remote, 0000a0 keyboard, c0a080 cell phone, 80c000 microwave,
    800060 oven, c02000 toaster, 804080 sink, 408060 refrigerator, 40a000 book, 004000 clock, c080e0 vase,
    402000 scissors, 00c080 teddy bear, 4080e0 hair drier, c0a000 toothbrush, 00c000 banner, c08060 blanket,
    c06080 branch, 004080 bridge, 400060 building-other, 40e080 bush, 804000 cabinet, c000e0 cage,
    406080 cardboard, 80c080 carpet, 4000e0 ceiling-other, c0e080 ceiling-tile, 80c040 cloth, c00060 clothes,
    c06000 clouds, 8040c0 counter, 008060 cupboard, 00e000 curtain, 404040 desk-stuff, 8080e0 dirt,
    006000 door-stuff, 40c0c0 fence, 0080e0 floor-marble, 80e000 floor-other, 40c040 floor-stone,
    808060 floor-tile, 802080 floor-wood, 4000c0 flower, 004060 fog, 00a080 food-other, c00040 fruit,
    8040e0 furniture-other, 002080 grass, c080c0 gravel, 0040e0 ground-other, 80a080 hill, c08000 house,
    804020 leaves, 802040 light, c00080 mat, 40c020 metal, 00a040 mirror-stuff, 400000 moss, c0c0a0 mountain,
    002040 mud, 408080 napkin, 40c0a0 net, 80a040 paper, 408000 pavement, c0c020 pillow, 8060c0 plant-other,
    400080 plastic, 404020 platform, 00e0c0 playingfield, c00000 railing, c040a0 railroad, 0060c0 river,
    c08080 road, 4040a0 rock, 80e0c0 roof, c08040 rug, c04020 salad, 806040 sand, c000c0 sea, 00c020 shelf,
    40e040 sky-other, 400040 skyscraper, 80c0a0 snow, 406040 solid-other, 4080c0 stairs, 00c0a0 stone,
    c0e040 straw, 408040 structural-other, 80c020 table, c020c0 tent, 4040c0 textile-other, 004020 towel,
    40a0c0 tree, c04040 vegetable, 8040a0 wall-brick, 4020c0 wall-concrete, c0c0c0 wall-other,
    0040a0 wall-panel, c0a0c0 wall-stone, c0c000 wall-tile, 804060 wall-wood, c02040 water-other,
    c04080 waterdrops, 40c060 window-blind, 40a040 window-other, 404000 wood
    """,
)
"""The 10k annotations hold 0 for everything else and the class plus one."""


ADE20K: ClassTable = read_table(
    "ade20k",
    """
    787878 wall, b47878 building, 06e6e6 sky, 503232 floor, 04c803 tree, 787850 ceiling, 8c8c8c road,
    cc05ff bed, e6e6e6 windowpane, 04fa07 grass, e005ff cabinet, ebff07 sidewalk, 96053d person, 787846 earth,
    08ff33 door, ff0652 table, 8fff8c mountain, ccff04 plant, ff3307 curtain, cc4603 chair, 0066c8 car,
    3de6fa water, ff0633 painting, 0b66ff sofa, ff0747 shelf, ff09e0 house, 0907e6 sea, dcdcdc mirror,
    ff095c rug, 7009ff field, 08ffd6 armchair, 07ffe0 seat, ffb806 fence, 0aff47 desk, ff290a rock,
    07ffff wardrobe, e0ff08 lamp, 6608ff bathtub, ff3d06 railing, ffc207 cushion, ff7a08 base, 00ff14 box,
    ff0829 column, ff0599 signboard, 0633ff chest of drawers, eb0cff counter, a09614 sand, 00a3ff sink,
    8c8c8c skyscraper, fa0a0f fireplace, 14ff00 refrigerator, 1fff00 grandstand, ff1f00 path, ffe000 stairs,
    99ff00 runway, 0000ff case, ff4700 pool table, 00ebff pillow, 00adff screen door, 1f00ff stairway,
    0bc8c8 river, ff5200 bridge, 00fff5 bookcase, 003dff blind, 00ff70 coffee table, 00ff85 toilet,
    ff0000 flower, ffa300 book, ff6600 hill, c2ff00 bench, 008fff countertop, 33ff00 stove, 0052ff palm,
    00ff29 kitchen island, 00ffad computer, 0a00ff swivel chair, adff00 boat, 00ff99 bar,
    ff5c00 arcade machine, ff00ff hovel, ff00f5 bus, ff0066 towel, ffad00 light, ff0014 truck, ffb8b8 tower,
    001fff chandelier, 00ff3d awning, 0047ff streetlight, ff00cc booth, 00ffc2 television receiver,
    00ff52 airplane, 000aff dirt track, 0070ff apparel, 3300ff pole, 00c2ff land, 007aff bannister,
    00ffa3 escalator, ff9900 ottoman, 00ff0a bottle, ff7000 buffet, 8fff00 poster, 5200ff stage, a3ff00 van,
    ffeb00 ship, 08b8aa fountain, 8500ff conveyer belt, 00ff5c canopy, b800ff washer, ff001f plaything,
    00b8ff swimming pool, 00d6ff stool, ff0070 barrel, 5cff00 basket, 00e0ff waterfall, 70e0ff tent,
    46b8a0 bag, a300ff minibike, 9900ff cradle, 47ff00 oven, ff00a3 ball, ffcc00 food, ff008f step,
    00ffeb tank, 85ff00 trade name, ff00eb microwave, f500ff pot, ff007a animal, fff500 bicycle, 0abed4 lake,
    d6ff00 dishwasher, 00ccff screen, 1400ff blanket, ffff00 sculpture, 0099ff hood, 0029ff sconce,
    00ffcc vase, 2900ff traffic light, 29ff00 tray, ad00ff ashcan, 00f5ff fan, 4700ff pier, 7a00ff crt screen,
    00ffb8 plate, 005cff monitor, b8ff00 bulletin board, 0085ff shower, ffd600 radiator, 19c2c2 glass,
    66ff00 clock, 5c00ff flag
    """,
)
"""Annotations hold 0 for everything else and the class plus one; predictions begin with 0 for the first class."""


def annotation_to_classes(annotation: Pixels) -> Pixels:
    """Turn an annotation (H, W) uint8, in which 0 is everything else, into a class map; 0 and 255 become 255.

    Examples
    --------
    >>> import numpy as np
    >>> annotation_to_classes(np.array([0, 1, 150, 255], np.uint8)).tolist()
    [255, 0, 149, 255]
    """
    # 0 wraps to 255.
    classes = annotation - np.uint8(1)
    classes[annotation == IGNORED] = IGNORED
    return classes


CITYSCAPES: ClassTable = read_table(
    "cityscapes",
    """
    804080 road, f423e8 sidewalk, 464646 building, 66669c wall, be9999 fence, 999999 pole,
    faaa1e traffic light, dcdc00 traffic sign, 6b8e23 vegetation, 98fb98 terrain, 4682b4 sky, dc143c person,
    ff0000 rider, 00008e car, 000046 truck, 003c64 bus, 005064 train, 0000e6 motorcycle, 770b20 bicycle
    """,
)

TABLES: dict[str, ClassTable] = {"cityscapes": CITYSCAPES, "ade20k": ADE20K, "cocostuff": COCO_STUFF}
"""Data sets of published models; the number of classes tells which one a checkpoint was trained on."""
# Of its annotations, in the order of the classes.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# The others are not scored; the plate, with no number of its own, is drawn nowhere.
_CITYSCAPES_UNSCORED = {
    "unlabeled": 0,
    "ego vehicle": 1,
    "rectification border": 2,
    "out of roi": 3,
    "static": 4,
    "dynamic": 5,
    "ground": 6,
    "parking": 9,
    "rail track": 10,
    "guard rail": 14,
    "bridge": 15,
    "tunnel": 16,
    "polegroup": 18,
    "caravan": 29,
    "trailer": 30,
    "license plate": -1,
}


class Label(NamedTuple):
    """One label of Cityscapes' annotations."""

    name: str
    id: int
    train_id: int


LABELS: tuple[Label, ...] = (
    *(Label(name, id, IGNORED) for name, id in _CITYSCAPES_UNSCORED.items()),
    *(Label(name, id, k) for k, (name, id) in enumerate(zip(CITYSCAPES.classes, _CITYSCAPES_IDS, strict=True))),
)

_BY_NAME = {label.name: label for label in LABELS}
# What Pillow can draw; two corners are a line.
_SMALLEST_POLYGON = 2
_LARGEST_SIDE = 1 << 15


def label_ids_to_train_ids(label_ids: Pixels) -> Pixels:
    """Turn a map of ids (H, W) uint8 into one of train ids; unknown ids become 255."""
    table = np.full(256, IGNORED, np.uint8)
    for label in LABELS:
        if label.id >= 0:
            table[label.id] = label.train_id
    return table[label_ids]


def polygons_to_train_ids(document: str | bytes) -> Pixels:
    """Draw the polygons of a ``*_gtFine_polygons.json`` as a map of train ids (H, W) uint8.

    Follows cityscapesscripts/preparation/json2labelImg.py: in the file's order, later ones over earlier ones; deleted
    objects and those of negative ids are not drawn, and ``cargroup`` counts as ``car``.

    Raises
    ------
    InputError
        ``bad_annotation`` when the document is no such file, or holds a label that Cityscapes does not have.
    """
    return _draw(document, {label.name: label.train_id for label in LABELS}, IGNORED)


def polygons_to_label_ids(document: str | bytes) -> Pixels:
    """Draw such polygons as a map of ids (H, W) uint8, 0 where there is none; see `polygons_to_train_ids`."""
    return _draw(document, {label.name: label.id for label in LABELS}, 0)


def _draw(document: str | bytes, numbers: Mapping[str, int], background: int) -> Pixels:
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

    Those of Cityscapes, ADE20K and COCO-Stuff are known by their names; of others every class counts as a thing. What
    ``things`` names is taken instead; a name that is no class of the table is refused as ``unknown_class``.

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


def table_of(count: int, names: Sequence[str] = (), palette: Sequence[Color] | None = None) -> ClassTable | None:
    """Return the classes of a model of ``count`` classes; None if nobody names them.

    ``names`` and ``palette`` are those that the model's file gives: they are taken as they are, and the table is called
    after the data set that has most of them at the same places. A file without names has those of the data set with
    as many classes: 19 Cityscapes, 150 ADE20K, 171 COCO-Stuff.

    Examples
    --------
    >>> table_of(19).name, table_of(2, ("weed", "soil")).name, table_of(7)
    ('cityscapes', 'own', None)
    """
    known = next((table for table in TABLES.values() if len(table.classes) == count), None)
    if not names:
        return known
    same = known is not None and [a.casefold() == b.casefold() for a, b in zip(names, known.classes, strict=True)]
    if known is None or not same or 2 * sum(same) <= count:
        return ClassTable(OWN_CLASSES, tuple(names), tuple(palette or make_palette(count)))
    return known if all(same) else ClassTable(known.name, tuple(names), tuple(palette or known.palette))


def label_ids(table: ClassTable) -> tuple[int, ...] | None:
    """Return the data set's own number of every class; None for classes that no known data set has.

    Examples
    --------
    >>> label_ids(CITYSCAPES)[:3]
    (7, 8, 11)
    """
    if table.classes == CITYSCAPES.classes:
        return _CITYSCAPES_IDS
    if table.classes in (ADE20K.classes, COCO_STUFF.classes):
        return tuple(range(1, len(table.classes) + 1))
    return None


def classes_to_label_ids(class_map: Pixels, table: ClassTable) -> Pixels:
    """Turn a class map (H, W) uint8 into one of the data set's own numbers; 0 where there is no class.

    Classes that have no such numbers are refused as ``no_label_ids``.
    """
    own = label_ids(table)
    if own is None:
        message = (
            f"the {len(table.classes)} classes of {table.name!r} have no numbers but their place in the list; write "
            "classes, which holds those"
        )
        raise OutputError(message, code="no_label_ids")
    numbers = np.zeros(256, np.uint8)
    numbers[: len(own)] = own
    return numbers[class_map]
