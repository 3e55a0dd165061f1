# SPDX-License-Identifier: Apache-2.0
"""Results as JSON: a COCO data set for other tools, and our own document with everything but the logits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from segship.masks.boxes import masks_to_boxes, xyxy_to_xywh
from segship.masks.rle import encode_rle
from segship.writers.names import safe_file_name
from segship.writers.result import Result

if TYPE_CHECKING:
    from segship.prompts import ObjectPrompt


class CocoWriter:
    """A COCO data set of one image: every mask an annotation with compressed run lengths."""

    extension = "coco.json"

    def write(self, result: Result) -> dict[str, bytes]:
        """Return the files of one result: name to bytes."""
        return {f"{result.stem}.{self.extension}": _encode_json(coco_document(result))}


class JsonWriter:
    """Scores, boxes, areas, run lengths, prompts and notes for programs to read."""

    extension = "prediction.json"

    def write(self, result: Result) -> dict[str, bytes]:
        """Return the files of one result: name to bytes."""
        return {f"{result.stem}.{self.extension}": _encode_json(prediction_document(result))}


def coco_document(result: Result) -> dict[str, Any]:
    """Return a result as a COCO data set for `json.dumps`.

    One annotation a mask, with ``object`` and ``mask`` as its place in the prediction beside COCO's own keys; ``score``
    is the predicted IoU. ``iscrowd`` is 1 because COCO's tools read run lengths of ground truth only then.
    """
    height, width = result.prediction.original_size
    masks, scores = result.masks, result.prediction.iou_predictions
    image = {"id": 1, "file_name": safe_file_name(result.name), "width": width, "height": height}
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": 1,
            "iscrowd": 1,
            "object": entry,
            "mask": index,
            **_describe_mask(masks[entry, index]),
            "score": _number(scores[entry, index]),
        }
        for number, (entry, index) in enumerate(np.ndindex(scores.shape), start=1)
    ]
    category = {"id": 1, "name": "object", "supercategory": "object"}
    return {"images": [image], "annotations": annotations, "categories": [category]}


def prediction_document(result: Result) -> dict[str, Any]:
    """Return a result for `json.dumps`: the image, for each object its prompts and masks, and all notes.

    Boxes are [x, y, width, height] under ``bbox`` and [x0, y0, x1, y1] under ``box``. A score that is not a number is
    null.
    """
    height, width = result.prediction.original_size
    masks, best = result.masks, result.best_masks.tolist()
    objects = [
        {
            "prompts": _describe_prompts(result.objects[entry]) if entry < len(result.objects) else None,
            "best_mask": best[entry],
            "masks": [
                {"iou_prediction": _number(score), **_describe_mask(mask)}
                for score, mask in zip(result.prediction.iou_predictions[entry], masks[entry], strict=True)
            ],
        }
        for entry in range(len(masks))
    ]
    return {
        "image": {"file_name": safe_file_name(result.name), "width": width, "height": height},
        "objects": objects,
        "notes": list(dict.fromkeys([*result.prediction.notes, *result.notes])),
    }


def _describe_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    box_xyxy = masks_to_boxes(mask)
    return {
        "area": int(np.count_nonzero(mask)),
        "bbox": xyxy_to_xywh(box_xyxy).tolist(),
        "segmentation": encode_rle(mask),
    }


def _describe_prompts(entry: ObjectPrompt) -> dict[str, Any]:
    return {
        "points": [[_number(x), _number(y)] for x, y in entry.points],
        "labels": entry.labels.tolist(),
        "box": None if entry.box is None else [_number(side) for side in entry.box],
        "mask_input": entry.mask_input is not None,
    }


def _number(value: NDArray[np.float32] | np.float32) -> float | None:
    """Return the shortest decimal that reads back as the same float32; None for what JSON has no number for."""
    return float(str(np.float32(value))) if np.isfinite(value) else None


def _encode_json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
