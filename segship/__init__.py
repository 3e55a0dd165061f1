# SPDX-License-Identifier: Apache-2.0
"""Ship Segment Anything to any machine: from a published checkpoint to verified, fast, servable masks.

>>> import segship
>>> predictor = segship.load("tiny")
>>> prediction = predictor.predict(segship.demo_photograph(), points=[[365, 290]], labels=[1])
>>> prediction.masks.shape
(1, 3, 400, 600)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        SegshipWarning,
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
    "SegshipWarning",
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

# Where the names are, for `__getattr__`: nothing is imported before it is asked for, so that the command line can be
# interrupted from its first moment on, and no program waits for what it does not use.
_PLACES = {
    "segship.catalog": ("ModelInfo", "list_models"),
    "segship.errors": (
        "BackendUnavailable",
        "BundleError",
        "CheckpointError",
        "ComparisonFailed",
        "ExportError",
        "FetchError",
        "ImageError",
        "InputError",
        "OutputError",
        "PromptError",
        "SegshipError",
        "SegshipWarning",
        "UnsafeCheckpoint",
    ),
    "segship.images": ("ImageLimits", "read_image"),
    "segship.images.reading": ("demo_photograph",),
    "segship.loading": ("load", "load_semantic"),
    "segship.pipelines": ("pipeline",),
    "segship.promptable.everything.options": ("AmgOptions",),
    "segship.promptable.everything.records": ("MaskRecord",),
    "segship.promptable.everything.search": ("generate_masks", "iter_masks"),
    "segship.promptable.prediction": ("ImageEmbedding", "MaskPrediction", "best_masks"),
    "segship.promptable.predictor": ("Predictor",),
    "segship.promptable.prompts": ("PromptLimits", "Prompts"),
    "segship.semantic.class_map": ("ClassMap",),
    "segship.semantic.labels": ("ClassVote", "label_masks"),
    "segship.semantic.predictor": ("SemanticPredictor",),
    "segship.semantic.views": ("SemanticOptions",),
    "segship.writers": ("write_result",),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(module), name)
            return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"segship.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"segship.{name}":
                raise
    raise AttributeError(f"module 'segship' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
