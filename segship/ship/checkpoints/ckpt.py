# SPDX-License-Identifier: Apache-2.0
"""MindSpore's checkpoints (``.ckpt``), read as far as their table of contents, and MindFormers' names of tensors.

The container is a flat protobuf message: entries follow each other, and each is a name and a tensor, which is sizes,
the name of a dtype and the bytes. A large tensor is several entries of one name in a row, its
bytes cut into pieces; a CRC-32 of all may stand at the end. Nothing is accepted that MindSpore does not write, and
every byte of a file belongs to one entry. `segship.ship.targets.ckpt` writes such files.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from itertools import groupby, islice
from typing import BinaryIO, NamedTuple, NoReturn

from segship.errors import CheckpointError, shown
from segship.files import CHUNK_BYTES
from segship.ship.checkpoints.archive import MAX_RANK, MAX_TENSORS, StoredTensor, TensorInfo

CKPT_DTYPES = {
    "Float64": "float64",
    "Float32": "float32",
    "Float16": "float16",
    "BFloat16": "bfloat16",
    "Int64": "int64",
    "Int32": "int32",
    "Int16": "int16",
    "Int8": "int8",
    "UInt64": "uint64",
    "UInt32": "uint32",
    "UInt16": "uint16",
    "UInt8": "uint8",
    "Bool": "bool",
}
"""MindSpore's name of a dtype -> ours."""
# What stands before a field: its number, and 2 for what has a length or 0 for a number.
_ENTRY, _NAME, _TENSOR, _MAP = b"\x0a", b"\x0a", b"\x12", b"\x1a"
_SIZE, _DTYPE, _DATA = b"\x08", b"\x12", b"\x1a"
_CRC_MARK, _CRC_BYTES = b"crc_num", 10
# Of an entry, up to its bytes: a name of 512 characters and 8 sizes need some 2 thousand.
_HEAD_BYTES = 4096
_MAX_SIZE = 1 << 48
_TEXT = "str"


def mindformers_name(name: str) -> str:
    """Return the name that MindFormers' SAM has for a tensor: layer norms and tables of embeddings have their own.

    Examples
    --------
    >>> mindformers_name("image_encoder.blocks.0.norm1.bias"), mindformers_name("mask_decoder.iou_token.weight")
    ('image_encoder.blocks.0.norm1.beta', 'mask_decoder.iou_token.embedding_table')
    """
    stem, _, last = name.rpartition(".")
    if "norm" in name:
        renamed = {"weight": "gamma", "bias": "beta"}
    elif ("prompt_encoder" in name and "embed" in name) or (
        "mask_decoder" in name and ("iou_token" in name or "mask_tokens" in name)
    ):
        renamed = {"weight": "embedding_table"}
    else:
        return name
    return f"{stem}.{renamed.get(last, last)}"


def published_name(name: str) -> str:
    """Return the name that the published checkpoints have for a tensor of MindFormers.

    Examples
    --------
    >>> published_name("mask_decoder.iou_token.embedding_table")
    'mask_decoder.iou_token.weight'
    """
    stem, dot, last = name.rpartition(".")
    return stem + dot + {"gamma": "weight", "beta": "bias", "embedding_table": "weight"}.get(last, last)


