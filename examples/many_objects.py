# SPDX-License-Identifier: Apache-2.0
"""Objects of different forms in one call of the decoder: a click, two clicks, a box, a box with a background click."""

import segship

predictor = segship.load("tiny")
embedding = predictor.encode(segship.demo_photograph())
prediction = predictor.decode(
    embedding,
    [
        segship.Prompts(points=[[280, 150]]),
        segship.Prompts(points=[[120, 230], [430, 250]]),
        segship.Prompts(boxes=[325, 225, 408, 328]),
        segship.Prompts(boxes=[75, 70, 480, 385], points=[[280, 150]], labels=[0]),
    ],
    multimask_output="auto",
)
for index, (masks, scores) in enumerate(zip(prediction.masks, prediction.iou_predictions, strict=True)):
    print(f"object {index}: {masks[0].sum():,} pixels, predicted IoU {scores[0]:.2f}")
