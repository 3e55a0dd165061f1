# SPDX-License-Identifier: Apache-2.0
"""Results as label maps, in which a pixel belongs to one mask alone: 16-bit instance ids, and COCO panoptic.

Where masks overlap, the smaller one is on top: masks are painted from the largest to the smallest, and of equal areas
the later one over the earlier, as in the overlay. So a wheel shows on its car. A mask that others cover wholly has no
pixel. Masks that do not overlap, such as a partition, lose nothing. Of a prompted prediction the best mask of every
object is painted, since its other masks are other readings of the same thing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.errors import OutputError
from segship.masks.boxes import masks_to_boxes, xyxy_to_xywh
from segship.masks.runs import paint_order, paint_runs
from segship.writers.documents import coco_categories, coco_image, encode_json
from segship.writers.instances import Instance, Instances, Source, as_instances
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
    others cover wholly is left out of the JSON, as panopticapi demands; ``area`` and ``bbox`` are of what is seen.
    """

    extension = "panoptic"
    loses = "what a smaller mask covers, stability scores, points, pixels, notes"

    def write(self, source: Source) -> dict[str, bytes]:
        """Return the files of one image: name to bytes."""
        instances = as_instances(source, best_only=True)
        labels = _paint(instances, LARGEST_PANOPTIC, np.uint32)
        folder = f"{source.stem}.{self.extension}"
        # OpenCV has blue first, which is the highest byte.
        colors = np.stack([labels >> 16, labels >> 8 & 0xFF, labels & 0xFF], axis=-1).astype(np.uint8)
        return {
            f"{folder}/{PANOPTIC_PICTURE}": encode_png(colors),
            f"{folder}/{PANOPTIC_DOCUMENT}": encode_json(_panoptic_document(instances, labels)),
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


def _panoptic_document(instances: Instances, labels: NDArray[np.uint32]) -> dict[str, Any]:
    areas = np.bincount(labels.ravel(), minlength=len(instances.entries) + 1).tolist()
    segments = [
        _segment(number, entry, labels, areas[number])
        for number, entry in enumerate(instances.entries, start=1)
        if areas[number]
    ]
    annotation = {"image_id": 1, "file_name": PANOPTIC_PICTURE, "segments_info": segments}
    # A thing is countable, and what Segment Anything finds are things.
    categories = [{**category, "isthing": 1} for category in coco_categories(instances)]
    return {"images": [coco_image(instances)], "annotations": [annotation], "categories": categories}


def _segment(number: int, entry: Instance, labels: NDArray[np.uint32], area: int) -> dict[str, Any]:
    x0, y0, x1, y1 = entry.box_xyxy
    seen = masks_to_boxes(labels[y0:y1, x0:x1] == number) + np.array([x0, y0, x0, y0])
    return {
        "id": number,
        "category_id": entry.category + 1,
        "area": area,
        "bbox": xyxy_to_xywh(seen).tolist(),
        "iscrowd": 0,
        "score": entry.score,
    }
