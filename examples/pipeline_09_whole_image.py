# SPDX-License-Identifier: Apache-2.0
"""Example 9: everything in the picture, with the thresholds that suit the model."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
records = task({"image": segship.demo_photograph()}, seg_image=True)
covered = sum(record["area"] for record in records)
print(f"{len(records)} masks of {covered:,} pixels together")
for record in records[:5]:
    print(f"  {record['area']:,} at {record['bbox']}, predicted IoU {record['predicted_iou']:.2f}")
