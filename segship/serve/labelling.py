# SPDX-License-Identifier: Apache-2.0
"""Protocols of programs that people label pictures with: Label Studio's ML backends, and CVAT's interactors.

Label Studio sends a task and the regions that somebody has just drawn, points and rectangles in percent of the picture
as it is shown there; it gets a brush, or a rectangle where the project has no brush. CVAT's functions send the picture
itself with clicks in its pixels. Both carry pictures as base64 inside of JSON: these are set apart before JSON is read,
so that the rest keeps its limit.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import secrets
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from segship.arrays import AnyArray, BoolArray, Points, Size
from segship.errors import ImageError, InputError, shown
from segship.masks.polygons import mask_to_polygons
from segship.masks.rle import decode_rle
from segship.promptable.prompt_text import load_json_object
from segship.promptable.prompts import PromptLimits
from segship.serve.errors import too_large

# Shorter ones are read with the rest. Slashes may be escaped.
_LONG_BASE64 = re.compile(rb'"(?:data:[\w.+/;=-]{0,100},)?([A-Za-z0-9+/=\\]{1024,}+)"')
_APART = "base64:"
_POINT_KINDS, _BOX_KINDS = ("keypointlabels", "keypoint"), ("rectanglelabels", "rectangle")
# Of the packing that Label Studio's brushes have: bits of a value, and of the four kinds of lengths.
_VALUE_BITS, _LENGTH_BITS = 8, np.array([3, 4, 8, 16])
_CHANNELS = 4
_MOST_RUNS = 2**21


def set_apart(body: bytes, most: int) -> tuple[bytes, list[bytes]]:
    """Return JSON in which long base64 is replaced by its number, and the base64.

    Raises
    ------
    Refusal
        ``body_too_large`` when more than ``most`` bytes are left.
    """
    found: list[bytes] = []

    def take(match: re.Match[bytes]) -> bytes:
        found.append(match[1])
        return b'"%s%d"' % (_APART.encode(), len(found) - 1)

    text = _LONG_BASE64.sub(take, body)
    if len(text) > most:
        raise too_large("json_bytes", most, len(text))
    return text, found


def _inline(text: str, apart: Sequence[bytes]) -> bytes | None:
    """Return the bytes that a text holds, if it is base64 of a data: address or was set apart."""
    number = text.removeprefix(_APART)
    if number != text and number.isdigit() and len(number) < 9 and int(number) < len(apart):
        data = apart[int(number)].replace(b"\\/", b"/")
    elif text.startswith("data:"):
        head, _, rest = text.partition(",")
        if not head.endswith(";base64"):
            raise ImageError(
                "a data: address is not in base64; accepted is data:image/png;base64,...", code="bad_base64"
            )
        data = rest.encode("ascii", "replace")
    else:
        return None
    return _decoded(data)


def _decoded(data: bytes) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        message = "a picture is not in base64; accepted are the letters of RFC 4648, without line breaks"
        raise ImageError(message, code="bad_base64") from None


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What somebody has drawn for the model in Label Studio.

    Attributes
    ----------
    address, picture
        Where the picture is, or its bytes if the task holds them.
    points_percent
        (N, 2) x y of the picture as it is shown.
    labels
        1 foreground, 0 background, one a point.
    boxes_percent
        (4, 2) corners of each rectangle.
    rotation
        Degrees, clockwise, by which the picture is shown.
    label
        Of the regions; None without one.
    to_name, brush, rectangle
        Names of the picture's tag, and of what gives brushes and rectangles; None where the project has no such.
    """

    address: str
    picture: bytes | None
    points_percent: Points
    labels: tuple[int, ...]
    boxes_percent: tuple[Points, ...]
    rotation: int
    label: str | None
    to_name: str
    brush: str | None
    rectangle: str | None

    def prompts(self, size: Size) -> bytes:
        """Return the prompts for a picture of (height, width), as POST /v1/images/{id}/masks takes them."""
        found: dict[str, Any] = {"multimask_output": "auto", "clip": True}
        if len(self.labels):
            found["points"] = upright(self.points_percent, self.rotation, size).tolist()
            found["labels"] = list(self.labels)
        if self.boxes_percent:
            corners = upright(self.boxes_percent[-1], self.rotation, size)
            # One object: the last rectangle is what is meant now.
            found["boxes"] = [[*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]]
        return json.dumps(found).encode()


