# SPDX-License-Identifier: Apache-2.0
"""Masks as a library of their own: pure functions on arrays, with numpy and OpenCV, and without any model.

`rle` has run lengths as COCO and SA-1B write them and what those tell of one mask, `spans` of many; `polygons`
and `regions` are about shapes, `scores` says how alike masks are, `nms` which of them to keep; `panoptic` merges them
with a class map. `upscaling` makes masks of a decoder's logits, `lazy` when somebody asks for them; `cleanup` serves
the prompted masks of a small model, and `edges` lets the picture decide where masks end.
"""
