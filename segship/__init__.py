# SPDX-License-Identifier: Apache-2.0
"""Ship Segment Anything to any machine: from a published checkpoint to verified, fast, servable masks.

>>> import segship
>>> predictor = segship.load("tiny")
>>> prediction = predictor.predict(segship.demo_photograph(), points=[[365, 290]], labels=[1])
>>> prediction.masks.shape
(1, 3, 400, 600)
"""

from typing import TYPE_CHECKING, Any

from segship.catalog import ModelInfo, list_models
from segship.errors import (
    BackendUnavailable,
    BundleError,
    CheckpointError,
    ComparisonFailed,
    ExportError,
    FetchError,
    ImageError,
    InputError,
    OutputError,
    PromptError,
    SegshipError,
    UnsafeCheckpoint,
)
from segship.images import ImageLimits, read_image
from segship.images.reading import demo_photograph
from segship.loading import load, load_semantic
from segship.pipelines import pipeline
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.records import MaskRecord
from segship.promptable.everything.search import generate_masks, iter_masks
from segship.promptable.prediction import ImageEmbedding, MaskPrediction, best_masks
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import PromptLimits, Prompts
from segship.semantic.class_map import ClassMap
from segship.semantic.labels import ClassVote, label_masks
from segship.semantic.predictor import SemanticPredictor
from segship.semantic.views import SemanticOptions

if TYPE_CHECKING:
    from segship.writers import write_result

__version__ = "0.4.0"

__all__ = [
    "AmgOptions",
    "BackendUnavailable",
    "BundleError",
    "CheckpointError",
    "ClassMap",
    "ClassVote",
    "ComparisonFailed",
    "ExportError",
    "FetchError",
    "ImageEmbedding",
    "ImageError",
    "ImageLimits",
    "InputError",
    "MaskPrediction",
    "MaskRecord",
    "ModelInfo",
    "OutputError",
    "Predictor",
    "PromptError",
    "PromptLimits",
    "Prompts",
    "SegshipError",
    "SemanticOptions",
    "SemanticPredictor",
    "UnsafeCheckpoint",
    "__version__",
    "best_masks",
    "demo_photograph",
    "generate_masks",
    "iter_masks",
    "label_masks",
    "list_models",
    "load",
    "load_semantic",
    "pipeline",
    "read_image",
    "write_result",
]


def __getattr__(name: str) -> Any:
    # Writers take as long to import as a third of all else, and a server or a notebook may never write.
    if name == "write_result":
        from segship.writers import write_result

        return write_result
    raise AttributeError(f"module 'segship' has no attribute {name!r}")