def upright(percent: Points, rotation: int, size: Size) -> Points:
    """Return pixels (N, 2) of the upright picture for places in percent of how it is shown.

    Examples
    --------
    >>> upright(np.array([[75.0, 10.0]]), 90, (400, 600)).tolist()
    [[60.0, 100.0]]
    """
    height, width = size
    shown_size = (width, height) if rotation in (0, 180) else (height, width)
    x, y = (np.asarray(percent, np.float64) / 100 * shown_size).T
    return np.stack(
        {0: (x, y), 90: (y, height - x), 180: (width - x, height - y), 270: (width - y, x)}[rotation], axis=1
    )


def as_shown(xy: Points, rotation: int, size: Size) -> Points:
    """Return percent of how a picture is shown for pixels of the upright one; what `upright` undoes."""
    height, width = size
    x, y = np.asarray(xy, np.float64).T
    turned = {0: (x, y), 90: (height - y, x), 180: (width - x, height - y), 270: (y, width - x)}[rotation]
    shown_size = (width, height) if rotation in (0, 180) else (height, width)
    return np.stack(turned, axis=1) / shown_size * 100


def read_label_studio(body: bytes, limits: PromptLimits) -> Drawing | int:
    """Return what was drawn; or how many tasks there are, if Label Studio asks before anybody has drawn.

    Raises
    ------
    InputError
        ``bad_request``, ``bad_base64``, or about JSON.
    """
    text, apart = set_apart(body, limits.json_bytes)
    document = load_json_object(text, limits)
    tasks = document.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise _bad("tasks is no list of objects")
    context = _object(document, "params").get("context") or document.get("context")
    regions = context.get("result") if isinstance(context, dict) else None
    if not regions:
        return len(tasks)
    if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
        raise _bad("context has a result that is no list of objects")
    if len(tasks) != 1:
        raise _bad(f"there is a context and {len(tasks)} tasks; accepted is one task")
    config = _read_config(document.get("label_config"))
    address = _object(tasks[0], "data").get(config["value"])
    if not isinstance(address, str):
        raise _bad(f"the task has no text under data, {shown(config['value'])}, where label_config has the picture")
    return _drawing(address, _inline(address, apart), regions, config)


