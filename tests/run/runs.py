# SPDX-License-Identifier: Apache-2.0
"""Pictures, and what is asked of a run."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def tables(place):
    return {path.name: path.read_bytes() for path in sorted((Path(place) / "data").iterdir())}


def refused(kind, function, *arguments, **named):
    with pytest.raises(kind) as caught:
        function(*arguments, **named)
    return caught.value.code
