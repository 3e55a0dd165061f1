# SPDX-License-Identifier: Apache-2.0
"""Where the predictions of an evaluation come from: a model that runs here, or files of another program.

Both give, sample by sample and in their order, the counts of a confusion matrix, or say why there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from segship.datasets.confusion import ConfusionMatrix
from segship.datasets.folders import DATA_SETS, FailedSample, Sample
from segship.datasets.truths import read_truth
from segship.errors import InputError
from segship.evaluation.written import FoundMaps, WrittenMaps, read_written_map
from segship.images import read_image
from segship.processes import in_order

Pixels = NDArray[np.uint8]
Segment = Callable[[Pixels], NDArray[np.uint8]]
"""(H, W, 3) uint8 RGB to a class map (H, W) uint8."""
SegmentBatch = Callable[[Sequence[Pixels]], Sequence[NDArray[np.uint8]]]
"""The same for several pictures of one size."""

Counts = NDArray[np.int64]
"""(K, K + 1) int64, see `segship.datasets.ConfusionMatrix`."""
Outcome = Counts | FailedSample
"""What became of a sample."""


class Source(Protocol):
    """Where predictions come from."""

    def score(self, samples: Sequence[Sample], first: int, data_set: str, workers: int) -> Generator[Outcome]:
        """Yield what became of each sample from ``first`` on, in their order."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that runs here.

    Attributes
    ----------
    segment
        See `Segment`.
    segment_batch
        See `SegmentBatch`; None if the model takes one picture at a time.
    batch
        Pictures that ``segment_batch`` gets at once, if they are of one size.
    """

    segment: Segment
    segment_batch: SegmentBatch | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise InputError(f"batch is {self.batch}; accepted are 1 and more", code="bad_option")
        if self.batch > 1 and self.segment_batch is None:
            message = f"batch is {self.batch}, and this model takes one picture at a time; leave it at 1"
            raise InputError(message, code="bad_option")

    def score(self, samples: Sequence[Sample], first: int, data_set: str, workers: int) -> Generator[Outcome]:
        """Read pictures and truths in worker processes, run the model in this one."""
        classes = len(DATA_SETS[data_set].table.classes)
        group: list[_Pair | FailedSample] = []
        with closing(in_order(_read_pair, samples[first:], workers)) as answers:
            for answer in answers:
                group.append(answer)
                if len(group) == self.batch:
                    yield from self._score_group(group, classes)
                    group = []
        yield from self._score_group(group, classes)

    def _score_group(self, group: Sequence[_Pair | FailedSample], classes: int) -> Iterator[Outcome]:
        pairs = [answer for answer in group if isinstance(answer, _Pair)]
        outcomes: dict[str, Outcome] = {}
        for size in dict.fromkeys(pair.pixels.shape for pair in pairs):
            alike = [pair for pair in pairs if pair.pixels.shape == size]
            for pair, prediction in zip(alike, self._predict(alike), strict=True):
                if isinstance(prediction, FailedSample):
                    outcomes[pair.name] = prediction
                else:
                    outcomes[pair.name] = _count(pair.name, prediction, pair.truth, classes)
        for answer in group:
            yield outcomes[answer.name] if isinstance(answer, _Pair) else answer

    def _predict(self, pairs: Sequence[_Pair]) -> list[NDArray[np.uint8] | FailedSample]:
        if self.segment_batch is not None and len(pairs) > 1:
            try:
                return list(self.segment_batch([pair.pixels for pair in pairs]))
            except InputError:
                # One of them is refused; which one shows when they come alone.
                pass
        return [self._predict_one(pair) for pair in pairs]

    def _predict_one(self, pair: _Pair) -> NDArray[np.uint8] | FailedSample:
        try:
            return self.segment(pair.pixels)
        except InputError as error:
            return FailedSample(pair.name, error.code, str(error))


@dataclass(frozen=True, slots=True)
class WrittenSource:
    """Class maps that another program wrote.

    Attributes
    ----------
    written
        The folder and what its files hold.
    found
        Which files belong to which samples.
    """

    written: WrittenMaps
    found: FoundMaps

    def score(self, samples: Sequence[Sample], first: int, data_set: str, workers: int) -> Generator[Outcome]:
        """Read and count in worker processes."""
        work = partial(_score_written, written=self.written, data_set=data_set)
        yield from in_order(work, list(zip(samples, self.found.files, strict=True))[first:], workers)


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    name: str
    pixels: Pixels
    truth: NDArray[np.uint8]


def _read_pair(sample: Sample) -> _Pair | FailedSample:
    try:
        if sample.image is None:
            message = f"{sample.name} has a truth and no picture; copy its picture into the data set"
            raise InputError(message, code="missing_image")
        truth = read_truth(sample)
        try:
            pixels = read_image(sample.image).pixels
        except InputError as error:
            raise InputError(f"{sample.image}: {error}", code=error.code) from error
        if pixels.shape[:2] != truth.shape:
            message = f"{sample.image} is {pixels.shape[:2]} pixels high and wide, and its truth {truth.shape}"
            raise InputError(message, code="sizes_differ")
    except InputError as error:
        return FailedSample(sample.name, error.code, str(error))
    return _Pair(sample.name, pixels, truth)


def _score_written(item: tuple[Sample, Sequence[Path]], written: WrittenMaps, data_set: str) -> Outcome:
    sample, files = item
    try:
        truth = read_truth(sample)
        size_hw = (truth.shape[0], truth.shape[1])
        prediction = read_written_map(files, sample, size_hw, written, data_set)
    except InputError as error:
        return FailedSample(sample.name, error.code, str(error))
    return _count(sample.name, prediction, truth, len(DATA_SETS[data_set].table.classes))


def _count(name: str, prediction: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> Outcome:
    matrix = ConfusionMatrix(classes)
    try:
        matrix.add(prediction, truth)
    except InputError as error:
        return FailedSample(name, error.code, f"{name}: {error}")
    return matrix.counts
