# SPDX-License-Identifier: Apache-2.0
"""Ship Segment Anything to any machine: from a published checkpoint to verified, fast, servable masks.

>>> import segship
>>> predictor = segship.load("tiny")
>>> prediction = predictor.predict(segship.demo_photograph(), points=[[365, 290]], labels=[1])
>>> prediction.masks.shape
(1, 3, 400, 600)
"""

from segship.catalog import ModelInfo, list_models, load
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
from segship.images import ImageLimits
from segship.photograph import demo_photograph
from segship.predictor import ImageEmbedding, MaskPrediction, Predictor, best_masks
from segship.prompts import PromptLimits, Prompts

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "BundleError",
    "CheckpointError",
    "ComparisonFailed",
    "ExportError",
    "FetchError",
    "ImageEmbedding",
    "ImageError",
    "ImageLimits",
    "InputError",
    "MaskPrediction",
    "ModelInfo",
    "OutputError",
    "Predictor",
    "PromptError",
    "PromptLimits",
    "Prompts",
    "SegshipError",
    "UnsafeCheckpoint",
    "__version__",
    "best_masks",
    "demo_photograph",
    "list_models",
    "load",
]
