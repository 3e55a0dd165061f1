# SPDX-License-Identifier: Apache-2.0
"""Example 6: a box, and a background point that cuts something off what is in it."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
task.set_image(segship.demo_photograph())

saucer = [75, 70, 480, 385]
for what, inputs in {
    "in the box": {"boxes": saucer},
    "without the coffee": {"boxes": saucer, "points": [[280, 150]], "labels": [0]},
}.items():
    outputs = task(inputs, multimask_output=False)
    print(f"{what}: {outputs['masks'][0].sum():,} pixels, predicted IoU {outputs['iou_predictions'][0]:.2f}")
