# SPDX-License-Identifier: Apache-2.0
"""Example 10: everything in the picture, crops included, with parameters that belong to this call alone."""

import segship
from segship.pipelines import pipeline

task = pipeline("segment_anything", model="tiny")
records = task(
    {"image": segship.demo_photograph()},
    seg_image=True,
    points_per_side=32,
    # For SAM the example has 0.86 and 0.92; the scores of tiny are lower.
    pred_iou_thresh=0.3,
    stability_score_thresh=0.5,
    crop_n_layers=1,
    crop_n_points_downscale_factor=2,
    min_mask_region_area=100,
)
covered = sum(record["area"] for record in records)
print(f"{len(records)} masks of {covered:,} pixels together")
for record in records[:5]:
    print(f"  {record['area']:,} at {record['bbox']}, predicted IoU {record['predicted_iou']:.2f}")
