# SPDX-License-Identifier: Apache-2.0
"""The header of a safetensors file, checked before any other reader sees it.

The format allows headers of 100 MB; one of 8 MiB is already a hundred times what these models need. Beyond that the
rules are the format's own: tensors follow each other without holes or overlaps and end with the file.
"""

from __future__ import annotations

import json
from typing import BinaryIO, NoReturn

from segship.checkpoints.tensor_info import MAX_RANK, TensorInfo
from segship.errors import CheckpointError

MAX_HEADER_BYTES = 8 << 20
_LENGTH_BYTES = 8
_MAX_SIZE = 1 << 48

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_safetensors_header(stream: BinaryIO, size: int) -> dict[str, TensorInfo]:
    """Return dtype and shape of every tensor of a safetensors file of ``size`` bytes.

    Raises
    ------
    CheckpointError
        When the header is too long, malformed, or does not fit the file.
    """
    stream.seek(0)
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES or not 2 <= length <= min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        _bad(f"it claims a header of {length} bytes; the file has {size}, and at most {MAX_HEADER_BYTES} are read")
    header = _parse(stream.read(length))
    header.pop("__metadata__", None)
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        tensors[name], begin, end = _tensor(name, entry)
        spans.append((begin, end, name))
    _check_spans(spans, size - _LENGTH_BYTES - length)
    return tensors


def _bad(what: str) -> NoReturn:
    message = f"the safetensors file is malformed: {what}; fetch it anew, or save it again"
    raise CheckpointError(message, code="bad_safetensors")


def _parse(raw: bytes) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            _bad("a name stands in its header twice")
        return found

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _bad(f"its header is no JSON in UTF-8 ({type(error).__name__})")
    if not isinstance(header, dict):
        _bad("its header is no object")
    return header


def _tensor(name: str, entry: object) -> tuple[TensorInfo, int, int]:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)], **rest} if not rest:
            pass
        case _:
            _bad(f"the entry of {name!r} is not dtype, shape and data_offsets")
    if kind not in _DTYPES:
        message = f"the tensor {name!r} has the dtype {kind}; read are {', '.join(_DTYPES)}"
        raise CheckpointError(message, code="unsupported_dtype")
    if len(shape) > MAX_RANK or not all(type(size) is int and 0 <= size < _MAX_SIZE for size in shape):
        _bad(f"the shape of {name!r} is {str(shape)[:80]}")
    info = TensorInfo(_DTYPES[kind], tuple(shape))
    if begin < 0 or end - begin != info.bytes:
        _bad(f"{name!r} of shape {info.shape} and dtype {kind} has {info.bytes} bytes and spans {end - begin}")
    return info, begin, end


def _check_spans(spans: list[tuple[int, int, str]], size: int) -> None:
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            _bad(f"there is a hole or an overlap before {name!r}, at byte {at} of the data")
        at = end
    if at != size:
        _bad(f"its tensors have {at} bytes and the file holds {size}")
