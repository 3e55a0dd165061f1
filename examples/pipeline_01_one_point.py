# SPDX-License-Identifier: Apache-2.0
"""Example 1: one point, one object, and three masks of what it may mean."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
task.set_image(segship.demo_photograph())

outputs = task({"points": [[365, 290]], "labels": [1]}, multimask_output=True)
for mask, score in zip(outputs["masks"], outputs["iou_predictions"], strict=True):
    print(f"the spoon: {mask.sum():,} pixels, predicted IoU {score:.2f}")
