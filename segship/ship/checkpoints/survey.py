# SPDX-License-Identifier: Apache-2.0
"""A checkpoint file before its tensors are read: its format, every check that a hostile file fails, its state dict.

State dicts are found inside what people save: training checkpoints, modules in modules, data-parallel wrappers. The
same function serves the description of a file and its tensors, so both see the same keys.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from segship.catalog import CHECKPOINT_SUFFIXES, KnownCheckpoint, identify
from segship.errors import CheckpointError, InputError, shown
from segship.files import CHUNK_BYTES, open_regular, real_path
from segship.ship.checkpoints.archive import (
    DTYPE_BYTES,
    StoredTensor,
    TensorInfo,
    check_crc,
    read_archive,
    read_pickle,
    read_safetensors_header,
    require_little_endian,
)
from segship.ship.checkpoints.pickles import kind_of, scan_pickle

if TYPE_CHECKING:
    from segship.arrays import Color

T = TypeVar("T")

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
"""Under which the weights stand, best first. Averaged weights (``ema``) beside them are left out, and that is noted."""
PREFIXES = ("module.", "model.", "sam.", "_orig_mod.")
MAX_WRAPPERS = 4
_SHOWN = 8


def unwrap_state_dict(contents: object, tensor: type[T]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Return the state dict in what a file holds, and a sentence for every thing that was taken off or left out.

    Raises
    ------
    CheckpointError
        When there is no mapping from names to tensors in it.
    """
    notes: list[str] = []
    for _ in range(MAX_WRAPPERS):
        wrapper = _wrapper(contents, tensor)
        if wrapper is None or not isinstance(contents, Mapping):
            break
        _note(notes, f"taken from {wrapper!r}", (key for key in contents if key != wrapper))
        contents = contents[wrapper]
    if not isinstance(contents, Mapping) or not any(isinstance(value, tensor) for value in contents.values()):
        found = f"the keys {_few(contents)}" if isinstance(contents, Mapping) else f"a {type(contents).__name__}"
        message = f"the file holds no state dict (names to tensors), but {found}; save model.state_dict()"
        raise CheckpointError(message, code="no_state_dict")
    state = {str(key): value for key, value in contents.items() if isinstance(value, tensor)}
    if len(state) < len(contents):
        _note(notes, "", (key for key, value in contents.items() if not isinstance(value, tensor)))
    return _strip_prefixes(state, notes), tuple(notes)


def _wrapper(contents: object, tensor: type[T]) -> str | None:
    """Return the key under which the state dict stands, or None when it is not wrapped."""
    if not isinstance(contents, Mapping):
        return None
    # A real state dict has tensors at its top; a wrapper has mappings, and at most a stray tensor beside them.
    return next((key for key in WRAPPER_KEYS if _may_hold_tensors(contents.get(key), tensor)), None)


def _may_hold_tensors(value: object, tensor: type[T]) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(
        isinstance(item, tensor) or (key in WRAPPER_KEYS and isinstance(item, Mapping)) for key, item in value.items()
    )


def _note(notes: list[str], taken: str, left_out: Iterable[object]) -> None:
    left = _few(left_out)
    notes.append("; ".join(part for part in (taken, f"left out {left}" if left else "") if part))


def _few(keys: Iterable[object]) -> str:
    listed = [repr(key)[:60] for key in keys]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(sorted(listed)[:_SHOWN]) + more


def _strip_prefixes(state: dict[str, T], notes: list[str]) -> dict[str, T]:
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        notes.append(f"prefix {prefix!r} taken off every name")
    return state


LONGEST_NAME = 128
"""Of a class; as `segship.datasets.classes` has it, which needs numpy."""
_MOST_NAMES = 256
_NAME_KEYS, _COLOR_KEYS = ("CLASSES", "classes"), ("PALETTE", "palette")


@dataclass(frozen=True, slots=True)
class Labels:
    """Classes that a checkpoint names; ``palette`` is None if it has no colors, or not one for each class.

    The names are printable, of 1 to 128 characters, and no two are alike; ``notes`` say which were mended for that.
    """

    classes: tuple[str, ...]
    palette: tuple[Color, ...] | None = None
    notes: tuple[str, ...] = ()


