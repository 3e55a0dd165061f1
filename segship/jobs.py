# SPDX-License-Identifier: Apache-2.0
"""One image from its source to its files: what ``segment``, ``everything`` and ``semantic`` do with each image.

`run_job` reads, answers and writes. Each step can be called alone: `read` and the ``answer_...`` functions need no
folder, and `write` and `segship.writers.encode_result` need no model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from segship.images import Depth, ImageLimits, ImageSource, LoadedImage, read_image
from segship.options import check_types
from segship.promptable.everything.crops import Progress
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.records import ImageRecords
from segship.promptable.everything.search import AmgResult, generate_loaded
from segship.promptable.prediction import MaskChoice
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import Prompts
from segship.semantic.predictor import SemanticPredictor
from segship.semantic.views import SemanticOptions
from segship.writers import (
    ClassMapResult,
    Instances,
    MergedWriter,
    Outlines,
    Result,
    class_map_document,
    prediction_document,
    write_result,
)
from segship.writers.instances import check_reduced, count_labels, label_records
from segship.writers.names import safe_file_name

Options = TypeVar("Options", bound="JobOptions")
Answer = TypeVar("Answer", "Result", "Everything", "ClassMapResult")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """What every job is told besides what it looks for.

    Attributes
    ----------
    formats
        Output formats, keys of `segship.writers.WRITERS` of the kind that is answered: masks or class maps.
    overwrite
        Replace files that are there.
    limits
        Bounds that an image must keep.
    depth
        How 16-bit and float pictures become 8-bit: all of the type's range, their own values, or nearly all of them.
    outlines
        How formats of masks that have outlines write them.
    """

    formats: tuple[str, ...]
    overwrite: bool = False
    limits: ImageLimits = field(default_factory=ImageLimits)
    depth: Depth = "type-range"
    outlines: Outlines = field(default_factory=Outlines)

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentOptions(JobOptions):
    """Options of `answer_prompts`.

    Attributes
    ----------
    multimask_output
        Which masks come out; see `segship.promptable.prediction.MaskChoice`.
    clip
        Move points outside the image to its edge instead of refusing them.
    edges
        Let the picture decide the masks' borders; as the model's manifest says when left out: tiny does, others do not.
    """

    multimask_output: MaskChoice = "auto"
    clip: bool = False
    edges: bool | None = None
    formats: tuple[str, ...] = ("overlay", "png")


@dataclass(frozen=True, slots=True, kw_only=True)
class EverythingOptions(JobOptions):
    """Options of `answer_everything`.

    Attributes
    ----------
    amg
        What to look for, and how.
    reduce
        2, 4 or 8 reads images at that part of their size, and masks are of that size; not for coco, labelme and
        panoptic, which name the whole file.
    things
        With labels: the classes that can be counted; those of the data set when left out.
    """

    amg: AmgOptions = field(default_factory=AmgOptions)
    reduce: int = 1
    things: tuple[str, ...] | None = None
    formats: tuple[str, ...] = ("overlay", "sa1b")

    def __post_init__(self) -> None:
        JobOptions.__post_init__(self)
        check_reduced(self.formats, () if self.reduce == 1 else (f"reduced_{self.reduce}",))


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOptions(JobOptions):
    """Options of `answer_classes`.

    Attributes
    ----------
    semantic
        Windows, ratios and mirrors.
    """

    semantic: SemanticOptions = field(default_factory=SemanticOptions)
    formats: tuple[str, ...] = ("overlay", "classes")


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


@dataclass(frozen=True, slots=True, eq=False)
class JobImage:
    """An image on its way through a job: upright pixels, and a watch that times the stages.

    The names of its files begin with ``stem`` (`segship.writers.names.output_stems` makes safe ones); documents call it
    ``name``.
    """

    loaded: LoadedImage
    stem: str = "image"
    name: str = "image"
    watch: Stopwatch = field(default_factory=Stopwatch)


@dataclass(frozen=True, slots=True, eq=False)
class Everything:
    """Everything in one image: masks, coverage and cost, and what writers take.

    That is the records or, if a semantic model was given, the masks with their classes.
    """

    result: AmgResult
    source: ImageRecords | Instances

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the masks, which stand in the files, for `json.dumps`."""
        height, width = self.result.size
        return {
            "image": {"file_name": safe_file_name(self.source.name), "width": width, "height": height},
            "masks": len(self.result.records),
            "coverage": round(self.result.coverage, 6),
            "points": self.result.points,
            "cost": self.result.cost.to_dict(),
            "removed": dict(self.result.removed),
            **({"labels": count_labels(self.source)} if isinstance(self.source, Instances) else {}),
            "notes": list(self.result.notes),
        }


def read(source: ImageSource, options: JobOptions, *, stem: str = "image", name: str = "image") -> JobImage:
    """Read an image within the limits of the options; errors are those of `segship.images.read_image`."""
    watch = Stopwatch()
    reduce = options.reduce if isinstance(options, EverythingOptions) else 1
    loaded = read_image(source, limits=options.limits, reduce=reduce, depth=options.depth)
    watch.lap("read")
    return JobImage(loaded, stem, name, watch)


