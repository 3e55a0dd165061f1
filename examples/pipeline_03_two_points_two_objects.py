# SPDX-License-Identifier: Apache-2.0
"""Example 3: two points of different objects: a point and a label for each, one rank higher."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
task.set_image(segship.demo_photograph())

outputs = task({"points": [[[280, 150]], [[365, 290]]], "labels": [[1], [1]]}, multimask_output=False)
for name, masks, scores in zip(("coffee", "spoon"), outputs["masks"], outputs["iou_predictions"], strict=True):
    print(f"{name}: {masks[0].sum():,} pixels, predicted IoU {scores[0]:.2f}")
