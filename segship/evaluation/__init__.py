# SPDX-License-Identifier: Apache-2.0
"""Scores of semantic models on Cityscapes and ADE20K, counted here from the official folders: mIoU, aAcc, mAcc.

At the end of the use road: it takes class maps from a model or from files, and knows nothing of how they came about.
"""

from segship.evaluation.evaluating import EvaluateOptions, evaluate
from segship.evaluation.report import Evaluation
from segship.evaluation.scoring import Snapshot, StateFile, score_samples
from segship.evaluation.sources import ModelSource, WrittenMaps, WrittenSource, find_written_maps

__all__ = [
    "EvaluateOptions",
    "Evaluation",
    "ModelSource",
    "Snapshot",
    "StateFile",
    "WrittenMaps",
    "WrittenSource",
    "evaluate",
    "find_written_maps",
    "score_samples",
]
