# SPDX-License-Identifier: Apache-2.0
"""Two containers of weights, safetensors and the zip of ``torch.save``: read as far as their tables of contents.

What they say of a tensor (`TensorInfo`, `StoredTensor`) is checked against the file before any of its bytes are used.
Two readers can see two different files in one zip: duplicate names, hidden members, lying headers. So nothing is
accepted that ``torch.save`` does not write, and every byte of a file belongs to one member or tensor.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from struct import Struct
from typing import BinaryIO, NoReturn, Self

from segship.errors import CheckpointError, shown

DTYPE_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "complex64": 8,
    "complex128": 16,
}
MAX_RANK = 8
"""Axes of a tensor; the models here have at most 4."""
MAX_TENSORS = 20_000
"""Of one file; a training state of vit_h with averaged weights has some 3 thousand."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Dtype, by its name in torch and numpy, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the elements, each once."""
        return self.elements * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class StoredTensor(TensorInfo):
    """A tensor as a view of a storage: element (i, j, ...) lies at ``offset + i * strides[0] + j * strides[1] + ...``.

    Attributes
    ----------
    storage
        Key of the storage: the name of a member under ``data/``, or the number of a safetensors file's tensor.
    storage_elements
        Elements of the storage, as the file claims.
    """

    strides: tuple[int, ...]
    offset: int
    storage: str
    storage_elements: int

    @classmethod
    def whole(cls, info: TensorInfo, storage: str) -> Self:
        """Return a tensor that fills a storage, its last axis closest in memory."""
        strides = tuple(prod(info.shape[axis + 1 :]) for axis in range(len(info.shape)))
        return cls(info.dtype, info.shape, strides, 0, storage, info.elements)

    def lies_within_storage(self) -> bool:
        """Tell whether every element lies in the storage, and no two at one place."""
        if self.elements == 0:
            return self.offset <= self.storage_elements
        reach = 1
        for stride, size in sorted((stride, size) for stride, size in zip(self.strides, self.shape, strict=True)):
            if size == 1:
                continue
            if stride < reach:
                return False
            reach = stride * (size - 1) + reach
        return self.offset + reach <= self.storage_elements


MAX_HEADER_BYTES = 8 << 20
# 20 thousand tensors of 4 axes have half of them; each costs some 100 bytes once it is parsed.
_MAX_HEADER_PARTS = 500_000
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
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}


def read_safetensors_header(stream: BinaryIO, size: int) -> tuple[dict[str, StoredTensor], dict[str, tuple[int, int]]]:
    """Return every tensor of a safetensors file of ``size`` bytes, and the first byte and bytes of every storage.

    Each tensor has a storage of its own, called by its number.

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
    if len(header) > MAX_TENSORS:
        _bad(f"it has {len(header)} tensors, and at most {MAX_TENSORS} are read")
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, StoredTensor] = {}
    for name, entry in header.items():
        info, begin, end = _tensor(name, entry)
        tensors[name] = StoredTensor.whole(info, str(len(spans)))
        spans.append((begin, end, name))
    data = _LENGTH_BYTES + length
    _check_spans(spans, size - data)
    return tensors, {str(number): (data + begin, end - begin) for number, (begin, end, _) in enumerate(spans)}


def _bad(what: str) -> NoReturn:
    message = f"the safetensors file is malformed: {what}; fetch it anew, or save it again"
    raise CheckpointError(message, code="bad_safetensors")


def _parse(raw: bytes) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            _bad("a name stands in its header twice")
        return found

    if sum(map(raw.count, (b"[", b"{", b","))) > _MAX_HEADER_PARTS:
        _bad(f"its header has more than {_MAX_HEADER_PARTS} brackets and commas")
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
            _bad(f"the entry of '{shown(name)}' is not dtype, shape and data_offsets")
    if kind not in _DTYPES:
        message = f"the tensor '{shown(name)}' has the dtype {shown(kind)}; read are {', '.join(_DTYPES)}"
        raise CheckpointError(message, code="unsupported_dtype")
    if len(shape) > MAX_RANK or not all(type(size) is int and 0 <= size < _MAX_SIZE for size in shape):
        _bad(f"the shape of '{shown(name)}' is {', '.join(map(shown, shape[: MAX_RANK + 1]))}")
    info = TensorInfo(_DTYPES[kind], tuple(shape))
    if begin < 0 or end - begin != info.bytes:
        found = f"has {info.bytes} bytes and spans {shown(end - begin)}"
        _bad(f"'{shown(name)}' of shape {info.shape} and dtype {kind} {found}")
    return info, begin, end


def _check_spans(spans: list[tuple[int, int, str]], size: int) -> None:
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            _bad(f"there is a hole or an overlap before '{shown(name)}', at byte {at} of the data")
        at = end
    if at != size:
        _bad(f"its tensors have {at} bytes and the file holds {size}")


MAX_DIRECTORY_BYTES = 4 << 20
"""Some 60 thousand members; a checkpoint has one a tensor."""
MAX_PICKLE_BYTES = 4 << 20
"""The pickle of vit_h, the largest published checkpoint, has about 100 KB."""

_CHUNK_BYTES = 1 << 20
_END = Struct("<4s4H2LH")
_END64_LOCATOR = Struct("<4sLQL")
_END64 = Struct("<4sQ2H2L4Q")
_CENTRAL = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3L2H")
_IN_ZIP64 = 0xFFFFFFFF
# Sizes behind the data instead of before it (bit 3), names in UTF-8 (bit 11).
_ALLOWED_FLAGS = 1 << 3 | 1 << 11
_ENCRYPTED_FLAGS = 1 << 0 | 1 << 6 | 1 << 13
_DESCRIPTOR_BYTES = 24
_PLAIN_MEMBERS = {
    "data.pkl",
    "byteorder",
    "version",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member: where its bytes lie in the file, and their CRC-32."""

    name: str
    header: int
    start: int
    bytes: int
    crc: int


