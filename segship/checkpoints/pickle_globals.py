# SPDX-License-Identifier: Apache-2.0
"""The globals that a checkpoint's pickle may name, and the plain value that a call of each stands for.

None of them is imported or called: the functions here build descriptions. A state dict needs the ordered dict, the
tensor rebuilders and the storage kinds; sizes, devices, dtypes and the counter come with the states of optimizers and
schedulers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from segship.checkpoints.tensor_info import DTYPE_BYTES, MAX_RANK, StoredTensor
from segship.errors import CheckpointError, UnsafeCheckpoint

ADVICE = (
    "only tensors in plain containers are accepted; get the file from its publisher, or let whoever made it save the "
    "state dict alone"
)
_MAX_SIZE = 1 << 48

STORAGE_DTYPES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}

Arguments = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Global:
    """A global that was named; it is on the allowlist and was not imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage that the file holds as a member of its own."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, slots=True)
class Opaque:
    """A harmless value that nobody looks into, such as a device."""


class OrderedDictValue(dict[object, object]):
    """What ``collections.OrderedDict`` makes; the only value whose state may be set."""


def call(function: object, arguments: object) -> object:
    """Return what a call in the pickle stands for.

    Raises
    ------
    UnsafeCheckpoint
        When what is called is not one of the rebuilders.
    """
    name = function.name if isinstance(function, Global) else kind_of(function)
    rebuild = _REBUILDS.get(name) if isinstance(function, Global) else None
    if rebuild is None or not isinstance(arguments, tuple):
        raise UnsafeCheckpoint(f"it calls {printable(name)}, which a state dict never does; {ADVICE}")
    return rebuild(arguments)


def set_items(target: object, items: list[object]) -> None:
    """Set keys and values, which alternate in ``items``, in a dict."""
    if not isinstance(target, dict) or len(items) % 2:
        raise ValueError(f"items are set on {kind_of(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Tuples could be nested so that hashing them takes for ever.
        if not isinstance(key, str | int | float | bytes | None):
            raise ValueError(f"{kind_of(key)} is the key of a dict")
        target[key] = value


def printable(text: object) -> str:
    """Return a name from the file as printable text of bounded length."""
    return str(text).encode("unicode_escape").decode("ascii")[:120]


def kind_of(value: object) -> str:
    """Return words for what a value is."""
    return value.name if isinstance(value, Global) else f"a {type(value).__name__}"


def storage(persistent_id: object) -> Storage:
    """Return the storage that a persistent id names; they name nothing else here."""
    match persistent_id:
        case ("storage", Global(name=kind), str(key), str(), int(elements)) if kind in STORAGE_DTYPES:
            if not 0 <= elements < _MAX_SIZE:
                raise ValueError(f"a storage of {elements} elements")
            return Storage(STORAGE_DTYPES[kind], key, int(elements))
    raise UnsafeCheckpoint(f"its persistent id names no storage of tensors; {ADVICE}")


def _ordered_dict(arguments: Arguments) -> OrderedDictValue:
    made = OrderedDictValue()
    match arguments:
        case ():
            pass
        case (list(pairs),) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            set_items(made, [item for pair in pairs for item in pair])
        case (dict(items),):
            made.update(items)
        case _:
            raise ValueError("an ordered dict of something else than pairs")
    return made


def _tensor(arguments: Arguments) -> StoredTensor:
    match arguments:
        case (Storage() as found, int(offset), shape, strides):
            pass
        case (Storage() as found, int(offset), shape, strides, bool(), dict(hooks), *metadata) if not (
            hooks or any(metadata)
        ):
            pass
        case _:
            raise ValueError("a tensor that is no view of a storage")
    made = StoredTensor(found.dtype, _sizes(shape), _sizes(strides), int(offset), found.key, found.elements)
    if len(made.shape) != len(made.strides) or offset < 0 or not made.lies_within_storage():
        message = (
            f"a tensor of shape {made.shape}, strides {made.strides} and offset {offset} does not lie in its "
            f"storage of {found.elements} elements, or overlaps itself; the file is damaged or crafted"
        )
        raise CheckpointError(message, code="bad_tensor_layout")
    return made


def _parameter(arguments: Arguments) -> StoredTensor:
    match arguments:
        case (StoredTensor() as tensor, bool(), dict(hooks)) if not hooks:
            return tensor
    raise ValueError("a parameter that is no tensor")


def _size(arguments: Arguments) -> tuple[int, ...]:
    return _sizes(*arguments) if len(arguments) == 1 else ()


def _device(_: Arguments) -> Opaque:
    return Opaque()


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > MAX_RANK:
        raise ValueError("sizes that are no short tuple")
    if not all(type(item) is int and 0 <= item < _MAX_SIZE for item in value):
        raise ValueError("sizes that are no small whole numbers")
    return tuple(value)


_REBUILDS: dict[str, Callable[[Arguments], object]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
}

ALLOWED_GLOBALS = frozenset((*_REBUILDS, *STORAGE_DTYPES, *(f"torch.{name}" for name in DTYPE_BYTES)))
