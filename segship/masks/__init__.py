# SPDX-License-Identifier: Apache-2.0
"""Masks as a library of their own: pure functions on arrays, with numpy and OpenCV, and without any model.

`rle` has run lengths as COCO and SA-1B write them, `runs` what those tell of one mask and `spans` of many at a time,
`boxes`, `polygons` and `regions` their shapes, `scores` and `boundaries` how alike masks are, `nms` which of them to
keep. `cleanup` serves the prompted masks of a small model.
"""
