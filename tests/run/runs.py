# SPDX-License-Identifier: Apache-2.0
"""Pictures, and what is asked of a run."""

import io
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from segship.images import ImageLimits
from segship.promptable.everything.options import AmgOptions
from segship.run.plan import PlanOptions

AMG = AmgOptions(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0)
OPTIONS = PlanOptions(amg=AMG, shard_items=4)
PICTURES = 18


def picture(seed, size=(60, 40)):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    Image.fromarray(pixels).resize(size).save(stream, "PNG")
    return stream.getvalue()


def flat(size):
    stream = io.BytesIO()
    Image.new("RGB", size).save(stream, "PNG")
    return stream.getvalue()


def bad_files():
    """Files that cannot be answered, with the reason of each, for `LIMITS`."""
    good = picture(3)
    huge = good[:16] + (12).to_bytes(4, "big") + (40_000).to_bytes(4, "big") + good[24:29]
    return {
        "empty": (b"", "empty_file"),
        "text": (b"hello", "unknown_format"),
        "short": (good[:60], "truncated"),
        "pdf": (b"%PDF-1.4 ", "format_not_allowed"),
        "thin": (picture(1, (8, 16_000)), "aspect_ratio"),
        "damaged": (good[:60] + bytes(8) + good[68:], "corrupt"),
        "huge": (huge + zlib.crc32(huge[12:]).to_bytes(4, "big") + good[33:], "side_too_long"),
        "wide": (flat((800, 800)), "too_many_pixels"),
        "heavy": (good + bytes(100_000), "too_many_bytes"),
    }


LIMITS = ImageLimits(bytes=90_000, pixels=600_000)


def rows_of(found):
    """Every row of tables, in an order that does not depend on them."""
    parts = (pyarrow.parquet.read_table(io.BytesIO(data)) for data in found.values())
    return sorted(pyarrow.concat_tables(parts).to_pylist(), key=str)


def tables(place):
    return {path.name: path.read_bytes() for path in sorted((Path(place) / "data").iterdir())}


def refused(kind, function, *arguments, **named):
    with pytest.raises(kind) as caught:
        function(*arguments, **named)
    return caught.value.code