def answer_prompts(
    predictor: Predictor, prompts: Prompts | Sequence[Prompts], image: JobImage, options: SegmentOptions
) -> Result:
    """Return the masks of prompts in the image frame; errors are those of `encode_loaded` and `decode`."""
    embedding = predictor.encode_loaded(image.loaded)
    image.watch.lap("encode")
    prediction = predictor.decode(
        embedding,
        prompts,
        multimask_output=options.multimask_output,
        edges=options.edges,
        outside="clip" if options.clip else "error",
    )
    image.watch.lap("decode")
    loaded = image.loaded
    return Result(image.stem, image.name, loaded.pixels, prediction, prediction.objects, notes=loaded.notes)


def answer_everything(
    predictor: Predictor,
    labels: SemanticPredictor | None,
    image: JobImage,
    options: EverythingOptions,
    *,
    progress: Progress | None = None,
) -> Everything:
    """Return everything in an image.

    With ``labels``, a semantic model, its class map gives every mask a class, see `segship.semantic.labels`; votes are
    worth their probability where it gives logits. Errors are those of `segship.generate_masks` and `segment`.
    """
    pixels = image.loaded.pixels
    result = generate_loaded(predictor, image.loaded, options.amg, progress=progress)
    records = ImageRecords(image.stem, image.name, pixels, result.records, notes=result.notes)
    image.watch.lap("generate")
    if labels is None:
        return Everything(result, records)
    semantic = SemanticOptions(probability=labels.gives_logits)
    class_map = labels.segment(pixels, semantic, limits=options.limits)
    notes = tuple(dict.fromkeys((*result.notes, *class_map.notes)))
    labelled = replace(label_records(records, class_map, things=options.things), notes=notes)
    image.watch.lap("label")
    return Everything(replace(result, notes=notes), labelled)


def answer_classes(predictor: SemanticPredictor, image: JobImage, options: MapOptions) -> ClassMapResult:
    """Return the class map of an image; errors are those of `SemanticPredictor.segment`."""
    class_map = predictor.segment(image.loaded, options.semantic, limits=options.limits)
    image.watch.lap("segment")
    semantic = options.semantic
    made_by = {
        "architecture": predictor.manifest.architecture,
        "backend": predictor.backend,
        "precision": predictor.precision,
        "runs_on": predictor.description,
        "window": None if semantic.window is None else list(semantic.window),
        "stride": None if semantic.window is None else list(semantic.steps),
        "ratios": list(semantic.ratios),
        "flip": semantic.flip,
    }
    return ClassMapResult(image.stem, image.name, image.loaded.pixels, class_map, made_by)


def write(
    answer: Result | Everything | ClassMapResult,
    directory: Path,
    options: JobOptions,
    *,
    merged: MergedWriter | None = None,
) -> tuple[Path, ...]:
    """Write an answer in the formats of the options, all or nothing, into a directory that is made if need be.

    With ``merged`` its masks go into data sets too. Errors are those of `segship.files.make_directory`,
    `segship.writers.write_result` and `segship.writers.MergedWriter.add`.
    """
    source = answer.source if isinstance(answer, Everything) else answer
    files = write_result(source, directory, options.formats, overwrite=options.overwrite, outlines=options.outlines)
    if merged is not None and not isinstance(source, ClassMapResult):
        merged.add(source)
    return tuple(files)


@dataclass(frozen=True, slots=True, eq=False)
class FinishedImage(Generic[Answer]):
    """One image that was answered and, if the job had a directory, written.

    ``milliseconds`` has the time of each stage, such as read, encode, decode, write.
    """

    answer: Answer
    files: tuple[Path, ...]
    milliseconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pixels for `json.dumps`."""
        return {
            **describe(self.answer),
            "files": [str(path) for path in self.files],
            "milliseconds": {stage: round(value, 1) for stage, value in self.milliseconds.items()},
        }


def run_job(
    answer: Callable[[JobImage, Options], Answer],
    source: ImageSource,
    options: Options,
    directory: Path | None = None,
    *,
    stem: str = "image",
    name: str = "image",
    merged: MergedWriter | None = None,
) -> FinishedImage[Answer]:
    """Read one image, answer, and write into a directory, made if need be; without one nothing is written.

    ``answer`` is one of the ``answer_...`` functions with what it takes before the image; ``stem`` and ``name`` are as
    in `JobImage`, ``merged`` as in `write`.

    Raises
    ------
    ImageError, PromptError, InputError, OutputError
        When the image, the prompts, the options or the place cannot be used; nothing is written then.
    """
    image = read(source, options, stem=stem, name=name)
    found = answer(image, options)
    files = () if directory is None else write(found, directory, options, merged=merged)
    if files or merged is not None:
        image.watch.lap("write")
    return FinishedImage(found, files, image.watch.milliseconds)


def describe(answer: Result | Everything | ClassMapResult) -> dict[str, Any]:
    """Return a JSON document of an answer, without pixels."""
    if isinstance(answer, Everything):
        return answer.to_dict()
    return class_map_document(answer) if isinstance(answer, ClassMapResult) else prediction_document(answer)
