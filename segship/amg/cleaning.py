# SPDX-License-Identifier: Apache-2.0
"""Small holes filled, small islands dropped, and the duplicates that this makes removed.

Follows segment_anything/automatic_mask_generator.py postprocess_small_regions: masks that needed no cleaning win over
those that did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from segship.amg.duplicates import keep_best
from segship.amg.options import Nms
from segship.masks.regions import clean_runs
from segship.masks.runs import runs_to_area, runs_to_box
from segship.records import MaskRecord


def clean_small_regions(
    records: Sequence[MaskRecord], min_area: float, nms_thresh: float, *, nms: Nms = "box"
) -> list[MaskRecord]:
    """Return the records cleaned: those that stayed as they were first, then the changed ones, no two duplicates.

    Parameters
    ----------
    min_area
        Holes and islands of fewer pixels go; of a mask that is all small islands, the largest stays.
    nms_thresh
        Of two masks with an IoU above it, one goes.
    """
    cleaned = [_clean(record, min_area) for record in records]
    scores = [float(after is before) for before, after in zip(records, cleaned, strict=True)]
    return [cleaned[index] for index in keep_best(cleaned, scores, nms_thresh, nms=nms)]


def _clean(record: MaskRecord, min_area: float) -> MaskRecord:
    """Return the record itself if there is nothing to clean."""
    filled, has_filled = clean_runs(record.runs, record.size, min_area, "holes")
    kept, has_dropped = clean_runs(filled, record.size, min_area, "islands")
    if not has_filled and not has_dropped:
        return record
    x0, y0, x1, y1 = runs_to_box(kept, record.size)
    # The reference's boxes end at the last pixel itself.
    return replace(record, runs=kept, area=runs_to_area(kept), bbox=(x0, y0, x1 - x0 - 1, y1 - y0 - 1))