def with_published_names(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, renamed where MindFormers wrote it, which tables of embeddings show.

    Raises
    ------
    CheckpointError
        When two of them would have one name.
    """
    if not any(name.endswith(".embedding_table") for name in tensors):
        return tensors
    renamed: dict[str, StoredTensor] = {}
    for given, tensor in tensors.items():
        if renamed.setdefault(published_name(given), tensor) is not tensor:
            _bad(f"the tensor '{shown(given)}' stands in it twice")
    return renamed


class _Piece(NamedTuple):
    """An entry: all bytes of a tensor, or some; the dtype is MindSpore's."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


def read_ckpt(stream: BinaryIO, size: int) -> tuple[dict[str, StoredTensor | None], dict[str, tuple[int, ...]]]:
    """Return every tensor of a ``.ckpt`` file under its published name, and where its bytes are.

    Each tensor has a storage of its own, called by its number: first byte and bytes of every piece, one behind the
    other. Texts are None.

    Raises
    ------
    CheckpointError
        When anything is not as MindSpore writes it.
    """
    contents: dict[str, StoredTensor | None] = {}
    places: dict[str, tuple[int, ...]] = {}
    pieces = islice(_pieces(stream, _end_of_entries(stream, size)), MAX_TENSORS + 1)
    for count, (given, group) in enumerate(groupby(pieces, key=lambda piece: piece.name)):
        name, parts = published_name(given), list(group)
        if name in contents or len(contents) + len(parts) > MAX_TENSORS:
            many = f"it has more than {MAX_TENSORS} entries, and so many are read"
            _bad(f"the tensor '{shown(given)}' stands in it twice" if name in contents else many)
        if parts[0].dtype == _TEXT:
            contents[name] = None
            continue
        contents[name] = StoredTensor.whole(_joined(parts), str(count))
        places[str(count)] = tuple(number for part in parts for number in (part.start, part.bytes))
    return contents, places


def _bad(what: str) -> NoReturn:
    message = f"the file is not as MindSpore writes checkpoints: {what}; fetch it anew, or save it again"
    raise CheckpointError(message, code="bad_ckpt")


def _joined(parts: list[_Piece]) -> TensorInfo:
    """Return what the pieces of a tensor are together."""
    first, words = parts[0], shown(parts[0].name)
    if first.dtype not in CKPT_DTYPES:
        message = f"the tensor '{words}' has the dtype {shown(first.dtype)}; read are {', '.join(CKPT_DTYPES)}"
        raise CheckpointError(message, code="unsupported_dtype")
    if any((part.dtype, part.shape) != (first.dtype, first.shape) for part in parts):
        _bad(f"the pieces of '{words}' have different dtypes or shapes, or it stands in it twice")
    # A single number may be marked by one axis of size 0, which nothing else has.
    info = TensorInfo(CKPT_DTYPES[first.dtype], () if first.shape == (0,) else first.shape)
    held = sum(part.bytes for part in parts)
    if held != info.bytes:
        _bad(f"'{words}' of shape {info.shape} and dtype {first.dtype} has {info.bytes} bytes, and {held} are there")
    return info


def _end_of_entries(stream: BinaryIO, size: int) -> int:
    """Return where the entries end: at the end of the file, or before a CRC-32 of them, which is right."""
    end = size - len(_CRC_MARK) - _CRC_BYTES
    stream.seek(max(0, end))
    trailer = stream.read()
    if end < 0 or not trailer.startswith(_CRC_MARK):
        return size
    stream.seek(0)
    crc, left = 0, end
    while left and (piece := stream.read(min(left, CHUNK_BYTES))):
        crc = zlib.crc32(piece, crc)
        left -= len(piece)
    if crc != int.from_bytes(trailer[len(_CRC_MARK) :], "big"):
        _bad("the CRC at its end is wrong")
    return end


def _pieces(stream: BinaryIO, end: int) -> Iterator[_Piece]:
    at = 0
    while at < end:
        stream.seek(at)
        piece = _read_entry(_Head(stream.read(min(_HEAD_BYTES, end - at)), at), end)
        yield piece
        at = piece.start + piece.bytes


def _read_entry(head: _Head, end: int) -> _Piece:
    entry_end = head.end_of(_ENTRY, end)
    name = head.text(_NAME, entry_end)
    if head.next_is(_MAP):
        _bad(f"'{shown(name)}' is a map parameter, which no model here has")
    tensor_end = head.end_of(_TENSOR, entry_end)
    shape: list[int] = []
    while head.next_is(_SIZE):
        shape.append(head.number(_SIZE))
        if len(shape) > MAX_RANK or shape[-1] >= _MAX_SIZE:
            _bad(f"the shape of '{shown(name)}' is {', '.join(map(shown, shape))}")
    dtype = head.text(_DTYPE, tensor_end)
    data_end = head.end_of(_DATA, tensor_end)
    if not data_end == tensor_end == entry_end:
        _bad(f"the entry of '{shown(name)}' holds more than a name, sizes, a dtype and bytes")
    return _Piece(name, dtype, tuple(shape), head.at, data_end - head.at)


class _Head:
    """Reads what stands in an entry before its bytes; ``at`` is the place in the file."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._first, self.at = data, at, at

    def _take(self, count: int) -> bytes:
        start = self.at - self._first
        found = self._data[start : start + count]
        if len(found) < count:
            _bad(f"an entry is cut off, or its names are too long, near byte {self.at}")
        self.at += count
        return found

    def next_is(self, key: bytes) -> bool:
        """Tell whether a field begins here, which stays unread."""
        start = self.at - self._first
        return self._data[start : start + 1] == key

    def number(self, key: bytes) -> int:
        """Return the number behind a field's key: 7 bits a byte, lowest first, at most 10 bytes."""
        place = self.at
        if self._take(1) != key:
            _bad(f"byte {place} is no beginning of the field that stands there")
        value = 0
        for shift in range(0, 70, 7):
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        _bad(f"the number at byte {place} is too long")

    def end_of(self, key: bytes, most: int) -> int:
        """Return where a field that has a length ends, which lies in what it is a part of."""
        place = self.at
        end = self.number(key) + self.at
        if end > most:
            _bad(f"a field at byte {place} ends at byte {shown(end)}, and what it is a part of at {most}")
        return end

    def text(self, key: bytes, most: int) -> str:
        """Return a field in UTF-8."""
        raw = self._take(self.end_of(key, most) - self.at)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            _bad(f"the name '{shown(raw.decode('latin-1'))}' is not UTF-8")
