# SPDX-License-Identifier: Apache-2.0
"""One image from its source to its files: what ``segment``, ``everything`` and ``semantic`` do for each image."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segship.images import ImageLimits, ImageSource, read_image
from segship.promptable.everything.cost import AmgCost, estimate_cost
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.records import ImageRecords
from segship.promptable.everything.search import AmgResult, Progress, generate
from segship.promptable.prediction import MaskChoice, MaskPrediction
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import Prompts
from segship.semantic.class_map import ClassMap
from segship.semantic.predictor import SemanticPredictor
from segship.semantic.views import SemanticOptions
from segship.writers import (
    ClassMapResult,
    Instances,
    Result,
    class_map_document,
    prediction_document,
    write_result,
)
from segship.writers.instances import count_labels, label_records
from segship.writers.names import safe_file_name


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """What is wanted of an image.

    Attributes
    ----------
    multimask_output
        Which masks come out; see `segship.promptable.prediction.MaskChoice`.
    clip
        Move points outside the image to its edge instead of refusing them.
    formats
        Of masks, keys of `segship.writers.WRITERS`.
    overwrite
        Replace files that are there.
    limits
        Bounds that an image must keep.
    """

    multimask_output: MaskChoice = "auto"
    clip: bool = False
    formats: tuple[str, ...] = ("overlay", "png")
    overwrite: bool = False
    limits: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True, slots=True, eq=False)
class SegmentedImage:
    """One image that was segmented and written.

    Attributes
    ----------
    result
        Pixels, prompts and masks.
    files
        What was written.
    milliseconds
        Time of each stage: read, encode, decode, write.
    """

    result: Result
    files: tuple[Path, ...]
    milliseconds: dict[str, float]

    @property
    def prediction(self) -> MaskPrediction:
        """The masks."""
        return self.result.prediction

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pixels for `json.dumps`."""
        document = prediction_document(self.result)
        return {
            **document,
            "files": [str(path) for path in self.files],
            "milliseconds": {stage: round(value, 1) for stage, value in self.milliseconds.items()},
        }


def segment_image(
    predictor: Predictor,
    source: ImageSource,
    prompts: Prompts | Sequence[Prompts],
    directory: Path,
    options: SegmentOptions,
    *,
    stem: str,
    name: str,
) -> SegmentedImage:
    """Read, encode, decode and write one image.

    Parameters
    ----------
    predictor
        From `segship.load`.
    source
        What `segship.images.read_image` takes.
    prompts
        In the image frame.
    directory
        Where the files go; it must exist.
    options
        See `SegmentOptions`.
    stem, name
        What the names of the files begin with, and what the image is called in documents.

    Raises
    ------
    ImageError, PromptError, OutputError
        When the image, the prompts or the place cannot be used; nothing is written then.
    """
    watch = Stopwatch()
    loaded = read_image(source, limits=options.limits)
    watch.lap("read")
    embedding = predictor.encode_loaded(loaded)
    watch.lap("encode")
    prediction = predictor.decode(
        embedding,
        prompts,
        multimask_output=options.multimask_output,
        outside="clip" if options.clip else "error",
    )
    watch.lap("decode")
    result = Result(stem, name, loaded.pixels, prediction, prediction.objects, notes=loaded.notes)
    files = write_result(result, directory, options.formats, overwrite=options.overwrite)
    watch.lap("write")
    return SegmentedImage(result, tuple(files), watch.milliseconds)


class Stopwatch:
    """Time of stages that follow one another."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last call on a stage."""
        now = time.perf_counter()
        self.milliseconds[stage] = 1e3 * (now - self._last)
        self._last = now


