# SPDX-License-Identifier: Apache-2.0
"""Data sets of semantic segmentation: classes, colors and folders of Cityscapes, ADE20K and COCO-Stuff."""
