# SPDX-License-Identifier: Apache-2.0
"""From an image to a class map, and from a class map to files and to labels of masks: the semantic family's use road.

`segship.semantic.predictor` looks at images, `segship.semantic.writing` and `segship.semantic.drawing` make files and
pictures, `segship.semantic.voting` gives masks a class, `segship.semantic.labelling` makes them ready for the writers.
"""

from segship.semantic.class_map import ClassMap
from segship.semantic.drawing import draw_class_map
from segship.semantic.inference import MULTI_SCALE_RATIOS, SemanticOptions, class_probabilities
from segship.semantic.predictor import SemanticPredictor, open_semantic
from segship.semantic.preprocessing import SCALE_LIMITS, ScaleLimits, SemanticPreprocessing

__all__ = [
    "MULTI_SCALE_RATIOS",
    "SCALE_LIMITS",
    "ClassMap",
    "ScaleLimits",
    "SemanticOptions",
    "SemanticPredictor",
    "SemanticPreprocessing",
    "class_probabilities",
    "draw_class_map",
    "open_semantic",
]
