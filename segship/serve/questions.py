# SPDX-License-Identifier: Apache-2.0
"""What a request asks, and how an answer looks: JSON and query strings to options of Python, results to JSON."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import cv2
import numpy as np

from segship.arrays import AnyArray, FloatArray
from segship.errors import InputError, PromptError, shown
from segship.masks.polygons import mask_to_polygons
from segship.masks.rle import encode_rle
from segship.options import check_types
from segship.promptable.everything.options import AmgOptions
from segship.promptable.prediction import MaskChoice, MaskPrediction, check_choice
from segship.promptable.prompt_text import load_json_object, parse_box, parse_point, parse_prompts_json, prompts_of
from segship.promptable.prompts import PromptLimits, Prompts
from segship.semantic.class_map import ClassMap
from segship.semantic.views import SemanticOptions

MaskFormat = Literal["rle", "png", "polygons", "logits"]
MapFormat = Literal["png", "rle"]
Query = Sequence[tuple[str, str]]

_PROMPT_KEYS = ("points", "labels", "boxes", "mask_input", "objects")
_MOST_LOGITS = 1024 * 1024
# Of the machine, or of what the answer looks like; not a client's to say.
NOT_ASKED = ("output_mode", "memory_bytes", "force_cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskQuestion:
    """How masks of prompts are wanted.

    Attributes
    ----------
    multimask_output
        true gives three candidates, false the one mask, "best" the best of three, "auto" the best of three for a single
        click and else the one.
    format
        "rle" (COCO's compressed run lengths), "png", "polygons", or "logits" of low resolution.
    clip
        Move points outside the image to its edge instead of refusing them.
    edges
        Let the picture decide the masks' borders; null is as the model's manifest says.
    """

    multimask_output: MaskChoice = "auto"
    format: MaskFormat = "rle"
    clip: bool = False
    edges: bool | None = None

    def __post_init__(self) -> None:
        check_choice(self.multimask_output)
        check_types(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapQuestion:
    """How a class map is wanted.

    Attributes
    ----------
    format
        "png" with the number of each pixel's class, or "rle" of each class.
    flip
        Ask for the mirrored picture too, and average.
    """

    format: MapFormat = "png"
    flip: bool = False

    def __post_init__(self) -> None:
        check_types(self)


def read_mask_question(body: bytes, limits: PromptLimits) -> tuple[Prompts | list[Prompts], MaskQuestion]:
    """Return the prompts and options of a JSON document; errors are those of `parse_prompts_json`."""
    document = load_json_object(body, limits)
    given = {one.name: document.pop(one.name) for one in fields(MaskQuestion) if one.name in document}
    for entry in (document, *_entries(document)):
        if isinstance(entry.get("mask_input"), dict):
            entry["mask_input"] = _read_logits(entry["mask_input"])
    _refuse_unknown(document, (*_PROMPT_KEYS, *get_type_hints(MaskQuestion)))
    return prompts_of(document, limits), MaskQuestion(**given)


def _entries(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = document.get("objects")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _refuse_unknown(document: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in document:
        if key not in known:
            message = f"the JSON document has the unknown key {shown(key)!r}; accepted are {', '.join(known)}"
            raise PromptError(message, code="unknown_key")


def read_mask_query(query: Query, limits: PromptLimits) -> tuple[Prompts | list[Prompts], MaskQuestion]:
    """Return the prompts and options of a query string: ``point``, ``box``, or ``prompts`` as JSON, and options."""
    points = [parse_point(text) for name, text in query if name == "point"]
    boxes = [parse_box(text) for name, text in query if name == "box"]
    documents = [text for name, text in query if name == "prompts"]
    question = MaskQuestion(**_query_options(query, MaskQuestion, ("point", "box", "prompts")))
    if documents and (points or boxes or len(documents) > 1):
        raise PromptError("prompts are given twice; give point and box, or prompts once", code="duplicate_key")
    if documents:
        return parse_prompts_json(documents[0], limits), question
    if points and len(boxes) > 1:
        message = f"there are points and {len(boxes)} boxes, so it is not clear whose the points are; use prompts"
        raise PromptError(message, code="length_mismatch")
    xy = [[point.x, point.y] for point in points] or None
    labels = [point.label for point in points] or None
    return Prompts(points=xy, labels=labels, boxes=boxes or None), question


def read_map_query(query: Query) -> MapQuestion:
    """Return the options of a query string for class maps."""
    return MapQuestion(**_query_options(query, MapQuestion))


def _query_options(query: Query, kind: type, others: Sequence[str] = ()) -> dict[str, Any]:
    """Return the options in a query string; each once, and nothing that is not known."""
    hints, found = get_type_hints(kind), dict[str, Any]()
    for name, text in query:
        if name in others or name == "model":
            continue
        if name not in hints or name in found:
            what = f"the query has {shown(name)!r} twice" if name in found else f"the query has {shown(name)!r}"
            message = f"{what}; accepted are {', '.join((*others, 'model', *hints))}, options once each"
            raise PromptError(message, code="duplicate_key" if name in found else "unknown_key")
        found[name] = {"true": True, "false": False, "null": None}.get(text, text)
    return found


def read_everything(body: bytes, limits: PromptLimits) -> AmgOptions:
    """Return the options of everything mode that a JSON document states; an empty body states none."""
    document = load_json_object(body, limits) if body.strip() else {}
    known = [one.name for one in fields(AmgOptions) if one.name not in NOT_ASKED]
    _refuse_unknown(document, known)
    if "point_grids" in document:
        document.setdefault("points_per_side", None)
    hints = get_type_hints(AmgOptions)
    for name, value in document.items():
        # JSON is read with whole numbers as float.
        if int in (hints[name], *get_args(hints[name])) and isinstance(value, float) and value.is_integer():
            document[name] = int(value)
    return AmgOptions(**document)


def _read_logits(found: Mapping[str, Any]) -> FloatArray:
    """Return low-resolution logits in the form in which they were given out."""
    accepted = "accepted is what an answer in the format logits has: dtype float32, shape and data in base64"
    try:
        sides = tuple(int(side) for side in found["shape"])
        data = base64.b64decode(found["data"], validate=True)
        if found["dtype"] != "float32" or set(found) != {"dtype", "shape", "data"} or min(sides, default=0) < 1:
            raise ValueError
        if len(data) != 4 * math.prod(sides) or math.prod(sides) > _MOST_LOGITS:
            raise ValueError
        return np.frombuffer(data, "<f4").reshape(sides)
    except (KeyError, TypeError, ValueError, OverflowError, binascii.Error):
        raise PromptError(f"a mask_input is not understood; {accepted}", code="bad_mask_input") from None


def masks_document(prediction: MaskPrediction, question: MaskQuestion) -> dict[str, Any]:
    """Return masks for `json.dumps`: of each object those that were asked for, in the form that was."""
    objects, masks = prediction.held.shape
    write = _FORMATS[question.format]
    rows = [
        {
            "masks": [
                {**_describe(prediction, entry, index), **write(prediction, entry, index)} for index in range(masks)
            ]
        }
        for entry in range(objects)
    ]
    height, width = prediction.original_size
    return {"width": width, "height": height, "objects": rows, "notes": list(prediction.notes)}


def _describe(prediction: MaskPrediction, entry: int, index: int) -> dict[str, Any]:
    x0, y0, x1, y1 = prediction.held.box(entry, index)
    return {
        "predicted_iou": round(float(prediction.iou_predictions[entry, index]), 6),
        "area": prediction.held.area(entry, index),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
    }


def _as_rle(prediction: MaskPrediction, entry: int, index: int) -> dict[str, Any]:
    return {"segmentation": prediction.mask_rle(entry, index)}


def _as_png(prediction: MaskPrediction, entry: int, index: int) -> dict[str, Any]:
    return {"png": encode_png(prediction.mask(entry, index))}


def _as_polygons(prediction: MaskPrediction, entry: int, index: int) -> dict[str, Any]:
    polygons = mask_to_polygons(prediction.mask(entry, index))
    rings = [{"outer": one.outer.tolist(), "holes": [hole.tolist() for hole in one.holes]} for one in polygons]
    return {"polygons": rings}


def _as_logits(prediction: MaskPrediction, entry: int, index: int) -> dict[str, Any]:
    logits = prediction.low_res_masks[entry, index].astype("<f4")
    data = base64.b64encode(logits.tobytes()).decode()
    return {"low_res_logits": {"dtype": "float32", "shape": list(logits.shape), "data": data}}


_FORMATS: dict[str, Callable[[MaskPrediction, int, int], dict[str, Any]]] = {
    "rle": _as_rle,
    "png": _as_png,
    "polygons": _as_polygons,
    "logits": _as_logits,
}


def encode_png(array: AnyArray) -> str:
    """Return (H, W) uint8, or bool as 0 and 255, as PNG in base64."""
    pixels = np.asarray(array, np.uint8) * np.uint8(255 if array.dtype == np.bool_ else 1)
    done, data = cv2.imencode(".png", pixels)
    if not done:
        raise InputError(f"a picture of {pixels.shape} cannot be a PNG; ask for rle", code="cannot_encode")
    return base64.b64encode(data.tobytes()).decode()


def map_document(found: ClassMap, question: MapQuestion) -> dict[str, Any]:
    """Return a class map for `json.dumps`: the classes that occur, the largest first, and their pixels."""
    height, width = found.array.shape
    numbers = {name: number for number, name in enumerate(found.classes)}
    rows = []
    for name, area in found.areas().items():
        row = {"id": numbers[name], "name": name, "color": list(found.palette[numbers[name]]), "area": area}
        row["share"] = round(area / found.array.size, 6)
        if question.format == "rle":
            row["segmentation"] = encode_rle(found.mask(name))
        rows.append(row)
    map_ = {"class_map": {"png": encode_png(found.array)}} if question.format == "png" else {}
    return {"width": width, "height": height, "classes": rows, **map_, "notes": list(found.notes)}


def semantic_options(question: MapQuestion) -> SemanticOptions:
    """Return the views of a picture that a question asks for."""
    return SemanticOptions(flip=question.flip)
