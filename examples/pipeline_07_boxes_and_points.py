# SPDX-License-Identifier: Apache-2.0
"""Example 7: several objects in one call, each with a box and a point."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
task.set_image(segship.demo_photograph())

outputs = task(
    {
        "boxes": [[170, 18, 410, 310], [325, 225, 408, 328]],
        "points": [[[285, 150]], [[365, 290]]],
        "labels": [[1], [1]],
    },
    multimask_output=False,
)
for name, masks, scores in zip(("cup", "spoon"), outputs["masks"], outputs["iou_predictions"], strict=True):
    print(f"{name}: {masks[0].sum():,} pixels, predicted IoU {scores[0]:.2f}")