def find_labels(contents: object) -> Labels | None:
    """Return the labels that stand in what a checkpoint file holds, or None if it names no classes.

    mmsegmentation writes ``meta.CLASSES`` and, from 1.0 on, ``meta.dataset_meta.classes``. Names in a form that cannot
    be read give labels without classes, and a note.
    """
    for place in _label_places(contents):
        given = next((place[key] for key in _NAME_KEYS if place.get(key) not in (None, [], ())), None)
        if given is None:
            continue
        if not isinstance(given, list | tuple):
            return Labels((), notes=(f"the names of its classes are {kind_of(given)}, and a list is read",))
        classes, notes = _mend_names(given[:_MOST_NAMES])
        colors = next((place[key] for key in _COLOR_KEYS if place.get(key) is not None), ())
        palette = tuple(map(_color, colors)) if isinstance(colors, list | tuple) and len(colors) == len(given) else ()
        known = tuple(color for color in palette if color is not None)
        return Labels(classes, known if len(known) == len(classes) else None, notes)
    return None


def _label_places(contents: object) -> Iterator[Mapping[Any, Any]]:
    if isinstance(contents, Mapping):
        meta = contents.get("meta")
        inner = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
        places = (inner, meta, contents.get("dataset_meta"), contents)
        yield from (place for place in places if isinstance(place, Mapping))


