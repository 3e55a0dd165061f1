# SPDX-License-Identifier: Apache-2.0
"""Results as label maps, in which a pixel belongs to one mask alone: 16-bit instance ids, and COCO panoptic.

Where masks overlap, the smaller one is on top: masks are painted from the largest to the smallest, and of equal areas
the later one over the earlier, as in the overlay. So a wheel shows on its car. A mask that others cover wholly has no
pixel. Masks that do not overlap, such as a partition, lose nothing. Of a prompted prediction the best mask of every
object is painted, since its other masks are other readings of the same thing.

Masks that a class map has voted for (`segship.semantic.labels`) become COCO panoptic with things and stuff, merged as
`segship.masks.panoptic` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.errors import OutputError
from segship.masks.panoptic import LabelledMask, Segment, merge_panoptic
from segship.masks.rle import paint_order, paint_runs
from segship.masks.spans import masks_to_boxes, xyxy_to_xywh
from segship.writers.documents import coco_categories, coco_image, describe_label, encode_json
from segship.writers.instances import Instances, Labels, Source, as_instances
from segship.writers.pictures import encode_png

LARGEST_16_BIT = 2**16 - 1
LARGEST_PANOPTIC = 2**24 - 1
PANOPTIC_PICTURE = "panoptic.png"
PANOPTIC_DOCUMENT = "panoptic.json"


class InstancesWriter:
    """A 16-bit gray PNG of the image's size: 0 where there is no mask, 1 for the first mask, 2 for the second, ..."""

    extension = "instances.png"
    loses = "what a smaller mask covers, scores, boxes, points, categories, pixels; holds 65,535 masks"

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        instances = as_instances(source, best_only=True)
        labels = _paint(instances, LARGEST_16_BIT, np.uint16)
        return {f"{source.stem}.{self.extension}": encode_png(labels)}


class PanopticWriter:
    """COCO panoptic: a PNG whose colours are segment ids, and the JSON that describes them, in a folder.

    The id of a pixel is R + 256 G + 65536 B: 0 where there is no mask, 1 for the first mask, ... A segment that
    others cover wholly is left out of the JSON, as panopticapi demands; ``area`` and ``bbox`` are of what is seen. Of
    masks with labels from a class map, things have an id each, and then every class of stuff has one.
    """

    extension = "panoptic"
    loses = "what a smaller mask covers, stability scores, points, pixels, notes"

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        instances = as_instances(source, best_only=True)
        if instances.labels is None:
            labels = _paint(instances, LARGEST_PANOPTIC, np.uint32)
            segments: list[Segment] = [Segment(entry.category, index) for index, entry in enumerate(instances.entries)]
        else:
            labels, segments = _merge(instances, instances.labels)
        folder = f"{source.stem}.{self.extension}"
        # OpenCV has blue first, which is the highest byte.
        colors = np.stack([labels >> 16, labels >> 8 & 0xFF, labels & 0xFF], axis=-1).astype(np.uint8)
        return {
            f"{folder}/{PANOPTIC_PICTURE}": encode_png(colors),
            f"{folder}/{PANOPTIC_DOCUMENT}": encode_json(_panoptic_document(instances, labels, segments)),
        }


def _paint(instances: Instances, largest: int, dtype: Any) -> NDArray[Any]:
    """Return (H, W) labels: 0 for no mask, and one more than its place in the list for every mask."""
    entries = instances.entries
    if len(entries) > largest:
        message = f"there are {len(entries)} masks, and this format holds {largest}; write coco, npz or parquet"
        raise OutputError(message, code="too_many_masks")
    height, width = instances.size
    columns = np.zeros((width, height), dtype)
    for index in paint_order([entry.runs for entry in entries]):
        paint_runs(columns, entries[index].runs, index + 1)
    return np.ascontiguousarray(columns.T)


def _merge(instances: Instances, labels: Labels) -> tuple[NDArray[np.uint32], list[Segment]]:
    masks = [
        LabelledMask(
            entry.runs,
            entry.category,
            -math.inf if entry.score is None else entry.score,
            0.0 if entry.label_purity is None else entry.label_purity,
        )
        for entry in instances.entries
    ]
    return merge_panoptic(masks, labels.class_map, labels.things, labels.panoptic)


def _panoptic_document(instances: Instances, ids: NDArray[np.uint32], segments: Sequence[Segment]) -> dict[str, Any]:
    areas = np.bincount(ids.ravel(), minlength=len(segments) + 1).tolist()
    described = [
        _segment(number, segment, instances, ids, areas[number])
        for number, segment in enumerate(segments, start=1)
        if areas[number]
    ]
    annotation = {"image_id": 1, "file_name": PANOPTIC_PICTURE, "segments_info": described}
    return {
        "images": [coco_image(instances)],
        "annotations": [annotation],
        "categories": [
            {**category, "isthing": int(category["supercategory"] != "stuff"), **_colour(instances, index)}
            for index, category in enumerate(coco_categories(instances))
        ],
    }


def _colour(instances: Instances, index: int) -> dict[str, list[int]]:
    palette = () if instances.labels is None else instances.labels.class_map.palette
    return {"color": list(palette[index])} if index < len(palette) else {}


def _segment(number: int, segment: Segment, instances: Instances, ids: NDArray[np.uint32], area: int) -> dict[str, Any]:
    document = {"id": number, "category_id": segment.category + 1, "area": area}
    if segment.mask is None:
        bbox = xyxy_to_xywh(masks_to_boxes(ids == number)).tolist()
        return {**document, "bbox": bbox, "iscrowd": 0}
    entry = instances.entries[segment.mask]
    x0, y0, x1, y1 = entry.box_xyxy
    seen = masks_to_boxes(ids[y0:y1, x0:x1] == number) + np.array([x0, y0, x0, y0])
    bbox = xyxy_to_xywh(seen).tolist()
    return {**document, "bbox": bbox, "iscrowd": 0, "score": entry.score, **describe_label(entry)}
