# SPDX-License-Identifier: Apache-2.0
"""Results for roboflow's supervision, which annotates, filters, counts and tracks: `to_supervision`."""

from __future__ import annotations

from typing import Any

import numpy as np

from segship.errors import BackendUnavailable
from segship.writers.instances import Instances, Source, as_instances

# Sides beyond this are refused by CompactMask.from_coco_rle of supervision 0.31.
_LONGEST_COMPACT_SIDE = 32_768


def to_supervision(source: Source) -> Any:
    """Return masks as ``supervision.Detections``, in their own order.

    Of a prompted prediction the best mask of every object. Masks are a ``CompactMask``, which holds run lengths of
    crops, where supervision has one (0.28 and later), and an (n, H, W) bool array where it has not or the image is too
    large for it.

    Returns
    -------
    supervision.Detections
        ``xyxy`` (n, 4) float32, boxes to the last pixel itself as supervision counts them; ``confidence`` (n,) float32
        predicted IoUs, NaN where unknown; ``class_id`` (n,) int64 and ``data["class_name"]`` the categories; other
        values under ``data``: ``area`` and ``stability_score`` (NaN where unknown).

    Raises
    ------
    BackendUnavailable
        ``supervision_missing``.
    """
    supervision = _import_supervision()
    instances = as_instances(source, best_only=True)
    entries = instances.entries
    if not entries:
        return supervision.Detections.empty()
    boxes = np.array([entry.box_xyxy for entry in entries], np.int64)
    # Inclusive; an empty mask keeps the box of its zeros.
    boxes[:, 2:] = np.maximum(boxes[:, 2:] - 1, boxes[:, :2])
    names = np.array(instances.categories, np.str_)
    class_id = np.array([entry.category for entry in entries], np.int64)
    return supervision.Detections(
        xyxy=boxes.astype(np.float32),
        mask=_masks(supervision, instances, boxes),
        # None becomes NaN.
        confidence=np.array([entry.score for entry in entries], np.float32),
        class_id=class_id,
        data={
            "class_name": names[class_id],
            "area": np.array([entry.area for entry in entries], np.int64),
            "stability_score": np.array([entry.stability_score for entry in entries], np.float64),
        },
    )


def _masks(supervision: Any, instances: Instances, boxes: Any) -> Any:
    compact: Any = getattr(supervision, "CompactMask", None)
    if not hasattr(compact, "from_coco_rle") or max(instances.size) > _LONGEST_COMPACT_SIDE:
        return np.stack([entry.mask for entry in instances.entries])
    rles = [{"size": list(entry.size), "counts": entry.runs.tolist()} for entry in instances.entries]
    return compact.from_coco_rle(rles, boxes.astype(np.float64), instances.size)


def _import_supervision() -> Any:
    try:
        import supervision
    except ModuleNotFoundError as error:
        message = "to_supervision needs supervision, which is not installed; pip install supervision"
        raise BackendUnavailable(message, code="supervision_missing") from error
    return supervision