@dataclass(frozen=True, slots=True)
class _Record:
    """What the central directory claims of a member; ``method`` 0 is stored as it is."""

    name: str
    flags: int
    method: int
    plain: int
    packed: int
    header: int
    crc: int


@dataclass(frozen=True, slots=True)
class Archive:
    """The members of a checkpoint, by their name without the root folder."""

    members: dict[str, Member]

    @property
    def storages(self) -> dict[str, tuple[int, int]]:
        """First byte and bytes of every tensor storage, by its key."""
        return {
            name.removeprefix("data/"): (member.start, member.bytes)
            for name, member in self.members.items()
            if name.startswith("data/")
        }


def read_archive(stream: BinaryIO, size: int) -> Archive:
    """Read and check the directory of a checkpoint's zip container.

    Raises
    ------
    CheckpointError
        When it is no such container, or anything in it is not as ``torch.save`` writes it.
    """
    start, count, end = _find_directory(stream, size)
    stream.seek(start)
    records = list(_parse_directory(stream.read(end - start), count))
    _refuse_programs({record.name.partition("/")[2] for record in records})
    members = [_member(stream, record) for record in records]
    _check_layout(members, start)
    return Archive(_strip_root(members))


def read_pickle(stream: BinaryIO, archive: Archive) -> bytes:
    """Return the pickle of a checkpoint, checked against its CRC."""
    member = archive.members["data.pkl"]
    if member.bytes > MAX_PICKLE_BYTES:
        _damaged(f"its pickle has {member.bytes} bytes, and at most {MAX_PICKLE_BYTES} are read")
    return _read(stream, member)


def require_little_endian(stream: BinaryIO, archive: Archive) -> None:
    """Refuse a checkpoint written on a big-endian machine; files from before the mark existed are little-endian."""
    member = archive.members.get("byteorder")
    if member is not None and (member.bytes > len("little") or _read(stream, member) != b"little"):
        _damaged("its numbers are not little-endian; save it again on a little-endian machine")


def _read(stream: BinaryIO, member: Member) -> bytes:
    check_crc(stream, member)
    stream.seek(member.start)
    return stream.read(member.bytes)


def check_crc(stream: BinaryIO, member: Member) -> None:
    """Compare a member's bytes with its CRC-32."""
    stream.seek(member.start)
    crc, left = 0, member.bytes
    while left and (piece := stream.read(min(left, _CHUNK_BYTES))):
        crc = zlib.crc32(piece, crc)
        left -= len(piece)
    if left or crc != member.crc:
        _damaged(f"the CRC of its member {shown(member.name)} is wrong")


def _damaged(what: str) -> NoReturn:
    message = f"the zip container is not as torch.save writes it: {what}; fetch the file anew, or save it again"
    raise CheckpointError(message, code="bad_container")


def _unpack(layout: Struct, data: bytes, offset: int = 0, signature: bytes = b"") -> tuple[int, ...]:
    """Return the numbers behind a record's signature."""
    if offset < 0 or len(data) < offset + layout.size or data[offset : offset + 4] != signature:
        _damaged(f"a record {signature!r} is missing")
    found: tuple[int, ...] = layout.unpack_from(data, offset)[1:]
    return found


