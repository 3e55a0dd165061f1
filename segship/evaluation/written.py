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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segship.datasets.class_table import IGNORED
from segship.datasets.folders import DATA_SETS, Sample
from segship.datasets.label_images import read_label_image
from segship.errors import InputError
from segship.files import read_bytes

Ids = Literal["train", "label"]
RawType = Literal["auto", "int64", "int32", "uint8", "float32"]
Size = tuple[int, int]

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

    Attributes
    ----------
    folder
        Where they lie.
    ids
        ``train``: numbers are classes, as models give them, 255 for none. ``label``: numbers are the data set's own,
        ids of Cityscapes or annotations of ADE20K.
    raw_type
        What .bin files hold; ``auto`` tells it from their length.
    """

    folder: Path
    ids: Ids = "train"
    raw_type: RawType = "auto"


@dataclass(frozen=True, slots=True)
class FoundMaps:
    """Which files belong to which samples.

    Attributes
    ----------
    files
        For each sample, in their order, its files; more than one is too many.
    strangers
        Files with a known suffix that belong to no sample.
    digest
        SHA-256 of names, sizes and times of the files, which tells whether a folder was changed.
    """

    files: tuple[tuple[Path, ...], ...]
    strangers: int
    digest: str


def find_written_maps(written: WrittenMaps, samples: Sequence[Sample]) -> FoundMaps:
    """Find the class maps of samples below a folder, by their stems.

    Raises
    ------
    InputError
        ``missing_folder``, ``ambiguous_stems`` when two samples have one stem, or ``no_predictions``.
    """
    if not written.folder.is_dir():
        raise InputError(f"there is no folder {written.folder}; --predictions names one", code="missing_folder")
    found: dict[str, list[Path]] = {sample.stem: [] for sample in samples}
    if len(found) < len(samples):
        message = f"{len(samples) - len(found)} samples share their stem with another, so files cannot be told apart"
        raise InputError(message, code="ambiguous_stems")
    strangers, digest = 0, hashlib.sha256()
    for parent, folders, names in os.walk(written.folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            stem = _stem_of(path, written.ids, found) if path.suffix in SUFFIXES else None
            if stem is None:
                strangers += path.suffix in SUFFIXES
                continue
            status = path.stat()
            digest.update(f"{path.relative_to(written.folder)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
            found[stem].append(path)
    if not any(found.values()):
        raise _nothing_found(written, samples, strangers)
    return FoundMaps(tuple(tuple(found[sample.stem]) for sample in samples), strangers, digest.hexdigest())


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
        f"are files such as {samples[0].stem}.png, {samples[0].stem}_0.bin or .npy, or with --ids {other} those whose "
        f"names tell {other} ids"
    )
    return InputError(message, code="no_predictions")


def read_written_map(
    files: Sequence[Path], sample: Sample, size_hw: Size, written: WrittenMaps, data_set: str
) -> NDArray[np.uint8]:
    """Read the class map of one sample.

    Parameters
    ----------
    files
        What was found for it.
    size_hw
        (height, width) of the truth, which the map must have.
    data_set
        Key of `segship.datasets.folders.DATA_SETS`.

    Returns
    -------
    ndarray
        (H, W) uint8: classes, 255 for none.

    Raises
    ------
    InputError
        ``missing_prediction``, ``several_predictions``, ``bad_prediction``, ``bad_label_image``.
    """
    if not files:
        raise InputError(f"{sample.name} has no class map in {written.folder}", code="missing_prediction")
    if len(files) > 1:
        names = ", ".join(path.name for path in files[:4])
        message = f"{sample.name} has {len(files)} class maps: {names}; leave one in {written.folder}"
        raise InputError(message, code="several_predictions")
    (path,) = files
    if path.suffix == ".png":
        values: NDArray[Any] = read_label_image(path)
    else:
        data = read_bytes(path.resolve(), limit=MAX_MAP_BYTES)
        values = _read_npy(path, data, size_hw) if path.suffix == ".npy" else _read_raw(path, data, size_hw, written)
    if values.shape != size_hw:
        raise _bad(
            path, f"is {_sides(values.shape)}, and its truth {_sides(size_hw)}; scale maps before they are scored"
        )
    return _to_classes(path, _to_bytes(path, values), written.ids, data_set)


def _read_npy(path: Path, data: bytes, size_hw: Size) -> NDArray[Any]:
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


def _read_raw(path: Path, data: bytes, size_hw: Size, written: WrittenMaps) -> NDArray[Any]:
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


def _to_bytes(path: Path, values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    # NaN fails both comparisons.
    if values.size and not (values.min() >= 0 and values.max() <= IGNORED):
        raise _bad(path, f"holds numbers from {values.min()} to {values.max()}; accepted are 0 to {IGNORED}")
    whole = values.astype(np.uint8)
    if values.dtype.kind == "f" and not np.array_equal(whole, values):
        raise _bad(path, "holds fractions; accepted are numbers of classes")
    return whole


def _to_classes(path: Path, values: NDArray[np.uint8], ids: Ids, data_set: str) -> NDArray[np.uint8]:
    numbering = DATA_SETS[data_set]
    largest = numbering.largest_label if ids == "label" else len(numbering.table.classes) - 1
    known = values[values != IGNORED]
    if known.size and known.max() > largest:
        other = "train" if ids == "label" else "label"
        raise _bad(
            path, f"holds {known.max()}; {ids} ids are 0 to {largest} and {IGNORED}, perhaps --ids {other} is meant"
        )
    return numbering.labels_to_classes(values) if ids == "label" else values


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _bad(path: Path, problem: str) -> InputError:
    return InputError(f"{path} {problem}", code="bad_prediction")
