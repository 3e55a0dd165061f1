# SPDX-License-Identifier: Apache-2.0
"""One image from its source to the files of everything in it: what ``segship everything`` does for each image.

With a semantic model beside the promptable one, every mask gets a class.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segship.amg import AmgCost, AmgOptions, AmgResult, Progress, estimate_cost, generate
from segship.images import ImageLimits, ImageSource, read_image
from segship.predictor import Predictor
from segship.records import ImageRecords
from segship.segmenting import Stopwatch
from segship.semantic.inference import SemanticOptions
from segship.semantic.labelling import count_labels, label_records
from segship.semantic.predictor import SemanticPredictor
from segship.writers import Instances, write_result
from segship.writers.names import safe_file_name


@dataclass(frozen=True, slots=True)
class EverythingOptions:
    """What is wanted of an image.

    Attributes
    ----------
    amg
        What to look for, and how.
    formats
        Keys of `segship.writers.WRITERS`.
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
        See `segship.amg.Progress`.
    labels
        A semantic model whose class map gives every mask a class, see `segship.semantic.voting`.

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

    Votes are worth their probability where the model gives logits, see `segship.semantic.voting`.

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
