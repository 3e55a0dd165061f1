# SPDX-License-Identifier: Apache-2.0
"""Which of several records of the same thing stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segship.amg.options import Nms
from segship.masks.nms import box_nms, mask_nms
from segship.records import MaskRecord


def keep_best(records: Sequence[MaskRecord], scores: Sequence[float], threshold: float, *, nms: Nms) -> list[int]:
    """Return the indices of the records that stay, by descending score, the earlier of equal ones first.

    Parameters
    ----------
    threshold
        Of two records with an IoU above it, the one with the lower score goes.
    nms
        Whether boxes or masks are compared.
    """
    if not records:
        return []
    ranks = np.array(scores, np.float32)
    if nms == "mask":
        runs = [record.runs for record in records]
        return [int(index) for index in mask_nms(runs, ranks, threshold, height=records[0].size[0])]
    corners = np.array([record.bbox for record in records], np.float32)
    corners[:, 2:] += corners[:, :2]
    return [int(index) for index in box_nms(corners, ranks, threshold)]


def crop_score(record: MaskRecord) -> float:
    """Return the score of a record among those of other crops: masks of smaller crops are seen larger, and win."""
    _, _, width, height = record.crop_box
    return float(np.float32(1) / np.float32(width * height))
