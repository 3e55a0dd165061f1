# SPDX-License-Identifier: Apache-2.0
"""One image from its source to the files of everything in it: what ``segship everything`` does for each image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segship.amg import AmgCost, AmgOptions, AmgResult, Progress, estimate_cost, generate
from segship.images import ImageLimits, ImageSource, read_image
from segship.predictor import Predictor
from segship.records import ImageRecords
from segship.segmenting import Stopwatch
from segship.writers import write_result
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
    """

    amg: AmgOptions = field(default_factory=AmgOptions)
    formats: tuple[str, ...] = ("overlay", "sa1b")
    overwrite: bool = False
    limits: ImageLimits = field(default_factory=ImageLimits)
    reduce: int = 1


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
        Time of each stage: read, generate, write.
    """

    name: str
    result: AmgResult
    files: tuple[Path, ...]
    milliseconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the masks, which stand in the files, for `json.dumps`."""
        height, width = self.result.size
        return {
            "image": {"file_name": safe_file_name(self.name), "width": width, "height": height},
            "masks": len(self.result.records),
            "coverage": round(self.result.coverage, 6),
            "points": self.result.points,
            "cost": self.result.cost.to_dict(),
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
    records = ImageRecords(stem, name, loaded.pixels, result.records, notes=result.notes)
    files = write_result(records, directory, options.formats, overwrite=options.overwrite)
    watch.lap("write")
    return EverythingImage(name, result, tuple(files), watch.milliseconds)


def cost_of_everything(predictor: Predictor, source: ImageSource, options: EverythingOptions) -> AmgCost:
    """Return what `find_everything` will cost for an image; the model is not run."""
    loaded = read_image(source, limits=options.limits, reduce=options.reduce)
    return estimate_cost(predictor, loaded.size_hw, options.amg)