@dataclass(frozen=True, slots=True)
class EverythingOptions:
    """What is wanted of an image.

    Attributes
    ----------
    amg
        What to look for, and how.
    formats
        Of masks, keys of `segship.writers.WRITERS`.
    overwrite
        Replace files that are there.
    limits
        Bounds that an image must keep.
    reduce
        2, 4 or 8 reads images at that part of their size, and masks are of that size.
    things
        With labels: names of the classes that can be counted; what is known of the data set when left out.
    """

    amg: AmgOptions = field(default_factory=AmgOptions)
    formats: tuple[str, ...] = ("overlay", "sa1b")
    overwrite: bool = False
    limits: ImageLimits = field(default_factory=ImageLimits)
    reduce: int = 1
    things: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EverythingImage:
    """One image whose masks were found and written.

    Attributes
    ----------
    name
        What the image is called.
    result
        Masks, coverage, cost.
    files
        What was written.
    milliseconds
        Time of each stage: read, generate, with labels also label, write.
    labelled
        The masks with their classes, if a semantic model was given.
    """

    name: str
    result: AmgResult
    files: tuple[Path, ...]
    milliseconds: dict[str, float]
    labelled: Instances | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the masks, which stand in the files, for `json.dumps`."""
        height, width = self.result.size
        return {
            "image": {"file_name": safe_file_name(self.name), "width": width, "height": height},
            "masks": len(self.result.records),
            "coverage": round(self.result.coverage, 6),
            "points": self.result.points,
            "cost": self.result.cost.to_dict(),
            **({} if self.labelled is None else {"labels": count_labels(self.labelled)}),
            "notes": list(self.result.notes),
            "files": [str(path) for path in self.files],
            "milliseconds": {stage: round(value, 1) for stage, value in self.milliseconds.items()},
        }


def find_everything(
    predictor: Predictor,
    source: ImageSource,
    directory: Path,
    options: EverythingOptions,
    *,
    stem: str,
    name: str,
    progress: Progress | None = None,
    labels: SemanticPredictor | None = None,
) -> EverythingImage:
    """Read one image, find everything in it and write that.

    Parameters
    ----------
    predictor
        From `segship.load`.
    source
        What `segship.images.read_image` takes.
    directory
        Where the files go; it must exist.
    options
        See `EverythingOptions`.
    stem, name
        What the names of the files begin with, and what the image is called in documents.
    progress
        See `segship.promptable.everything.search.Progress`.
    labels
        A semantic model whose class map gives every mask a class, see `segship.semantic.labels`.

    Raises
    ------
    ImageError, InputError, OutputError
        When the image, the options or the place cannot be used; nothing is written then.
    """
    watch = Stopwatch()
    loaded = read_image(source, limits=options.limits, reduce=options.reduce)
    watch.lap("read")
    result = generate(predictor, loaded.pixels, options.amg, limits=options.limits, progress=progress)
    result = replace(result, notes=tuple(dict.fromkeys((*loaded.notes, *result.notes))))
    watch.lap("generate")
    found: ImageRecords | Instances
    found = ImageRecords(stem, name, loaded.pixels, result.records, notes=result.notes)
    if labels is not None:
        found = label_image(labels, found, options)
        result = replace(result, notes=found.notes)
        watch.lap("label")
    files = write_result(found, directory, options.formats, overwrite=options.overwrite)
    watch.lap("write")
    return EverythingImage(
        name, result, tuple(files), watch.milliseconds, found if isinstance(found, Instances) else None
    )


def label_image(labels: SemanticPredictor, records: ImageRecords, options: EverythingOptions) -> Instances:
    """Return the records of an image with the classes that a semantic model's class map gives them.

    Votes are worth their probability where the model gives logits, see `segship.semantic.labels`.

    Parameters
    ----------
    labels
        From `segship.load`.
    records
        Everything in one image.
    options
        See `EverythingOptions`.
    """
    look = SemanticOptions(probability=labels.gives_logits)
    class_map = labels.segment(records.pixels, look, limits=options.limits)
    labelled = label_records(records, class_map, things=options.things)
    return replace(labelled, notes=tuple(dict.fromkeys((*records.notes, *class_map.notes))))


def cost_of_everything(predictor: Predictor, source: ImageSource, options: EverythingOptions) -> AmgCost:
    """Return what `find_everything` will cost for an image; the model is not run."""
    loaded = read_image(source, limits=options.limits, reduce=options.reduce)
    return estimate_cost(predictor, loaded.size_hw, options.amg)


@dataclass(frozen=True, slots=True)
class MapOptions:
    """What is wanted of an image.

    Attributes
    ----------
    look
        How the model looks at it.
    formats
        Of class maps, keys of `segship.writers.WRITERS`.
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
    files = write_result(result, directory, options.formats, overwrite=options.overwrite)
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
