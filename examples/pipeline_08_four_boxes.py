# SPDX-License-Identifier: Apache-2.0
"""Example 8: four boxes, four objects, one call."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
task.set_image(segship.demo_photograph())

boxes = [[75, 70, 480, 390], [170, 18, 410, 310], [205, 95, 370, 195], [325, 225, 408, 328]]
outputs = task({"boxes": boxes}, multimask_output=False)
for name, masks, scores in zip(
    ("saucer", "cup", "coffee", "spoon"), outputs["masks"], outputs["iou_predictions"], strict=True
):
    print(f"{name}: {masks[0].sum():,} pixels, predicted IoU {scores[0]:.2f}")
