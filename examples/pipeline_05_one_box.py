# SPDX-License-Identifier: Apache-2.0
"""Example 5: one box, x0 y0 x1 y1, and the object in it."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
task.set_image(segship.demo_photograph())

outputs = task({"boxes": [325, 225, 408, 328]}, multimask_output=False)
mask, score = outputs["masks"][0], outputs["iou_predictions"][0]
print(f"the spoon: {mask.sum():,} pixels, predicted IoU {score:.2f}")