def _mend_names(given: Sequence[object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names that are printable, short and unlike each other, and notes of what had to be changed for that."""
    # All good names keep theirs, so that a mended one gives way and not the reverse.
    taken = {name for name in given if isinstance(name, str) and _plain(name) == name}
    names: list[str] = []
    mended: list[str] = []
    for number, name in enumerate(given):
        plain = _plain(name) if isinstance(name, str) else ""
        if not plain or plain != name or plain in names:
            base, count = plain or f"class {number}", 1
            plain = base
            while plain in taken:
                count += 1
                plain = f"{base[: LONGEST_NAME - 4]} {count}"
            mended.append(f"{shown(name)!r} of class {number} is {shown(plain)!r}")
        taken.add(plain)
        names.append(plain)
    more = f" and {len(mended) - _SHOWN} more" if len(mended) > _SHOWN else ""
    return tuple(names), ((f"names of classes mended: {', '.join(mended[:_SHOWN])}{more}",) if mended else ())


def _plain(name: str) -> str:
    """Return a name on one line, without what cannot be printed, and not too long."""
    kept = "".join(letter if letter.isprintable() else " " for letter in name[: 4 * LONGEST_NAME])
    return " ".join(kept.split())[:LONGEST_NAME].rstrip()


def _color(value: object) -> Color | None:
    row = tuple(value) if isinstance(value, list | tuple) else ()
    numbers = [number for number in row if type(number) is int and 0 <= number <= 255]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == len(row) == 3 else None


Format = Literal["torch", "safetensors"]

# Tied weights share a storage; more sharing than this is a file that unfolds to many times its size.
_MAX_SHARING = 2
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_CONVERT = "python -c \"import torch; torch.save(torch.load('OLD.pth', weights_only=True), 'NEW.pth')\""
_WRONG_KINDS = (
    (b"version https://git-lfs", "a pointer of Git LFS instead of the file itself; get the real file"),
    (b"<", "a web page or XML; the download failed, fetch it again"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"\x89HDF", "HDF5; give a checkpoint of torch"),
)


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """A checkpoint file before its tensors are read.

    Attributes
    ----------
    path
        The file, links followed.
    tensors
        The state dict's tensors by name, wrappers and prefixes taken off.
    stamp
        Identity, size and time of the file, to notice that it was changed meanwhile.
    labels
        Names of classes that a training program wrote beside the weights, or None.
    """

    path: Path
    format: Format
    bytes: int
    sha256: str
    known: KnownCheckpoint | None
    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...]
    stamp: tuple[int, ...]
    labels: Labels | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: info.shape for name, info in self.tensors.items()}


def survey_checkpoint(path: str | os.PathLike[str]) -> Survey:
    """Check a checkpoint file and list its tensors.

    Raises
    ------
    UnsafeCheckpoint
        When it asks for code to be run; the message names it.
    CheckpointError
        When it is missing, of another format, damaged or crafted.
    """
    given = Path(path)
    kind: Format = "safetensors" if given.suffix == ".safetensors" else "torch"
    with _named(given), _opened(given) as stream:
        size = os.fstat(stream.fileno()).st_size
        _refuse_other_kinds(kind, stream.read(512), size)
        # The checks that a hostile file fails come before the digest, which takes as long as the file is large.
        if kind == "safetensors":
            contents: object = read_safetensors_header(stream, size)
            sha256 = _digest(stream)
        else:
            contents, sha256 = _survey_archive(stream, size)
        tensors, notes = unwrap_state_dict(contents, TensorInfo)
        stamp, labels = stamp_of(stream.fileno()), find_labels(contents)
        notes += labels.notes if labels is not None else ()
        return Survey(real_path(given), kind, size, sha256, identify(sha256), tensors, notes, stamp, labels)


def stamp_of(file: int | Path) -> tuple[int, ...]:
    """Return what tells one state of a file from another."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.suffix not in CHECKPOINT_SUFFIXES:
        message = f"{path} does not end in {', '.join(CHECKPOINT_SUFFIXES)}; give a checkpoint of torch or safetensors"
        raise CheckpointError(message, code="not_a_checkpoint")
    try:
        # A link that the user names is followed, as in the caches of model hubs; devices and FIFOs are refused.
        stream = open_regular(real_path(path))
    except InputError as error:
        raise CheckpointError(str(error), code=error.code) from error
    with stream:
        yield stream


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before the message of whatever is wrong with it."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}", code=error.code) from error


def _refuse_other_kinds(kind: Format, head: bytes, size: int) -> None:
    if kind == "torch" and head.startswith(b"PK\3\4"):
        return
    for magic, words in _WRONG_KINDS:
        # A safetensors file begins with a length, so only the longer marks mean anything there.
        if head.startswith(magic) and (kind == "torch" or len(magic) > 2):
            raise CheckpointError(f"this is {words}", code="not_a_checkpoint")
    if kind == "safetensors":
        if head.startswith((b"PK\3\4", _LEGACY_MAGIC)):
            message = "this is a checkpoint of torch.save with the suffix of safetensors; name it .pth"
            raise CheckpointError(message, code="not_a_checkpoint")
        return
    if head[257:262] == b"ustar" or head.startswith(_LEGACY_MAGIC):
        message = f"this is of torch's old format, from before version 1.6; convert it first: {_CONVERT}"
        raise CheckpointError(message, code="legacy_checkpoint")
    if head[8:9] == b"{" and head[8:10] in (b'{"', b"{}", b"{ "):
        message = "this is a safetensors file with another suffix; name it .safetensors"
        raise CheckpointError(message, code="not_a_checkpoint")
    message = (
        f"its {size} bytes are no zip container of torch.save (they begin with {head[:8]!r}); plain pickles are not "
        f"read; if it is an old checkpoint, convert it: {_CONVERT}"
    )
    raise CheckpointError(message, code="not_a_checkpoint")


def _survey_archive(stream: BinaryIO, size: int) -> tuple[object, str]:
    archive = read_archive(stream, size)
    require_little_endian(stream, archive)
    scan = scan_pickle(read_pickle(stream, archive))
    for tensor in scan.tensors:
        _check_storage(tensor, archive.storage_bytes(tensor.storage))
    logical = sum(tensor.bytes for tensor in scan.tensors)
    if logical > _MAX_SHARING * size:
        message = f"its tensors unfold to {logical} bytes, and the file has {size}; they share too much storage"
        raise CheckpointError(message, code="bad_tensor_layout")
    sha256 = _digest(stream)
    if identify(sha256) is None:
        for member in archive.members.values():
            check_crc(stream, member)
    return scan.value, sha256


def _check_storage(tensor: StoredTensor, found: int | None) -> None:
    claimed = tensor.storage_elements * DTYPE_BYTES[tensor.dtype]
    if found != claimed:
        message = (
            f"the storage {tensor.storage!r} should have {claimed} bytes and has {'none' if found is None else found}; "
            "the file is damaged or crafted"
        )
        raise CheckpointError(message, code="bad_tensor_layout")


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    stream.seek(0)
    while piece := stream.read(CHUNK_BYTES):
        digest.update(piece)
    return digest.hexdigest()