def _object(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = found.get(name) or {}
    if not isinstance(value, dict):
        raise _bad(f"{name} is no object")
    return value


def _read_config(text: Any) -> dict[str, Any]:
    """Return names of a project's tags: picture and its value, brush and rectangle."""
    if not isinstance(text, str) or "<!" in text.replace("<!--", ""):
        # Declarations of XML are good for attacks alone.
        raise _bad("label_config is no text, or has declarations")
    try:
        tags = list(ElementTree.fromstring(text).iter())
    except ElementTree.ParseError:
        raise _bad("label_config is no XML") from None
    image = next((tag for tag in tags if tag.tag == "Image" and tag.get("name")), None)
    if image is None:
        raise _bad("label_config has no Image with a name")

    def control(kind: str) -> str | None:
        own = (tag.get("name") for tag in tags if tag.tag == kind and tag.get("toName") == image.get("name"))
        return next(own, None)

    return {
        "to_name": image.get("name"),
        "value": (image.get("value") or "").removeprefix("$"),
        "brush": control("BrushLabels"),
        "rectangle": control("RectangleLabels"),
    }


def _drawing(address: str, picture: bytes | None, regions: list[Any], config: Mapping[str, Any]) -> Drawing:
    points, labels, boxes, label, rotation = [], [], [], None, 0
    for region in regions:
        kind, value = region.get("type"), _object(region, "value")
        if kind not in (*_POINT_KINDS, *_BOX_KINDS):
            # Earlier answers are sent back too.
            continue
        rotation = _rotation(region)
        label = _first_text(value.get(kind)) or label
        if kind in _POINT_KINDS:
            points.append([_number(value, "x"), _number(value, "y")])
            labels.append(int(bool(region.get("is_positive", True))))
        else:
            boxes.append(_corners(value))
    return Drawing(
        address,
        picture,
        np.array(points, np.float64).reshape(-1, 2),
        tuple(labels),
        tuple(boxes),
        rotation,
        label,
        config["to_name"],
        config["brush"],
        config["rectangle"],
    )


def _rotation(region: Mapping[str, Any]) -> int:
    found = region.get("image_rotation", 0.0)
    if not isinstance(found, float | int) or found % 90 or isinstance(found, bool):
        raise _bad(f"image_rotation is {shown(found)}; accepted are quarters of a turn in degrees")
    return int(found) % 360


def _first_text(found: Any) -> str | None:
    return found[0] if isinstance(found, list) and found and isinstance(found[0], str) else None


def _number(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name, 0.0 if name == "rotation" else None)
    if type(value) is not float or not np.isfinite(value):
        raise _bad(f"{name} of a region is {shown(value)}; accepted is a finite number")
    return value


def _corners(value: Mapping[str, Any]) -> Points:
    """Return the corners of a rectangle, which may be turned around the first of them; in percent, as it is."""
    x, y, width, height = (_number(value, name) for name in ("x", "y", "width", "height"))
    turn = np.deg2rad(_number(value, "rotation"))
    away = np.array([[0, 0], [width, 0], [width, height], [0, height]])
    turned = away @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return np.asarray(turned + [x, y], np.float64)


def label_studio_result(drawing: Drawing, answer: bytes) -> list[dict[str, Any]]:
    """Return the regions that Label Studio shows for the answer to a drawing's prompts."""
    found = json.loads(answer)
    size, mask = (found["height"], found["width"]), found["objects"][0]["masks"][0]
    if not mask["area"] or (drawing.brush or drawing.rectangle) is None:
        return []
    value: dict[str, Any]
    if drawing.brush is not None:
        kind, value = "brushlabels", {"format": "rle", "rle": brush_rle(decode_rle(mask["segmentation"]))}
    else:
        kind, value = "rectanglelabels", _rectangle(mask["bbox"], drawing.rotation, size)
    return [
        {
            "id": secrets.token_hex(5),
            "from_name": drawing.brush or drawing.rectangle,
            "to_name": drawing.to_name,
            "type": kind,
            "value": {**value, **({} if drawing.label is None else {kind: [drawing.label]})},
            "original_width": size[1],
            "original_height": size[0],
            "image_rotation": drawing.rotation,
            "score": mask["predicted_iou"],
            "readonly": False,
        }
    ]


def _rectangle(bbox: Sequence[int], rotation: int, size: Size) -> dict[str, float]:
    x, y, width, height = bbox
    corners = as_shown(np.array([[x, y], [x + width, y + height]]), rotation, size)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return {"x": left, "y": top, "width": right - left, "height": bottom - top, "rotation": 0}


def brush_rle(mask: BoolArray) -> list[int]:
    """Return a mask (H, W) as bytes of Label Studio's brushes: RGBA values row by row, 0 or 255, packed by bits.

    The format is thi.ng's rle-pack: how many values there are (32 bits), bits of a value less one (5), bits of four
    kinds of lengths less one (4 each); then of each run a 1, its kind of length (2), its length less one, its value.

    Raises
    ------
    InputError
        ``answer_too_large`` for masks of dust.

    Examples
    --------
    >>> brush_rle(np.array([[True, False]]))
    [0, 0, 0, 8, 57, 27, 252, 127, 241, 128, 0]
    """
    pixels = np.ravel(mask)
    ends = np.append(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1, pixels.size)
    if len(ends) > _MOST_RUNS:
        message = f"the mask has {len(ends):,} runs of pixels; at most {_MOST_RUNS:,} fit into a brush"
        raise InputError(message, code="answer_too_large")
    lengths, values = np.diff(ends, prepend=0) * _CHANNELS, pixels[ends - 1] * 255
    longest = 1 << int(_LENGTH_BITS[-1])
    pieces = -(-lengths // longest)
    last = np.cumsum(pieces) - 1
    values, split = np.repeat(values, pieces), np.full(int(pieces.sum()), longest)
    split[last] = lengths - (pieces - 1) * longest
    kinds = np.searchsorted(1 << _LENGTH_BITS, split)
    bits = _LENGTH_BITS[kinds]
    codes = ((((4 + kinds) << bits) + split - 1) << _VALUE_BITS) + values
    head = np.array([pixels.size * _CHANNELS, _VALUE_BITS - 1, *(_LENGTH_BITS - 1)])
    widths = np.concatenate([[32, 5, 4, 4, 4, 4], 3 + bits + _VALUE_BITS])
    return list(_packed(np.concatenate([head, codes]), widths).tobytes())


def _packed(codes: AnyArray, widths: AnyArray) -> AnyArray:
    """Return numbers behind one another, each in so many bits, as bytes."""
    starts = np.cumsum(widths) - widths
    bits = np.zeros(int(widths.sum()), np.uint8)
    for place in range(int(widths.max())):
        long_enough = widths > place
        bits[starts[long_enough] + place] = (codes[long_enough] >> (widths[long_enough] - 1 - place)) & 1
    return np.packbits(bits)


def read_cvat(body: bytes, limits: PromptLimits) -> tuple[bytes, bytes]:
    """Return the picture that CVAT sends to a function, and the prompts as POST /v1/images/{id}/masks takes them.

    Raises
    ------
    InputError
        ``bad_request``, ``bad_base64``, or about JSON.
    """
    text, apart = set_apart(body, limits.json_bytes)
    document = load_json_object(text, limits)
    image = document.get("image")
    if not isinstance(image, str):
        raise _bad("image is no text; accepted is a picture in base64")
    picture = _inline(image, apart)
    positive, negative = (document.get(name) or [] for name in ("pos_points", "neg_points"))
    if not isinstance(positive, list) or not isinstance(negative, list):
        raise _bad("pos_points or neg_points is no list of points")
    prompts: dict[str, Any] = {"multimask_output": "auto", "clip": True}
    if positive or negative:
        prompts |= {"points": positive + negative, "labels": [1] * len(positive) + [0] * len(negative)}
    if box := document.get("obj_bbox"):
        # Two corners, or four numbers.
        corners = isinstance(box, list) and len(box) == 2 and all(isinstance(one, list) for one in box)
        prompts["boxes"] = box[0] + box[1] if corners else box
    return _decoded(image.encode("ascii", "replace")) if picture is None else picture, json.dumps(prompts).encode()


def cvat_answer(answer: bytes, most_bytes: int) -> bytes:
    """Return the JSON that CVAT reads: ``mask``, rows of 0 and 1, and ``points``, the outline of its largest piece.

    Raises
    ------
    InputError
        ``answer_too_large``.
    """
    found = json.loads(answer)
    height, width = found["height"], found["width"]
    if 2 * height * width > most_bytes:
        message = f"a mask of {height * width:,} pixels takes {2 * height * width:,} bytes as text; at most"
        raise InputError(f"{message} {most_bytes:,} are given out; send smaller pictures", code="answer_too_large")
    first = found["objects"][0]["masks"][0]
    mask = decode_rle(first["segmentation"])
    outlines = [polygon.outer.tolist() for polygon in mask_to_polygons(mask)]
    more = {"points": max(outlines, key=_area, default=[]), "score": first["predicted_iou"]}
    return b'{"mask":[%s],%s' % (_rows_as_text(mask), json.dumps(more).encode()[1:])


def _area(outline: Sequence[Sequence[float]]) -> float:
    x, y = np.array(outline, np.float64).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def _rows_as_text(mask: BoolArray) -> bytes:
    """Return ``[0,1],[1,1]`` without making a number of every pixel."""
    height, width = mask.shape
    text = np.full((height, 2 * width + 2), ord(","), np.uint8)
    text[:, 0], text[:, 2 * width] = ord("["), ord("]")
    text[:, 1 : 2 * width : 2] = ord("0") + mask
    return text.tobytes()[:-1]


def _bad(message: str) -> InputError:
    return InputError(f"{message}; see docs/serve.md for what is accepted", code="bad_request")
