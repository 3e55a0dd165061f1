# SPDX-License-Identifier: Apache-2.0
"""Example 2: two points of the same object, and one mask."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
task.set_image(segship.demo_photograph())

outputs = task({"points": [[120, 230], [430, 250]], "labels": [1, 1]}, multimask_output=False)
mask, score = outputs["masks"][0], outputs["iou_predictions"][0]
print(f"the saucer: {mask.sum():,} pixels, predicted IoU {score:.2f}")
