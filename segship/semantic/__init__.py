# SPDX-License-Identifier: Apache-2.0
"""From an image to a class map: the use road of the semantic family."""

from segship.semantic.class_map import ClassMap
from segship.semantic.inference import SemanticOptions, class_probabilities
from segship.semantic.preprocessing import SCALE_LIMITS, ScaleLimits, SemanticPreprocessing

__all__ = [
    "SCALE_LIMITS",
    "ClassMap",
    "SemanticOptions",
    "SemanticPreprocessing",
    "ScaleLimits",
    "class_probabilities",
]
