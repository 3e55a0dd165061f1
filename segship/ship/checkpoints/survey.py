# SPDX-License-Identifier: Apache-2.0
"""A checkpoint file before its tensors are read: its format, every check that a hostile file fails, its state dict.

State dicts are found inside what people save: training checkpoints, modules in modules, data-parallel wrappers. The
same function serves the description of a file and its tensors, so both see the same keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

from segship.catalog import CHECKPOINT_SUFFIXES, KnownCheckpoint, identify
from segship.errors import BackendUnavailable, CheckpointError, InputError, UnsafeCheckpoint, shown
from segship.files import CHUNK_BYTES, open_regular, real_path
from segship.machine import run_limited
from segship.ship.checkpoints.archive import (
    DTYPE_BYTES,
    Archive,
    StoredTensor,
    TensorInfo,
    check_crc,
    read_archive,
    read_pickle,
    read_safetensors_header,
    require_little_endian,
)
from segship.ship.checkpoints.ckpt import read_ckpt, with_published_names
from segship.ship.checkpoints.pickles import Opaque, kind_of, scan_pickle

if TYPE_CHECKING:
    from segship.arrays import Color

T = TypeVar("T")

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights")
"""Under which the weights stand, best first. Averaged weights (``ema``) beside them are left out, and that is noted."""
PREFIXES = ("module.", "model.", "sam.", "_orig_mod.")
"""Taken off names that no model here has; of those that one has, all that stands before a root goes."""
ROOTS = ("image_encoder.", "backbone.")
"""With which names of a family's encoder begin, and what stands before them is somebody's wrapper."""
MAX_WRAPPERS = 4
LONGEST_TENSOR_NAME = 512
_SHOWN = 8


def unwrap_state_dict(contents: object, tensor: type[T]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Return the state dict in what a file holds, and a sentence for every thing that was taken off or left out.

    It is the mapping to tensors whose names have a root of `ROOTS`, wherever it stands; of several the one under the
    best of `WRAPPER_KEYS`. What stands before the root in all of its names is taken off, and tensors without that are
    left out.

    Raises
    ------
    CheckpointError
        ``no_state_dict`` when there is no mapping from names to tensors in it; ``several_models`` when names have
        several wrappers; ``bad_tensor_name``.
    """
    notes: list[str] = []
    for key in _find_weights(contents, tensor):
        children = _children(contents)
        _note(notes, f"taken from {_key(key, children[key])}", {k: v for k, v in children.items() if k != key})
        contents = children[key]
    if not isinstance(contents, Mapping) or not any(isinstance(value, tensor) for value in contents.values()):
        found = f"the keys {_few(contents)}" if isinstance(contents, Mapping) else kind_of(contents)
        message = f"the file holds no state dict (names to tensors), but {found}; save model.state_dict()"
        raise CheckpointError(message, code="no_state_dict")
    state = {_tensor_name(key): value for key, value in contents.items() if isinstance(value, tensor)}
    if len(state) < len(contents):
        _note(notes, "", {key: value for key, value in contents.items() if not isinstance(value, tensor)})
    return _strip_prefixes(state, notes), tuple(notes)


def _children(value: object) -> Mapping[Any, object]:
    """Return what a container holds by its keys, or by ``item 0``, ... of a short list; nothing of other values."""
    if isinstance(value, Mapping):
        return value
    items = value if isinstance(value, list | tuple) and len(value) <= _SHOWN else ()
    return {f"item {place}": item for place, item in enumerate(items)}


def _find_weights(contents: object, tensor: type[T]) -> tuple[object, ...]:
    """Return the keys that lead to the state dict from the outermost container."""
    found: list[tuple[object, ...]] = []
    plain: list[tuple[object, ...]] = []
    waiting: deque[tuple[tuple[object, ...], object]] = deque([((), contents)])
    seen: set[int] = set()
    while waiting:
        path, value = waiting.popleft()
        children = _children(value)
        names = [key for key, item in children.items() if isinstance(item, tensor) and isinstance(key, str)]
        if any(_root_of(name) is not None for name in names):
            found.append(path)
        elif names and all(key in WRAPPER_KEYS for key in path):
            plain.append(path)
        for key, item in children.items() if len(path) < MAX_WRAPPERS else ():
            # Each container is looked at once, however often it stands in others.
            if isinstance(item, Mapping | list | tuple) and id(item) not in seen:
                seen.add(id(item))
                waiting.append(((*path, key), item))
    # Without the names of any model here, an inner mapping goes before stray tensors beside it.
    return min(found, key=_rank) if found else min(plain, key=lambda path: _rank(path, MAX_WRAPPERS), default=())


