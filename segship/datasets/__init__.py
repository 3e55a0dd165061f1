# SPDX-License-Identifier: Apache-2.0
"""Data sets of semantic segmentation: their classes, their folders, and the score."""

from segship.datasets.ade20k import ADE20K
from segship.datasets.cityscapes import CITYSCAPES
from segship.datasets.class_table import IGNORED, ClassTable
from segship.datasets.cocostuff import COCO_STUFF
from segship.datasets.confusion import ConfusionMatrix, Scores

__all__ = ["ADE20K", "CITYSCAPES", "COCO_STUFF", "IGNORED", "ClassTable", "ConfusionMatrix", "Scores"]
