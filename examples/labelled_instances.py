# SPDX-License-Identifier: Apache-2.0
"""Masks with names: everything in a drawn street, the class of each mask by vote of a class map, COCO panoptic.

``python -m examples.labelled_instances`` in a clone, since the street is drawn by a recipe, which is not installed.
Without an argument the class map is the truth of the drawing; with one it comes from that semantic bundle.
"""

import sys

from PIL import Image

import segship
from recipes.streets.scenes import write_cityscapes
from segship.datasets.folders import find_samples, read_truth
from segship.datasets.known import CITYSCAPES
from segship.draw import draw_class_map
from segship.promptable.everything.records import ImageRecords
from segship.writers import write_result
from segship.writers.instances import label_records

write_cityscapes("streets", {"val": 1}, size_hw=(256, 512), seed=9)
(sample,) = find_samples("cityscapes", "streets")
pixels = segship.images.read_image(sample.image).pixels
if len(sys.argv) > 1:
    class_map = segship.load_semantic(sys.argv[1]).segment(pixels)
else:
    class_map = segship.ClassMap(read_truth(sample), CITYSCAPES)
Image.fromarray(draw_class_map(pixels, class_map)).save("street.semantic.png")
for name, count in class_map.areas().items():
    print(f"{name}: {count:,} pixels")

records = segship.generate_masks(segship.load("tiny"), pixels, segship.AmgOptions(points_per_side=16))
for record, vote in zip(records, segship.label_masks(records, class_map), strict=True):
    print(f"mask of {record.area:,} pixels: {vote.name}, purity {vote.label_purity:.2f}")
found = ImageRecords("street", "street.png", pixels, tuple(records))
write_result(label_records(found, class_map), ".", ["overlay", "panoptic"])
