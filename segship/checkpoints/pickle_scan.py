# SPDX-License-Identifier: Apache-2.0
"""Read a checkpoint's pickle as data: an interpreter of its opcodes that builds plain values and nothing else.

A pickle is a program. This one runs it on a stack of plain values with the allowlist of `pickle_globals`; a global
outside it, or any other way to call something, is refused by name. Nothing is imported and nothing called, so a hostile
file does nothing here. It stands in front of torch's weights-only loader, which allows more, and needs no torch itself.

Opcodes are decoded by the standard library's ``pickletools.genops``, which runs nothing either.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass

from segship.checkpoints.pickle_globals import (
    ADVICE,
    ALLOWED_GLOBALS,
    Global,
    OrderedDictValue,
    call,
    kind_of,
    printable,
    set_items,
    storage,
)
from segship.checkpoints.tensor_info import StoredTensor
from segship.errors import CheckpointError, UnsafeCheckpoint

MAX_OPCODES = 500_000
"""The pickle of vit_h has some 20 thousand; one with optimizer states a few times that."""
MAX_PROTOCOL = 5


@dataclass(frozen=True, slots=True)
class PickleScan:
    """What a pickle holds.

    Attributes
    ----------
    value
        Its object as dicts, lists, tuples, plain values and `StoredTensor`.
    tensors
        Every tensor of it, wherever it stands.
    """

    value: object
    tensors: tuple[StoredTensor, ...]


def scan_pickle(data: bytes) -> PickleScan:
    """Interpret a pickle without running anything.

    Parameters
    ----------
    data
        The whole pickle and nothing behind it.

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
