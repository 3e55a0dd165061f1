# SPDX-License-Identifier: Apache-2.0
"""Example 4: a foreground point, label 1, and a background point, label 0."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
task.set_image(segship.demo_photograph())

outputs = task({"points": [[120, 230], [280, 150]], "labels": [1, 0]}, multimask_output=False)
mask, score = outputs["masks"][0], outputs["iou_predictions"][0]
print(f"the saucer and not the coffee: {mask.sum():,} pixels, predicted IoU {score:.2f}")
