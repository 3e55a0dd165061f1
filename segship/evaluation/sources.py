# SPDX-License-Identifier: Apache-2.0
"""Class maps that another program wrote: found by the stem of their picture, read as PNG, .npy or raw .bin.

Offline inference tools write each output of a graph as raw numbers behind one another, in a file that is named like the
input with the output's number, such as ``frankfurt_000000_000294_leftImg8bit_0.bin``. Such a file says neither its
shape nor its type; both follow from its length and the size of the truth.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from segship.arrays import AnyArray, IntArray, Pixels, Size
from segship.datasets.classes import IGNORED
from segship.datasets.folders import DATA_SETS, FailedSample, Sample, read_label_image, read_truth
from segship.errors import InputError, way
from segship.evaluation.report import ConfusionMatrix
from segship.files import read_bytes, real_path
from segship.images import read_image
from segship.machine import in_order

Ids = Literal["train", "label"]
RawType = Literal["auto", "int64", "int32", "uint8", "float32"]

_IDS = way("ids=", "--ids ")
SUFFIXES = (".png", ".npy", ".bin")
MAX_MAP_BYTES = 512 * 2**20

# What programs put between the stem and the suffix.
_TAIL = (
    r"(?:_leftImg8bit)?(?:_gtFine)?(?:_pred(?:iction)?)?"
    r"(?:[_.](?P<kind>labelTrainIds|trainIds|train_ids|classes|class_map|labelIds|label_ids|ids))?(?:_0)?"
)
_NAME = re.compile(rf"(?P<stem>.+?){_TAIL}")
_LABEL_KINDS = ("labelids", "label_ids", "ids")
_COPY = "write it again"


@dataclass(frozen=True, slots=True)
class WrittenMaps:
    """The class maps in a folder.

    With ``ids`` ``train`` their numbers are classes, as models give them, 255 for none; with ``label`` the data set's
    own: ids of Cityscapes or annotations of ADE20K. ``raw_type`` is what .bin files hold; ``auto`` tells it from their
    length.
    """

    folder: Path
    ids: Ids = "train"
    raw_type: RawType = "auto"


@dataclass(frozen=True, slots=True)
class FoundMaps:
    """Which files belong to which samples, in their order; more than one for a sample is too many.

    ``strangers`` counts files with a known suffix that belong to no sample, or lie below another split's folder. The
    digest, SHA-256 of names, sizes and times of the files, tells whether a folder was changed.
    """

    files: tuple[tuple[Path, ...], ...]
    strangers: int
    digest: str


def find_written_maps(written: WrittenMaps, samples: Sequence[Sample]) -> FoundMaps:
    """Find the class maps of samples below a folder, by their stems.

    Names may repeat from split to split, so files below a folder that is named like another split of the data set are
    passed over. Refuses ``missing_folder``, ``ambiguous_stems`` when two samples have one stem, and ``no_predictions``.
    """
    if not os.path.isdir(written.folder):
        raise InputError(
            f"there is no folder {written.folder}; {way('predictions', '--predictions')} names one",
            code="missing_folder",
        )
    found: dict[str, list[Path]] = {sample.stem: [] for sample in samples}
    if len(found) < len(samples):
        message = f"{len(samples) - len(found)} samples share their stem with another, so files cannot be told apart"
        raise InputError(message, code="ambiguous_stems")
    strangers, digest, other_splits = 0, hashlib.sha256(), _other_splits(samples)
    for parent, folders, names in os.walk(written.folder, followlinks=True):
        folders.sort()
        is_of_another = not other_splits.isdisjoint(Path(parent).relative_to(written.folder).parts)
        for name in sorted(names):
            path = Path(parent) / name
            is_map = path.suffix in SUFFIXES and not is_of_another
            stem = _stem_of(path, written.ids, found) if is_map else None
            if stem is None:
                strangers += path.suffix in SUFFIXES
                continue
            status = path.stat()
            digest.update(f"{path.relative_to(written.folder)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
            found[stem].append(path)
    if not any(found.values()):
        raise _nothing_found(written, samples, strangers)
    return FoundMaps(tuple(tuple(found[sample.stem]) for sample in samples), strangers, digest.hexdigest())


def _other_splits(samples: Sequence[Sample]) -> set[str]:
    """Return the names of the folders beside the one that holds the split."""
    files = {(path, sample.name.count("/")) for sample in samples for path in (sample.image, sample.truth) if path}
    splits = {path.parents[depth] for path, depth in files}
    beside = {
        other.name for split in {split.parent for split in splits} for other in split.iterdir() if os.path.isdir(other)
    }
    return beside - {split.name for split in splits}


def _stem_of(path: Path, ids: Ids, known: dict[str, list[Path]]) -> str | None:
    """Return the stem of the sample that a file belongs to; None if there is none, or its name tells other numbers."""
    if path.stem in known:
        return path.stem
    match = _NAME.fullmatch(path.stem)
    assert match is not None
    kind = match["kind"]
    if kind is not None and (kind.lower() in _LABEL_KINDS) != (ids == "label"):
        return None
    return match["stem"] if match["stem"] in known else None


def _nothing_found(written: WrittenMaps, samples: Sequence[Sample], strangers: int) -> InputError:
    other = "label" if written.ids == "train" else "train"
    message = (
        f"{written.folder} holds no class map of the {len(samples)} samples ({strangers} files of other names); wanted "
        f"are files such as {samples[0].stem}.png, {samples[0].stem}_0.bin or .npy, or with {_IDS}{other} those whose "
        f"names tell {other} ids"
    )
    return InputError(message, code="no_predictions")


def read_written_map(
    files: Sequence[Path], sample: Sample, size_hw: Size, written: WrittenMaps, data_set: str
) -> Pixels:
    """Return the class map (H, W) uint8 of one sample, of its truth's size, from the files that were found for it.

    Refuses ``missing_prediction``, ``several_predictions``, ``bad_prediction`` and ``bad_label_image``.
    """
    if not files:
        message = f"{sample.name} has no class map in {written.folder}; wanted is a file such as {sample.stem}.png"
        raise InputError(message, code="missing_prediction")
    if len(files) > 1:
        names = ", ".join(map(str, files[:4]))
        message = f"{sample.name} has {len(files)} class maps: {names}; leave one of them"
        raise InputError(message, code="several_predictions")
    (path,) = files
    if path.suffix == ".png":
        values: AnyArray = read_label_image(path)
    else:
        data = read_bytes(real_path(path), limit=MAX_MAP_BYTES)
        values = _read_npy(path, data, size_hw) if path.suffix == ".npy" else _read_raw(path, data, size_hw, written)
    if values.shape != size_hw:
        raise _bad(
            path, f"is {_sides(values.shape)}, and its truth {_sides(size_hw)}; scale maps before they are scored"
        )
    return _to_classes(path, _to_bytes(path, values), written.ids, data_set)


def _read_npy(path: Path, data: bytes, size_hw: Size) -> AnyArray:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        sides = tuple(side for side in shape if side != 1) if len(shape) > 2 else shape
        if dtype.hasobject or dtype.kind not in "uifb":
            raise _bad(path, f"holds {dtype}; accepted are whole numbers")
        # The header alone must not make numpy ask for memory.
        if shape != size_hw and sides != size_hw:
            kind = "; for logits, write the number of the largest one" if len(sides) == 3 else ""
            raise _bad(path, f"has the shape {shape}, and its truth {size_hw}{kind}")
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False)).reshape(size_hw)
    except (ValueError, EOFError, OSError) as error:
        raise _bad(path, f"is damaged or no .npy file; {_COPY}") from error


def _read_raw(path: Path, data: bytes, size_hw: Size, written: WrittenMaps) -> AnyArray:
    height, width = size_hw
    pixels = height * width
    by_length = {"int64": 8, "int32": 4, "uint8": 1, "float32": 4}
    if written.raw_type != "auto":
        length = by_length[written.raw_type]
        if len(data) != pixels * length:
            raise _bad(path, _lengths(data, size_hw, {written.raw_type: length}))
        return np.frombuffer(data, f"<{np.dtype(written.raw_type).str[1:]}").reshape(size_hw)
    if len(data) not in {pixels * length for length in by_length.values()}:
        raise _bad(path, _lengths(data, size_hw, by_length))
    if len(data) == pixels * 4:
        # No whole number from 1 to 255 is, as the bits of the other type, again such a number, so content decides.
        whole = np.frombuffer(data, "<i4").reshape(size_hw)
        return whole if whole.min() >= 0 and whole.max() <= IGNORED else np.frombuffer(data, "<f4").reshape(size_hw)
    return np.frombuffer(data, "<i8" if len(data) == pixels * 8 else "u1").reshape(size_hw)


def _lengths(data: bytes, size_hw: Size, types: dict[str, int]) -> str:
    pixels = size_hw[0] * size_hw[1]
    wanted = ", ".join(f"{pixels * length:,} as {name}" for name, length in types.items())
    whole = f" ({len(data) / pixels:g} bytes a pixel)" if len(data) % pixels == 0 else ""
    return (
        f"has {len(data):,} bytes{whole}, and a map of {_sides(size_hw)} has {wanted}; "
        "logits and batches are not taken apart here"
    )


def _to_bytes(path: Path, values: AnyArray) -> Pixels:
    if values.dtype == np.uint8:
        return values
    # NaN fails both comparisons.
    if values.size and not (values.min() >= 0 and values.max() <= IGNORED):
        raise _bad(path, f"holds numbers from {values.min()} to {values.max()}; accepted are 0 to {IGNORED}")
    whole = values.astype(np.uint8)
    if values.dtype.kind == "f" and not np.array_equal(whole, values):
        raise _bad(path, "holds fractions; accepted are numbers of classes")
    return whole


def _to_classes(path: Path, values: Pixels, ids: Ids, data_set: str) -> Pixels:
    numbering = DATA_SETS[data_set]
    largest = numbering.largest_label if ids == "label" else len(numbering.table.classes) - 1
    known = values[values != IGNORED]
    if known.size and known.max() > largest:
        other = "train" if ids == "label" else "label"
        raise _bad(
            path,
            f"holds {known.max()}; {ids} ids are 0 to {largest} and {IGNORED}, perhaps {_IDS}{other} is meant",
        )
    return numbering.labels_to_classes(values) if ids == "label" else values


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _bad(path: Path, problem: str) -> InputError:
    return InputError(f"{path} {problem}", code="bad_prediction")


Segment = Callable[[Pixels], Pixels]
"""(H, W, 3) uint8 RGB to a class map (H, W) uint8."""
SegmentBatch = Callable[[Sequence[Pixels]], Sequence[Pixels]]
"""The same for several pictures of one size."""

Counts = IntArray
"""(K, K + 1) int64, see `segship.evaluation.report.ConfusionMatrix`."""
Outcome = Counts | FailedSample
"""What became of a sample."""


class Source(Protocol):
    """Where predictions come from."""

    def score(self, samples: Sequence[Sample], first: int, data_set: str, workers: int) -> Generator[Outcome]:
        """Yield what became of each sample from ``first`` on, in their order."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that runs here.

    ``segment_batch`` gets so many pictures of one size at once; it is None if the model takes one picture at a time.
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

    def _predict(self, pairs: Sequence[_Pair]) -> list[Pixels | FailedSample]:
        if self.segment_batch is not None and len(pairs) > 1:
            try:
                return list(self.segment_batch([pair.pixels for pair in pairs]))
            except InputError:
                # One of them is refused; which one shows when they come alone.
                pass
        return [self._predict_one(pair) for pair in pairs]

    def _predict_one(self, pair: _Pair) -> Pixels | FailedSample:
        try:
            return self.segment(pair.pixels)
        except InputError as error:
            return FailedSample.of(pair.name, error)