def _find_directory(stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return start, number of members and end of the central directory."""
    tail_size = min(size, _END.size + _END64_LOCATOR.size + _END64.size)
    stream.seek(size - tail_size)
    tail = stream.read(tail_size)
    at = len(tail) - _END.size
    disk, first_disk, here, count, length, start, comment = _unpack(_END, tail, at, b"PK\5\6")
    end = size - _END.size
    if tail[max(0, at - _END64_LOCATOR.size) : at].startswith(b"PK\6\7"):
        _, end, disks = _unpack(_END64_LOCATOR, tail, at - _END64_LOCATOR.size, b"PK\6\7")
        at -= _END64_LOCATOR.size + _END64.size
        _, _, _, disk, first_disk, here, count, length, start = _unpack(_END64, tail, at, b"PK\6\6")
        if end != size - tail_size or disks != 1:
            _damaged("its end records do not follow each other")
    if comment or disk or first_disk or here != count or start + length != end:
        _damaged("its end record does not fit the file")
    if length > MAX_DIRECTORY_BYTES:
        _damaged(f"its directory has {length} bytes, and at most {MAX_DIRECTORY_BYTES} are read")
    return start, count, end


def _parse_directory(directory: bytes, count: int) -> Iterator[_Record]:
    at = 0
    for _ in range(count):
        fields = _unpack(_CENTRAL, directory, at, b"PK\1\2")
        _, _, flags, method, _, _, crc, packed, plain, name_size, extra_size, comment_size, disk, _, _, header = fields
        at += _CENTRAL.size
        raw_name, extra = directory[at : at + name_size], directory[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        try:
            name = raw_name.decode("utf-8")
        except UnicodeDecodeError:
            _damaged(f"the name {shown(raw_name.decode('latin-1'))!r} is not UTF-8")
        plain, packed, header = _from_zip64(extra, plain, packed, header)
        yield _Record(name, flags, method or disk, plain, packed, header, crc)
    if at != len(directory):
        _damaged("its directory and the number of its members differ")


def _from_zip64(extra: bytes, *sizes: int) -> tuple[int, ...]:
    """Replace the sizes that do not fit 32 bits by those of the zip64 extra field."""
    found: list[int] = []
    at = 0
    while at + 4 <= len(extra) and not found:
        kind, length = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == 1:
            # Two sizes and a place are all that it may hold here.
            found = [int.from_bytes(extra[i : i + 8], "little") for i in range(at + 4, at + 4 + min(length, 24) - 7, 8)]
        at += 4 + length
    if sizes.count(_IN_ZIP64) > len(found):
        _damaged("a zip64 size is missing")
    rest = iter(found)
    return tuple(next(rest) if size == _IN_ZIP64 else size for size in sizes)


def _member(stream: BinaryIO, record: _Record) -> Member:
    """Check a member's record against its local header, which says where its bytes begin."""
    name = record.name
    if record.flags & _ENCRYPTED_FLAGS:
        _damaged(f"its member '{shown(name)}' is marked as encrypted")
    if record.flags & ~_ALLOWED_FLAGS or record.method != 0 or record.plain != record.packed:
        _damaged(f"its member '{shown(name)}' is compressed or has strange flags ({record.method}, {record.flags:#x})")
    raw_name = name.encode("utf-8")
    stream.seek(record.header)
    local = stream.read(_LOCAL.size + len(raw_name))
    _, flags, method, _, _, _, _, _, name_size, extra_size = _unpack(_LOCAL, local, 0, b"PK\3\4")
    if flags != record.flags or method != 0 or name_size != len(raw_name) or local[_LOCAL.size :] != raw_name:
        _damaged(f"the two headers of its member '{shown(name)}' differ")
    start = record.header + _LOCAL.size + name_size + extra_size
    return Member(name, record.header, start, record.plain, record.crc)


def _check_layout(members: list[Member], directory_start: int) -> None:
    """Require that members follow each other from the first byte on, with room for a data descriptor at most."""
    end = 0
    for member in sorted(members, key=lambda member: member.header):
        slack = _DESCRIPTOR_BYTES if end else 0
        if not end <= member.header <= end + slack:
            _damaged(f"its member '{shown(member.name)}' overlaps another, or bytes lie hidden before it")
        end = member.start + member.bytes
    if not end <= directory_start <= end + _DESCRIPTOR_BYTES:
        _damaged("bytes lie hidden before its directory")


def _strip_root(members: list[Member]) -> dict[str, Member]:
    """Return members by their name in the one root folder, refusing other kinds of archives by their own names."""
    names = [member.name for member in members]
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        _damaged(f"the name '{shown(name)}' stands in it {count} times")
    inner = {member.name.partition("/")[2]: member for member in members}
    if "data.pkl" not in inner:
        message = (
            "the file is a zip container without data.pkl, so it is no checkpoint of torch.save; give another file"
        )
        raise CheckpointError(message, code="not_a_checkpoint")
    if len({name.partition("/")[0] for name in names}) != 1 or len(inner) != len(names):
        _damaged("its members lie in more than one root folder")
    for name in inner:
        if name not in _PLAIN_MEMBERS and not (name.startswith("data/") and name.count("/") == 1):
            _damaged(f"its member '{shown(name)}' is none of a checkpoint")
    return inner


def _refuse_programs(inner: set[str]) -> None:
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        message = (
            "the file is a TorchScript archive, which holds a program; give the checkpoint it was made from, or save "
            "its weights alone: torch.save(torch.jit.load('FILE').state_dict(), 'weights.pth'), where you trust it"
        )
        raise CheckpointError(message, code="torchscript")
    if inner & {"archive_format", "serialized_exported_program.json"} or any(
        name.startswith(("models/", "data/weights/", "data/aotinductor/")) for name in inner
    ):
        message = "the file is a torch.export archive, which holds a program; give the checkpoint it was made from"
        raise CheckpointError(message, code="torch_export")
