# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint file to arrays of weights, with numpy alone.

`survey` has checked the file by then, and every tensor is a view of a storage that it found: no pickle meets an
unpickler, and nothing but our own reader decides where a tensor lies.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segship.arrays import AnyArray
from segship.catalog import KnownCheckpoint
from segship.errors import CheckpointError, shown
from segship.files import open_regular
from segship.ship.checkpoints.archive import StoredTensor
from segship.ship.checkpoints.survey import Labels, Survey, stamp_of, survey_checkpoint

_SHOWN = 10
# Smaller files are read whole; larger ones are mapped, so that the system can drop pages it does not need.
_MAPPED_BYTES = 128 << 20
# Kinds of numbers that numpy does not have, as the bits that it reads instead.
_BITS = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def listed(kind: str, names: Sequence[str]) -> str:
    """Return how many names there are, what they are, and the first ten of them."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {kind}: {', '.join(map(shown, names[:_SHOWN]))}{more}"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A weight file that was read; what is not told here is as in `Survey`.

    Attributes
    ----------
    state_dict
        Its tensors by name: weights in float32, integer buffers as they are; contiguous and writable. In a large file
        those that need no conversion are the mapped file itself, of which writing changes this process's copy alone.
    stored_dtypes
        The dtypes that the tensors have in the file, sorted.
    notes
        A sentence for everything that was taken off, left out or converted.
    unusable
        Of tensors that cannot become weights, such as quantised or sparse ones: name and kind.
    """

    path: Path
    sha256: str
    bytes: int
    known: KnownCheckpoint | None
    state_dict: dict[str, AnyArray]
    stored_dtypes: tuple[str, ...]
    notes: tuple[str, ...]
    labels: Labels | None = None
    unusable: Mapping[str, str] = field(default_factory=dict)

    @property
    def half_weights(self) -> bool:
        """Whether the file holds weights in half precision."""
        return "float16" in self.stored_dtypes


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a ``.pth``, ``.pt``, ``.safetensors`` or ``.ckpt`` checkpoint.

    Raises
    ------
    UnsafeCheckpoint
        When the file asks for code to be run; the message names what it asks for. Nothing of it was run.
    CheckpointError
        When it is damaged, crafted, of another format, holds no state dict, or holds weights that are not finite.
    """
    survey = survey_checkpoint(path)
    data = _open(survey)
    stored = {name: info for name, info in survey.tensors.items() if isinstance(info, StoredTensor)}
    state = {name: _array(data, survey, info) for name, info in stored.items()}
    if stamp_of(survey.path) != survey.stamp:
        raise _changed(survey)
    _require_finite(survey.path, state)
    _let_go(data)
    notes = list(survey.notes)
    converted = Counter(info.dtype for info in stored.values() if _is_float(info) and info.dtype != "float32")
    notes.extend(f"{count} tensors converted from {dtype} to float32" for dtype, count in sorted(converted.items()))
    unusable = {name: info.dtype for name, info in survey.tensors.items() if name not in stored}
    if unusable:
        kinds = [f"{name} ({kind})" for name, kind in unusable.items()]
        notes.append(listed("tensors cannot become weights and were left out", kinds))
    dtypes = tuple(sorted({info.dtype for info in survey.tensors.values()}))
    return Checkpoint(
        survey.path, survey.sha256, survey.bytes, survey.known, state, dtypes, tuple(notes), survey.labels, unusable
    )


def _changed(survey: Survey) -> CheckpointError:
    message = f"{survey.path} was changed while it was read; wait until it is written and read it again"
    return CheckpointError(message, code="file_changed")


def _open(survey: Survey) -> mmap.mmap | bytearray:
    """Return the bytes of the file, which may be written to without changing it."""
    with open_regular(survey.path) as stream:
        if stamp_of(stream.fileno()) != survey.stamp:
            raise _changed(survey)
        if survey.bytes > _MAPPED_BYTES:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        data = bytearray(survey.bytes)
        stream.readinto(data)  # type: ignore[attr-defined]
        return data


def _is_float(info: StoredTensor) -> bool:
    return "float" in info.dtype


def _array(data: mmap.mmap | bytearray, survey: Survey, info: StoredTensor) -> AnyArray:
    """Return a tensor, weights in float32: a view of the file's bytes where nothing of them must change."""
    array = _view(data, survey, info)
    if info.dtype == "bfloat16":
        # The upper half of a float32.
        wide = array.astype(np.uint32)
        wide <<= 16
        array = wide.view(np.float32)
    elif info.dtype in _BITS:
        array = _float8_values(info.dtype)[array]
    # torch.save aligns storages and other writers need not. A number past float32 becomes infinite and is refused.
    with np.errstate(over="ignore"):
        array = np.require(array, np.float32 if _is_float(info) else None, ("C", "ALIGNED", "WRITEABLE"))
    if not isinstance(array.base, mmap.mmap):
        _let_go(data)
    return array


def _let_go(data: mmap.mmap | bytearray) -> None:
    """Give back the pages of a mapped file, to which nothing was written yet; those that are used again come again."""
    if isinstance(data, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)


def _view(data: mmap.mmap | bytearray, survey: Survey, info: StoredTensor) -> AnyArray:
    dtype = np.dtype(_BITS.get(info.dtype, info.dtype))
    if info.elements:
        start, _, *more = survey.storages[info.storage]
        strides = tuple(stride * dtype.itemsize for stride in info.strides)
        if more:
            data, start = _joined(data, survey.storages[info.storage]), 0
        return np.ndarray(info.shape, dtype, data, start + info.offset * dtype.itemsize, strides)
    try:
        return np.empty(info.shape, dtype)
    except ValueError as error:
        message = f"{survey.path}: a tensor of shape {info.shape} is empty and past any memory; the file is crafted"
        raise CheckpointError(message, code="bad_tensor_layout") from error


def _joined(data: mmap.mmap | bytearray, places: Sequence[int]) -> bytearray:
    """Return the bytes of a storage that lies in pieces."""
    starts, sizes = places[::2], places[1::2]
    return bytearray().join(data[start : start + size] for start, size in zip(starts, sizes, strict=True))


def _float8_values(dtype: str) -> AnyArray:
    """Return (256,) float32: what each byte stands for, after Micikevicius et al. (arXiv:2209.05433)."""
    bits = np.arange(256, dtype=np.uint16)
    if dtype == "float8_e5m2":
        # The upper half of a float16.
        return (bits << 8).view(np.float16).astype(np.float32)
    # Exponent and mantissa at the places of float16's, whose bias is larger by 8; the last number is no number.
    values = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).view(np.float16).astype(np.float32) * 2.0**8
    values[bits & 0x7F == 0x7F] = np.nan
    return values


def _require_finite(path: Path, state: Mapping[str, AnyArray]) -> None:
    bad = [name for name, array in state.items() if not _is_finite(array)]
    if bad:
        message = (
            f"{path}: {listed('tensors hold values that are not finite (NaN or infinity)', bad)}; the training went "
            "wrong or the file is damaged, give another checkpoint"
        )
        raise CheckpointError(message, code="non_finite_weights")


def _is_finite(array: AnyArray) -> bool:
    if array.dtype.kind != "f" or array.size == 0:
        return True
    # Lowest and highest value need no second array of that size; a NaN becomes both.
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(array.min()) and np.isfinite(array.max()))