@dataclass(frozen=True, slots=True)
class WrittenSource:
    """Class maps that another program wrote: the folder, and which of its files belong to which samples."""

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
    truth: Pixels


def _read_pair(sample: Sample) -> _Pair | FailedSample:
    try:
        if sample.image is None:
            message = f"{sample.name} has a truth and no picture; copy its picture into the data set"
            raise InputError(message, code="missing_image")
        truth = read_truth(sample)
        try:
            pixels = read_image(sample.image).pixels
        except InputError as error:
            message = f"{sample.image}: {way(str(error), error.on_command_line)}"
            raise InputError(message, code=error.code) from error
        if pixels.shape[:2] != truth.shape:
            message = f"{sample.image} is {pixels.shape[:2]} pixels high and wide, and its truth {truth.shape}"
            raise InputError(message, code="sizes_differ")
    except InputError as error:
        return FailedSample.of(sample.name, error)
    return _Pair(sample.name, pixels, truth)


def _score_written(item: tuple[Sample, Sequence[Path]], written: WrittenMaps, data_set: str) -> Outcome:
    sample, files = item
    try:
        truth = read_truth(sample)
        size_hw = (truth.shape[0], truth.shape[1])
        prediction = read_written_map(files, sample, size_hw, written, data_set)
    except InputError as error:
        return FailedSample.of(sample.name, error)
    return _count(sample.name, prediction, truth, len(DATA_SETS[data_set].table.classes))


def _count(name: str, prediction: Pixels, truth: Pixels, classes: int) -> Outcome:
    matrix = ConfusionMatrix(classes)
    try:
        matrix.add(prediction, truth)
    except InputError as error:
        return FailedSample(name, error.code, f"{name}: {error}")
    return matrix.counts
