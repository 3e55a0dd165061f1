# SPDX-License-Identifier: Apache-2.0
"""Results as JSON: a COCO data set for other tools, SA-1B's own form, and documents with all but arrays."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from segship.datasets.known import label_ids
from segship.masks.polygons import join_rings
from segship.writers.instances import (
    ClassMapResult,
    Instance,
    Instances,
    Result,
    Source,
    as_instances,
    shortest_number,
)
from segship.writers.names import safe_file_name, storable_text

if TYPE_CHECKING:
    from segship.promptable.prompts import ObjectPrompt


def coco_document(source: Source, *, polygons: bool = False, tolerance: float = 0.0) -> dict[str, Any]:
    """Return masks as a COCO data set for `json.dumps`.

    One annotation a mask; ``score`` is the predicted IoU. A prompted mask has ``object`` and ``mask``, its place in
    the prediction, a record its ``stability_score``, ``point_coords`` and ``crop_box``, and a mask that a class map has
    voted for its ``label_confidence`` and ``label_purity``. ``iscrowd`` is 1 because COCO's tools read run lengths of
    ground truth only then.

    With ``polygons``, segmentations are polygons that leave the edge of their mask by up to ``tolerance`` pixels, and
    ``iscrowd`` is 0. COCO's polygons have no holes: a hole is joined to the outline around it by a line that is walked
    there and back, and ``holes`` says how many of them a mask has. A mask without a pixel is left out.
    """
    instances = as_instances(source)
    entries = [entry for entry in instances.entries if entry.area or not polygons]
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": entry.category + 1,
            "iscrowd": 0 if polygons else 1,
            **_place(entry),
            **_describe_mask(entry),
            **(_outlines(entry, tolerance) if polygons else {}),
            "score": entry.score,
            **_origin(entry),
            **describe_label(entry),
        }
        for number, entry in enumerate(entries, start=1)
    ]
    return {"images": [coco_image(instances)], "annotations": annotations, "categories": coco_categories(instances)}


def _outlines(entry: Instance, tolerance: float) -> dict[str, Any]:
    found = entry.polygons(tolerance)
    holes = sum(len(polygon.holes) for polygon in found)
    rings = [join_rings([polygon.outer, *polygon.holes]).ravel().tolist() for polygon in found]
    return {"segmentation": rings, **({"holes": holes} if holes else {})}


def sa1b_document(source: Source) -> dict[str, Any]:
    """Return masks as one image of SA-1B for `json.dumps`.

    There are ``image``, and ``annotations`` with the keys of the data set. ``bbox`` and ``crop_box`` are x y width
    height. As in the data set, ``bbox`` ends at the last pixel itself, so its sizes are one less than the count of
    pixels. What is not known of a prompted mask is null. Masks that a class map was asked about have ``category``,
    ``label_confidence`` and ``label_purity`` besides.
    """
    instances = as_instances(source)
    height, width = instances.size
    image = {"image_id": 1, "width": width, "height": height, "file_name": safe_file_name(instances.name)}
    annotations = [
        {"id": number, **_record(entry), **_category(instances, entry), **describe_label(entry)}
        for number, entry in enumerate(instances.entries, start=1)
    ]
    return {"image": image, "annotations": annotations}


def prediction_document(source: Source) -> dict[str, Any]:
    """Return a result for `json.dumps`: the image, for each object its prompts and masks, and all notes.

    Boxes are [x, y, width, height] under ``bbox`` and [x0, y0, x1, y1] under ``box``. A score that is not a number is
    null. Of records there are ``records`` with the keys of SA-1B and ``category`` instead of ``objects``, and
    ``label_confidence`` and ``label_purity`` if a class map was asked.
    """
    instances = as_instances(source)
    height, width = instances.size
    document: dict[str, Any] = {"image": {"file_name": safe_file_name(source.name), "width": width, "height": height}}
    if isinstance(source, Result):
        document["objects"] = _describe_objects(source, instances)
    else:
        names = instances.categories
        document["records"] = [
            {**_record(entry), "category": names[entry.category], **describe_label(entry)}
            for entry in instances.entries
        ]
    return {**document, "notes": list(instances.notes)}


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


def coco_image(instances: Instances) -> dict[str, Any]:
    """Return the entry of an image in COCO's list of images."""
    height, width = instances.size
    return {"id": 1, "file_name": safe_file_name(instances.name), "width": width, "height": height}


def coco_categories(instances: Instances) -> list[dict[str, Any]]:
    """Return COCO's list of categories; number 1 is the first. ``supercategory`` is what is known of each."""
    things = None if instances.labels is None else instances.labels.things
    kinds = ("object" if things is None else "thing" if name in things else "stuff" for name in instances.categories)
    return [
        {"id": number, "name": name, "supercategory": kind}
        for number, (name, kind) in enumerate(zip(instances.categories, kinds, strict=True), start=1)
    ]


def describe_label(entry: Instance) -> dict[str, float | None]:
    """Return how sure the category of a mask is; nothing if no class map was asked."""
    if entry.label_purity is None:
        return {}
    return {"label_confidence": entry.label_confidence, "label_purity": entry.label_purity}


def encode_json(document: dict[str, Any]) -> bytes:
    """Return a document as UTF-8 JSON, strictly: a number that JSON does not have is our own mistake."""
    return storable_text(json.dumps(document, ensure_ascii=False, allow_nan=False)).encode("utf-8") + b"\n"


def _describe_objects(result: Result, instances: Instances) -> list[dict[str, Any]]:
    best = result.best_masks.tolist()
    objects: list[dict[str, Any]] = [
        {
            "prompts": _describe_prompts(result.objects[entry]) if entry < len(result.objects) else None,
            "best_mask": best[entry],
            "masks": [],
        }
        for entry in range(len(best))
    ]
    for instance in instances.entries:
        assert instance.place is not None, "a mask of a prediction without its place"
        objects[instance.place[0]]["masks"].append({"iou_prediction": instance.score, **_describe_mask(instance)})
    return objects


def _describe_mask(entry: Instance) -> dict[str, Any]:
    return {"area": entry.area, "bbox": entry.coco_bbox, "segmentation": entry.rle}


def _record(entry: Instance) -> dict[str, Any]:
    return {
        "segmentation": entry.rle,
        "area": entry.area,
        "bbox": entry.sam_bbox,
        "predicted_iou": entry.score,
        "point_coords": [list(point) for point in entry.point_coords],
        "stability_score": entry.stability_score,
        "crop_box": [float(side) for side in entry.crop_box],
    }


def _category(instances: Instances, entry: Instance) -> dict[str, str]:
    return {} if instances.labels is None else {"category": instances.categories[entry.category]}


def _place(entry: Instance) -> dict[str, int]:
    return {} if entry.place is None else {"object": entry.place[0], "mask": entry.place[1]}


def _origin(entry: Instance) -> dict[str, Any]:
    if entry.place is not None:
        return {}
    record = _record(entry)
    return {key: record[key] for key in ("stability_score", "point_coords", "crop_box")}


def _describe_prompts(entry: ObjectPrompt) -> dict[str, Any]:
    return {
        "points": [[shortest_number(x), shortest_number(y)] for x, y in entry.points],
        "labels": entry.labels.tolist(),
        "box": None if entry.box is None else [shortest_number(side) for side in entry.box],
        "mask_input": entry.mask_input is not None,
    }
