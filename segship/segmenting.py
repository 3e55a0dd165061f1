# SPDX-License-Identifier: Apache-2.0
"""One image from its source to its files, timed: what ``segship segment`` does for each of its images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segship.images import ImageLimits, ImageSource, read_image
from segship.prediction import MaskChoice, MaskPrediction
from segship.predictor import Predictor
from segship.prompts import Prompts
from segship.writers import Result, prediction_document, write_result


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """What is wanted of an image.

    Attributes
    ----------
    multimask_output
        Which masks come out; see `segship.prediction.MaskChoice`.
    clip
        Move points outside the image to its edge instead of refusing them.
    formats
        Keys of `segship.writers.WRITERS`.
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
        assert isinstance(self.result.prediction, MaskPrediction)
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
    embedding = predictor.encode(loaded, limits=options.limits)
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
