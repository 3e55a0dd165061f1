# SPDX-License-Identifier: Apache-2.0
"""One image from its source to the files of its class map, timed: what ``segship semantic`` does for each image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segship.images import ImageLimits, ImageSource, read_image
from segship.segmenting import Stopwatch
from segship.semantic.class_map import ClassMap
from segship.semantic.inference import SemanticOptions
from segship.semantic.predictor import SemanticPredictor
from segship.semantic.writing import ClassMapResult, class_map_document, write_class_map


@dataclass(frozen=True, slots=True)
class MapOptions:
    """What is wanted of an image.

    Attributes
    ----------
    look
        How the model looks at it.
    formats
        Keys of `segship.semantic.writing.CLASS_MAP_WRITERS`.
    overwrite
        Replace files that are there.
    limits
        Bounds that an image must keep.
    """

    look: SemanticOptions = field(default_factory=SemanticOptions)
    formats: tuple[str, ...] = ("overlay", "classes")
    overwrite: bool = False
    limits: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True, slots=True, eq=False)
class MappedImage:
    """One image whose class map was made and written.

    Attributes
    ----------
    result
        Pixels and class map.
    files
        What was written.
    milliseconds
        Time of each stage: read, segment, write.
    """

    result: ClassMapResult
    files: tuple[Path, ...]
    milliseconds: dict[str, float]

    @property
    def class_map(self) -> ClassMap:
        """The classes."""
        return self.result.class_map

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pixels for `json.dumps`."""
        return {
            **class_map_document(self.result),
            "files": [str(path) for path in self.files],
            "milliseconds": {stage: round(value, 1) for stage, value in self.milliseconds.items()},
        }


def map_image(
    predictor: SemanticPredictor,
    source: ImageSource,
    directory: Path,
    options: MapOptions,
    *,
    stem: str,
    name: str,
) -> MappedImage:
    """Read one image, find its classes and write them.

    Parameters
    ----------
    predictor
        From `segship.load`.
    source
        What `segship.images.read_image` takes.
    directory
        Where the files go; it must exist.
    options
        See `MapOptions`.
    stem, name
        What the names of the files begin with, and what the image is called in documents.

    Raises
    ------
    ImageError, InputError, OutputError
        When the image, the options or the place cannot be used; nothing is written then.
    """
    watch = Stopwatch()
    loaded = read_image(source, limits=options.limits)
    watch.lap("read")
    class_map = predictor.segment(loaded, options.look, limits=options.limits)
    watch.lap("segment")
    result = ClassMapResult(stem, name, loaded.pixels, class_map, describe_making(predictor, options.look))
    files = write_class_map(result, directory, options.formats, overwrite=options.overwrite)
    watch.lap("write")
    return MappedImage(result, tuple(files), watch.milliseconds)


def describe_making(predictor: SemanticPredictor, look: SemanticOptions) -> dict[str, Any]:
    """Return what a JSON document says of the model, of what ran it, and of how it looked at the image."""
    return {
        "architecture": predictor.manifest.architecture,
        "backend": predictor.backend,
        "precision": predictor.precision,
        "runs_on": predictor.description,
        "window": None if look.window is None else list(look.window),
        "stride": None if look.window is None else list(look.steps),
        "ratios": list(look.ratios),
        "flip": look.flip,
    }
