# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's pickle read as data: an interpreter of its opcodes that builds plain values and nothing else.

A pickle is a program. It runs here on a stack of plain values with an allowlist of globals, none of which is imported
or called: the functions here build descriptions. A state dict needs the ordered dict, the tensor rebuilders and the
storage kinds; sizes, devices, dtypes and the counter come with the states of optimizers and schedulers. This stands in
front of torch's weights-only loader, which allows more.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass

from segship.errors import CheckpointError, UnsafeCheckpoint
from segship.ship.checkpoints.archive import DTYPE_BYTES, MAX_RANK, StoredTensor

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
    "torch.device": lambda _: Opaque(),
}

ALLOWED_GLOBALS = frozenset((*_REBUILDS, *STORAGE_DTYPES, *(f"torch.{name}" for name in DTYPE_BYTES)))


MAX_OPCODES = 500_000
"""The pickle of vit_h has some 20 thousand; one with optimizer states a few times that."""
MAX_PROTOCOL = 5


@dataclass(frozen=True, slots=True)
class PickleScan:
    """What a pickle holds."""

    value: object
    """Its object as dicts, lists, tuples, plain values and `StoredTensor`."""
    tensors: tuple[StoredTensor, ...]
    """Every tensor of it, wherever it stands."""


def scan_pickle(data: bytes) -> PickleScan:
    """Interpret a pickle without running anything; ``data`` is the whole of it and nothing behind it.

    Raises
    ------
    UnsafeCheckpoint
        When it asks for a global outside the allowlist, or for a call; the message names it.
    CheckpointError
        When it is malformed or too long.
    """
    machine = _Machine()
    try:
        return PickleScan(machine.run(data), tuple(machine.tensors))
    except (IndexError, KeyError, ValueError, OverflowError, MemoryError) as error:
        message = f"the pickle inside is malformed ({error or type(error).__name__}); the file is damaged or crafted"
        raise CheckpointError(message, code="malformed_pickle") from error


class _Machine:
    """The stack, the marks and the memo of one run. Method names are those of the opcodes."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[object, object] = {}
        self.tensors: list[StoredTensor] = []

    def run(self, data: bytes) -> object:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            name = opcode.name
            if count >= MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} opcodes")
            if name == "STOP":
                return self.finish(len(data) - (position or 0) - 1)
            if name in _PUSHES:
                self.stack.append(argument)
            elif name in _HANDLERS:
                _HANDLERS[name](self, argument)
            else:
                # INST carries its class in the opcode; the others find theirs on the stack, already allowed or refused.
                asked = f"{name} {printable(argument).replace(' ', '.')}" if argument is not None else name
                raise UnsafeCheckpoint(f"it uses the opcode {asked}, which no state dict needs; {ADVICE}")
        raise ValueError("no STOP opcode")

    def finish(self, left: int) -> object:
        value = self.stack.pop()
        if left:
            raise UnsafeCheckpoint(f"{left} bytes stand behind the pickle's end, where a second one can hide; {ADVICE}")
        if self.stack or self.marks:
            raise ValueError("values are left on the stack")
        return value

    def protocol(self, version: object) -> None:
        if not isinstance(version, int) or version > MAX_PROTOCOL:
            raise ValueError(f"protocol {version}")

    def mark(self, _: object) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[object]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self, _: object) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def append(self, _: object) -> None:
        self.extend_list([self.stack.pop()])

    def appends(self, _: object) -> None:
        self.extend_list(self.pop_to_mark())

    def extend_list(self, items: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError(f"items are appended to {kind_of(target)}")
        target.extend(items)

    def set_item(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        set_items(self.stack[-1], [key, value])

    def set_items(self, _: object) -> None:
        items = self.pop_to_mark()
        set_items(self.stack[-1], items)

    def make_tuple(self, _: object) -> None:
        items = self.pop_to_mark()
        self.stack.append(tuple(items))

    def make_list(self, _: object) -> None:
        items = self.pop_to_mark()
        self.stack.append(items)

    def make_dict(self, _: object) -> None:
        made: dict[object, object] = {}
        set_items(made, self.pop_to_mark())
        self.stack.append(made)

    def get(self, place: object) -> None:
        self.stack.append(self.memo[place])

    def put(self, place: object) -> None:
        self.memo[place] = self.stack[-1]

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def named_global(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self.push_global(module, name)

    def stack_global(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(module, name)

    def push_global(self, module: object, name: object) -> None:
        full = f"{printable(module)}.{printable(name)}"
        if not isinstance(module, str) or not isinstance(name, str) or full not in ALLOWED_GLOBALS:
            raise UnsafeCheckpoint(f"it asks for {full}, which could run code; {ADVICE}")
        self.stack.append(Global(full))

    def reduce(self, _: object) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        made = call(function, arguments)
        # A parameter is the tensor that it was called with, which is counted already.
        if isinstance(made, StoredTensor) and not _is_among(made, arguments):
            self.tensors.append(made)
        self.stack.append(made)

    def build(self, _: object) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        # A module's state dict carries its version numbers as the attribute _metadata; it is of no use here.
        if not isinstance(target, OrderedDictValue) or not isinstance(state, dict) or set(state) != {"_metadata"}:
            message = f"it sets the state of {kind_of(target)} (BUILD), which could change what its code does; {ADVICE}"
            raise UnsafeCheckpoint(message)

    def persistent_id(self, _: object) -> None:
        self.stack.append(storage(self.stack.pop()))


def _is_among(made: object, arguments: object) -> bool:
    return isinstance(arguments, tuple) and any(item is made for item in arguments)


def _tuple_of(count: int) -> Callable[[_Machine, object], None]:
    def make(machine: _Machine, _: object) -> None:
        items = [machine.stack.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return make


_PUSHES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 NONE UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)

_HANDLERS: dict[str, Callable[[_Machine, object], None]] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda machine, _: None,
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "EMPTY_TUPLE": _tuple_of(0),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": _Machine.make_tuple,
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "LIST": _Machine.make_list,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "DICT": _Machine.make_dict,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GLOBAL": _Machine.named_global,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
