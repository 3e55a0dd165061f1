# SPDX-License-Identifier: Apache-2.0
"""``*_gtFine_labelTrainIds.png`` for whole splits of Cityscapes, which programs for training and scoring ask for.

What cityscapesscripts/preparation/createTrainIdLabelImgs.py and mmsegmentation's tools/convert_datasets/cityscapes.py
do: one file beside each ``*_gtFine_polygons.json``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segship.datasets.folders import DATA_SETS, TRUTH_FILES, FailedSample, Sample, encode_label_image, read_truth
from segship.errors import InputError, way
from segship.files import write_file
from segship.machine import count_workers, in_order
from segship.options import check_types

Progress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""


@dataclass(frozen=True, slots=True)
class TrainIdsOptions:
    """What is converted.

    Attributes
    ----------
    splits
        Only these folders of gtFine; all that are there when left out.
    overwrite
        Write files anew that are there.
    workers
        Processes, 0 for none; one for each core, up to 8, if there is much to do, when left out.
    """

    splits: tuple[str, ...] = ()
    overwrite: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, slots=True)
class WrittenTrainIds:
    """How many files were written and how many were there already; samples with polygons and ids missing or damaged."""

    written: int
    kept: int
    failed: tuple[FailedSample, ...]


def write_train_ids(
    root: str | Path, options: TrainIdsOptions | None = None, *, progress: Progress | None = None
) -> WrittenTrainIds:
    """Write the train ids of Cityscapes beside its polygons, from the polygons, or from the ids where there are none.

    ``root`` holds ``gtFine``. A damaged file is listed in the answer and stops nothing.

    Raises
    ------
    InputError, OutputError
        ``missing_folder`` or ``no_samples``; when a file cannot be written.
    """
    options = options or TrainIdsOptions()
    root = Path(root)
    samples = [sample for split in _splits(root, options) for sample in _samples(root, split)]
    workers = count_workers(options.workers, len(samples))
    written = kept = 0
    failed = []
    answers = in_order(partial(_convert, overwrite=options.overwrite), samples, workers)
    for done, answer in enumerate(answers, 1):
        if isinstance(answer, FailedSample):
            failed.append(answer)
        elif answer:
            written += 1
        else:
            kept += 1
        if progress is not None:
            progress(done, len(samples))
    return WrittenTrainIds(written, kept, tuple(failed))


def _splits(root: Path, options: TrainIdsOptions) -> tuple[str, ...]:
    folder = root / "gtFine"
    splits = options.splits or tuple(sorted(path.name for path in folder.glob("*/")))
    if not splits:
        message = (
            f"there is no split in {folder}; {way('the root is', '--data names')} the folder that holds gtFine/SPLIT"
        )
        raise InputError(message, code="missing_folder")
    return splits


def _samples(root: Path, split: str) -> list[Sample]:
    """Return the samples of a split by their polygons, or by their ids where there are no polygons."""
    find = DATA_SETS["cityscapes"].find
    samples = {sample.name: sample for sample in find(root, split, "labelIds")}
    for sample in find(root, split, "polygons"):
        if sample.truth is not None or sample.name not in samples:
            samples[sample.name] = sample
    if not samples:
        raise InputError(f"the split {split!r} in {root} holds no polygons and no ids", code="no_samples")
    return list(samples.values())


def _convert(sample: Sample, *, overwrite: bool) -> bool | FailedSample:
    """Write one file, and return whether it was not there already."""
    try:
        if sample.truth is not None and not overwrite and os.path.exists(_target(sample.truth, sample)):
            return False
        labels = read_truth(sample)
        # A sample without a file was refused by the reader.
        assert sample.truth is not None
        write_file(_target(sample.truth, sample), encode_label_image(labels), overwrite=overwrite)
    except InputError as error:
        return FailedSample.of(sample.name, error)
    return True


def _target(truth: Path, sample: Sample) -> Path:
    return truth.with_name(sample.stem + TRUTH_FILES["labelTrainIds"])