def _rank(path: Sequence[object], length: int = 0) -> tuple[int, ...]:
    """Return what sorts paths by how well their keys are known, the better first; padded, the longer first."""
    ranks = [WRAPPER_KEYS.index(key) if key in WRAPPER_KEYS else len(WRAPPER_KEYS) for key in path]
    return (*ranks, *[len(WRAPPER_KEYS)] * (length - len(ranks)))


def _root_of(name: str) -> tuple[str, str] | None:
    """Return what stands before the root in a name, and the root; None if it has none."""
    for root in ROOTS:
        at = 0 if name.startswith(root) else name.find(f".{root}") + 1
        if at or name.startswith(root):
            return name[:at], root
    return None


def _tensor_name(key: object) -> str:
    name = key if isinstance(key, str) else _key(key).strip("'")
    if not 0 < len(name) <= LONGEST_TENSOR_NAME or not name.isprintable():
        message = (
            f"the tensor name '{shown(name)}' is not 1 to {LONGEST_TENSOR_NAME} printable characters; the file is "
            "damaged or crafted"
        )
        raise CheckpointError(message, code="bad_tensor_name")
    return name


def _note(notes: list[str], taken: str, left_out: Mapping[Any, object]) -> None:
    left = _few(left_out)
    notes.append("; ".join(part for part in (taken, f"left out {left}" if left else "") if part))


def _key(key: object, value: object = None) -> str:
    """Return a key in quotes, and of a value that is not built what it would be."""
    words = shown(key) if isinstance(key, str | int | float | None) else kind_of(key)
    return f"'{words}' ({kind_of(value)})" if isinstance(value, Opaque) else f"'{words}'"


def _few(found: Mapping[Any, object]) -> str:
    listed = sorted(_key(key, value) for key, value in found.items())
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _strip_prefixes(state: dict[str, T], notes: list[str]) -> dict[str, T]:
    prefix = _common_prefix(state)
    if prefix is None:
        while found := next((start for start in PREFIXES if all(name.startswith(start) for name in state)), None):
            state = {name.removeprefix(found): value for name, value in state.items()}
            notes.append(f"prefix {found!r} taken off every name")
        return state
    left_out = {name: value for name, value in state.items() if not name.startswith(prefix)}
    kept = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    notes.extend(f"prefix '{shown(part)}.' taken off every name" for part in prefix.split(".")[:-1])
    if left_out:
        _note(notes, "", left_out)
    return kept


def _common_prefix(state: Mapping[str, object]) -> str | None:
    """Return what stands before the root of a model's names; None without such names."""
    roots = [root for root in map(_root_of, state) if root is not None]
    first = next((root for root in ROOTS if any(found == root for _, found in roots)), None)
    prefixes = {prefix for prefix, root in roots if root == first}
    if "" in prefixes or len(prefixes) < 2:
        return "" if "" in prefixes else next(iter(prefixes), None)
    best = min(_rank(prefix.split(".")[:1]) for prefix in prefixes)
    chosen = [prefix for prefix in prefixes if _rank(prefix.split(".")[:1]) == best]
    if len(chosen) > 1:
        message = (
            f"the file holds several models, under {_few(dict.fromkeys(chosen))}; save the state dict of one of them"
        )
        raise CheckpointError(message, code="several_models")
    return chosen[0]


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


Format = Literal["torch", "safetensors", "mindspore"]

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
    storages
        Where in the file the bytes of each storage that a tensor has begin, and how many they are; of one that lies in
        pieces, so for each.
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
    storages: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        return {name: info.shape for name, info in self.tensors.items()}


def survey_checkpoint(path: str | os.PathLike[str]) -> Survey:
    """Check a checkpoint file and list its tensors, in a process of its own with limits of memory and time.

    Raises
    ------
    UnsafeCheckpoint
        When it asks for code to be run; the message names it.
    CheckpointError
        When it is missing, of another format, damaged or crafted; ``reading_stopped`` when a limit was reached.
    """
    # A program that was frozen into one file has no interpreter to start.
    if not sys.executable or getattr(sys, "frozen", False):
        return survey_file(path)
    given = Path(path)
    try:
        size = os.stat(given).st_size
    except (OSError, ValueError):
        # Opening it says what is wrong.
        return survey_file(path)
    seconds = LEAST_SECONDS + size // _SLOWEST_BYTES
    try:
        answer = run_limited(f"{__name__}:survey_as_json", str(given), memory_bytes=MOST_MEMORY, seconds=seconds)
    except BackendUnavailable as error:
        message = (
            f"{given}: reading it was stopped ({error}); the file is damaged or crafted, or this machine has no memory "
            "left; fetch the file anew, and try again"
        )
        raise CheckpointError(message, code="reading_stopped") from error
    return _from_document(json.loads(answer))


