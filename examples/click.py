# SPDX-License-Identifier: Apache-2.0
"""One click on the photograph inside the package: the mask, and a second click that cuts something off it."""

import segship

predictor = segship.load("tiny")
embedding = predictor.encode(segship.demo_photograph())

first = predictor.decode(embedding, segship.Prompts(points=[[365, 290]]), multimask_output="best")
print(f"one click: {first.masks[0, 0].sum():,} pixels, predicted IoU {first.iou_predictions[0, 0]:.2f}")

refined = predictor.decode(
    embedding,
    segship.Prompts(points=[[365, 290], [345, 230]], labels=[1, 0], mask_input=first.low_res_masks),
    multimask_output=False,
)
print(f"two clicks: {refined.masks[0, 0].sum():,} pixels, predicted IoU {refined.iou_predictions[0, 0]:.2f}")