MOST_MEMORY = 512 << 20
"""Address space for a survey; that of an ordinary file takes 27 MB, whatever its size."""
LEAST_SECONDS = 20
_SLOWEST_BYTES = 25_000_000
"""That any processor digests and checks in a second."""


def survey_as_json(path: str) -> bytes:
    """Survey a file and return the outcome as JSON, which a hostile file cannot turn into anything else."""
    try:
        survey = survey_file(path)
    except CheckpointError as error:
        document: dict[str, Any] = {
            "error": str(error),
            "code": error.code,
            "unsafe": isinstance(error, UnsafeCheckpoint),
        }
    else:
        document = asdict(replace(survey, known=None, tensors={}))
        document |= {
            "path": str(survey.path),
            "tensors": {name: astuple(info) for name, info in survey.tensors.items()},
        }
    return json.dumps(document).encode("ascii")


def _from_document(document: dict[str, Any]) -> Survey:
    if "error" in document:
        kind = UnsafeCheckpoint if document["unsafe"] else CheckpointError
        raise kind(document["error"], code=document["code"])
    document = {key: _frozen(value) for key, value in document.items()}
    tensors = {
        name: TensorInfo(*fields) if len(fields) == 2 else StoredTensor(*fields)
        for name, fields in document["tensors"].items()
    }
    labels = document["labels"] and Labels(**document["labels"])
    changed = {"path": Path(document["path"]), "known": identify(document["sha256"])}
    return Survey(**{**document, **changed, "tensors": tensors, "labels": labels})


def _frozen(value: Any) -> Any:
    """Return what JSON has as lists as the tuples that they were."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def survey_file(path: str | os.PathLike[str]) -> Survey:
    """Do what `survey_checkpoint` does, in this process and without its limits."""
    given = Path(path)
    contents: object
    places: Mapping[str, tuple[int, ...]]
    with _named(given), _opened(given) as stream:
        size, head = os.fstat(stream.fileno()).st_size, stream.read(512)
        kind = _kind_of_file(given, head)
        _refuse_other_kinds(kind, head, size)
        # The checks that a hostile file fails come before the digest, which takes as long as the file is large.
        if kind == "safetensors":
            found, places = read_safetensors_header(stream, size)
            contents, sha256 = with_published_names(found), _digest(stream)
        elif kind == "mindspore":
            contents, places = read_ckpt(stream, size)
            sha256 = _digest(stream)
        else:
            archive = read_archive(stream, size)
            contents, sha256 = _survey_archive(stream, size, archive)
            places = archive.storages
        tensors, notes = unwrap_state_dict(contents, TensorInfo)
        stamp, labels = stamp_of(stream.fileno()), find_labels(contents)
        notes += labels.notes if labels is not None else ()
        keys = {info.storage for info in tensors.values() if isinstance(info, StoredTensor)}
        storages = {key: places[key] for key in keys}
        known = identify(sha256)
        return Survey(real_path(given), kind, size, sha256, known, tensors, notes, stamp, labels, storages)


def stamp_of(file: int | Path) -> tuple[int, ...]:
    """Return what tells one state of a file from another."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path.suffix not in CHECKPOINT_SUFFIXES:
        message = f"{path} does not end in {', '.join(CHECKPOINT_SUFFIXES)}; give a checkpoint of one of these kinds"
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


def _kind_of_file(path: Path, head: bytes) -> Format:
    # Programs that train with torch call their files .ckpt as well; MindSpore's begin with the mark of an entry.
    if path.suffix == ".ckpt" and head[:1] == b"\n":
        return "mindspore"
    return "safetensors" if path.suffix == ".safetensors" else "torch"


def _refuse_other_kinds(kind: Format, head: bytes, size: int) -> None:
    if kind == "mindspore" or (kind == "torch" and head.startswith(b"PK\3\4")):
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


def _survey_archive(stream: BinaryIO, size: int, archive: Archive) -> tuple[object, str]:
    require_little_endian(stream, archive)
    scan = scan_pickle(read_pickle(stream, archive))
    storages = archive.storages
    for tensor in scan.tensors:
        _check_storage(tensor, storages.get(tensor.storage, (0, None))[1])
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
        there = "none" if found is None else found
        message = (
            f"the storage '{shown(tensor.storage)}' should have {claimed} bytes and has {there}; "
            "the file is damaged or crafted"
        )
        raise CheckpointError(message, code="bad_tensor_layout")


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    stream.seek(0)
    while piece := stream.read(CHUNK_BYTES):
        digest.update(piece)
    return digest.hexdigest()
