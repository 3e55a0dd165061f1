# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's pickle read as data: an interpreter of its opcodes that builds plain values and nothing else.

A pickle is a program. It runs here on a stack of plain values with a list of globals, none of which is imported or
called: the functions here build descriptions. A state dict needs the ordered dict, the tensor rebuilders and the
storage kinds. What training programs save beside it (dates, paths, options, numpy's arrays and random states) becomes
an `Opaque` value: its type and nothing of what it holds. All other globals are refused by name, since a file that asks
for them was not made to be read as data. No unpickler ever sees the file: `reading` takes the tensors' bytes from the
places that are described here.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass

from segship.errors import CheckpointError, UnsafeCheckpoint, shown
from segship.ship.checkpoints.archive import DTYPE_BYTES, MAX_RANK, MAX_TENSORS, StoredTensor, TensorInfo

SAVE_AGAIN = (
    "python -c \"import torch; m = torch.load('OLD.pth', weights_only=False, map_location='cpu'); "
    "torch.save(m.state_dict() if hasattr(m, 'state_dict') else m.get('state_dict', m.get('model', m)), 'NEW.pth')\""
)
"""Takes the tensors out of a file; it runs what the file asks for."""
ADVICE = (
    "only tensors in plain containers are accepted; get the file from its publisher, or save its tensors again where "
    f"you trust it, since this runs its code: {SAVE_AGAIN}"
)
_MAX_SIZE = 1 << 48
_MAX_KEY_BITS = 256
# torch.save counts them.
_LONGEST_KEY = 64

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
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
# Storages without a dtype of their own, whose tensors say it, or that nothing here is made of.
_RAW_STORAGES = {
    "torch.storage.UntypedStorage": 1,
    "torch.QInt8Storage": 1,
    "torch.QUInt8Storage": 1,
    "torch.QInt32Storage": 4,
}
_TENSOR_CLASSES = ("torch.Tensor", "torch.nn.parameter.Parameter")
_STORAGES = frozenset((*STORAGE_DTYPES, *_RAW_STORAGES))

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


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """A value that is not built: what it would be."""

    kind: str


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
    if rebuild is not None and isinstance(arguments, tuple):
        return rebuild(arguments)
    if isinstance(function, Global) and name in HARMLESS and isinstance(arguments, tuple):
        return Opaque(name)
    raise _strange_call(name)


def set_items(target: object, items: list[object]) -> None:
    """Set keys and values, which alternate in ``items``, in a dict; an opaque value swallows them."""
    if len(items) % 2 or not isinstance(target, dict | Opaque):
        raise ValueError(f"items are set on {kind_of(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, list | dict):
            raise ValueError(f"{kind_of(key)} is the key of a dict")
        if isinstance(target, dict):
            target[key if _hashes_at_once(key) else Opaque(kind_of(key))] = value


def _hashes_at_once(key: object) -> bool:
    """Tell whether a key is plain: long numbers and tuples in tuples take long to hash, and are hashed at every use."""
    if isinstance(key, tuple):
        return len(key) <= MAX_RANK and all(not isinstance(item, tuple) and _hashes_at_once(item) for item in key)
    return isinstance(key, str | float | bytes | None) or (isinstance(key, int) and key.bit_length() <= _MAX_KEY_BITS)


def kind_of(value: object) -> str:
    """Return words for what a value is."""
    if isinstance(value, Global | Opaque):
        return shown(value.name if isinstance(value, Global) else value.kind)
    return f"a {type(value).__name__}"


def storage(persistent_id: object) -> Storage:
    """Return the storage that a persistent id names; they name nothing else here."""
    match persistent_id:
        case ("storage", Global(name=kind), str(key), str(), int(elements)) if kind in _STORAGES:
            if not 0 <= elements < _MAX_SIZE or len(key) > _LONGEST_KEY:
                raise ValueError(f"a storage of {shown(elements)} elements, called {shown(key)}")
            return Storage(STORAGE_DTYPES.get(kind, "uint8"), key, int(elements) * _RAW_STORAGES.get(kind, 1))
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
    return _view(found, offset, shape, strides)


def _view(found: Storage, offset: int, shape: object, strides: object) -> StoredTensor:
    made = StoredTensor(found.dtype, _sizes(shape), _sizes(strides), int(offset), found.key, found.elements)
    if len(made.shape) != len(made.strides) or offset < 0 or not made.lies_within_storage():
        message = (
            f"a tensor of shape {made.shape}, strides {made.strides} and offset {shown(offset)} does not lie in its "
            f"storage of {found.elements} elements, or overlaps itself; the file is damaged or crafted"
        )
        raise CheckpointError(message, code="bad_tensor_layout")
    return made


def _tensor_of_bytes(arguments: Arguments) -> StoredTensor:
    """Read a tensor whose dtype is an argument, since its storage has none: 8-bit floats and unsigned numbers."""
    match arguments:
        case (Storage("uint8") as found, int(offset), shape, strides, bool(), dict(hooks), Global(name), *metadata) if (
            not (hooks or any(metadata)) and name.removeprefix("torch.") in DTYPE_BYTES
        ):
            dtype = name.removeprefix("torch.")
        case _:
            raise ValueError("a tensor that is no view of a storage of bytes")
    elements, rest = divmod(found.elements, DTYPE_BYTES[dtype])
    if rest:
        raise ValueError(f"a storage of {found.elements} bytes for {dtype}")
    return _view(Storage(dtype, found.key, elements), offset, shape, strides)


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


def _parameter_with_state(arguments: Arguments) -> StoredTensor:
    """Return a parameter that somebody gave attributes, which are left out."""
    match arguments:
        case (StoredTensor() as tensor, bool(), dict(hooks), _) if not hooks:
            return tensor
    raise _strange_call("torch._utils._rebuild_parameter_with_state")


def _tensor_with_state(arguments: Arguments) -> StoredTensor:
    """Return a tensor that somebody gave attributes, which are left out."""
    match arguments:
        case (Global(name=rebuild), Global(name=kind), tuple(inner), _) if (
            rebuild in _VIEWS and kind in _TENSOR_CLASSES
        ):
            return _VIEWS[rebuild](inner)
    raise _strange_call("torch._tensor._rebuild_from_type_v2")


def _attribute(arguments: Arguments) -> Opaque:
    match arguments:
        case (Global(name=kind), str()) if kind in HARMLESS:
            return Opaque(kind)
    raise _strange_call("builtins.getattr")


def _strange_call(name: str) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(f"it calls {shown(name)}, which a state dict never does; {ADVICE}")


def _strange(dtype: str, place: int) -> Callable[[Arguments], TensorInfo]:
    """Return what describes a tensor of a kind that cannot become weights, whose size is an argument."""
    return lambda arguments: TensorInfo(dtype, _sizes(arguments[place]))


def _sparse(arguments: Arguments) -> TensorInfo:
    match arguments:
        # Indices, values and size; or, of the compressed layouts, two kinds of indices, values and size.
        case (_, (_, _, tuple(size), *_)) | (_, (_, _, _, tuple(size), *_)):
            return TensorInfo("sparse", _sizes(size))
    raise ValueError("a sparse tensor without a size")


_VIEWS: dict[str, Callable[[Arguments], StoredTensor]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
}
_REBUILDS: dict[str, Callable[[Arguments], object]] = {
    **_VIEWS,
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _ordered_dict,
    "collections.defaultdict": lambda arguments: _ordered_dict(arguments[1:]),
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_state,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_qtensor": _strange("quantised", 2),
    "torch._utils._rebuild_nested_tensor": lambda _: TensorInfo("nested", ()),
    "torch._utils._rebuild_meta_tensor_no_storage": _strange("meta", 1),
    "torch.Size": _size,
    "torch.device": lambda _: Opaque("torch.device"),
    "torch.serialization._get_layout": lambda _: Opaque("torch.layout"),
    "builtins.getattr": _attribute,
}

ALLOWED_GLOBALS = frozenset((*_REBUILDS, *_STORAGES, *_TENSOR_CLASSES, *(f"torch.{name}" for name in DTYPE_BYTES)))

HARMLESS = frozenset(
    f"{module}.{name}"
    for module, names in {
        "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple",
        "_codecs": "encode",
        "copyreg": "_reconstructor",
        "collections": "deque",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "uuid": "UUID",
        "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
        "argparse": "Namespace",
        "types": "SimpleNamespace",
        "numpy": "dtype ndarray bool bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64",
        "numpy.core.multiarray": "_reconstruct scalar",
        "numpy._core.multiarray": "_reconstruct scalar",
        "numpy.core.numeric": "_frombuffer",
        "numpy._core.numeric": "_frombuffer",
        "numpy.random._pickle": "__bit_generator_ctor __generator_ctor __randomstate_ctor",
        "numpy.random._pcg64": "PCG64",
        "numpy.random._mt19937": "MT19937",
        "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
        "torch": "per_channel_affine per_tensor_affine",
        "torch.torch_version": "TorchVersion",
        "typing": "Any",
        "addict.addict": "Dict",
        "easydict": "EasyDict",
        "yacs.config": "CfgNode",
        "mmcv.utils.config": "ConfigDict",
        "mmengine.config.config": "Config ConfigDict",
        "mmengine.logging.history_buffer": "HistoryBuffer",
        "omegaconf.base": "ContainerMetadata Metadata",
        "omegaconf.dictconfig": "DictConfig",
        "omegaconf.listconfig": "ListConfig",
        "omegaconf.nodes": "AnyNode BooleanNode FloatNode IntegerNode StringNode",
        "lightning.fabric.utilities.data": "AttributeDict",
        "lightning_fabric.utilities.data": "AttributeDict",
        "pytorch_lightning.utilities.parsing": "AttributeDict",
    }.items()
    for name in names.split()
)
"""Types of values that training programs save beside weights, and what pickles make them with."""

# As Python 2 called them, which is what torch.save writes.
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_NAMES = {"builtins.xrange": "builtins.range", "builtins.unicode": "builtins.str", "builtins.long": "builtins.int"}


MAX_OPCODES = 500_000
"""The pickle of vit_h has some 20 thousand; one with optimizer states a few times that. Items that are copied count."""
MAX_PROTOCOL = 5


@dataclass(frozen=True, slots=True)
class PickleScan:
    """What a pickle holds."""

    value: object
    """Its object as dicts, lists, tuples, plain values, `StoredTensor` and `Opaque`."""
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
        reason = shown(str(error) if isinstance(error, ValueError) else type(error).__name__)
        message = f"the pickle inside is malformed ({reason}); the file is damaged or crafted"
        raise CheckpointError(message, code="malformed_pickle") from error


class _Machine:
    """The stack, the marks and the memo of one run. Method names are those of the opcodes."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[object, object] = {}
        self.tensors: list[StoredTensor] = []
        self.left = MAX_OPCODES

    def charge(self, count: int) -> None:
        """Take so many steps, one for an opcode and one for an item that is copied, from those that are left."""
        self.left -= count
        if self.left < 0:
            raise ValueError(f"more than {MAX_OPCODES} opcodes or copied items")

    def run(self, data: bytes) -> object:
        for opcode, argument, position in pickletools.genops(data):
            name = opcode.name
            self.left -= 1
            if self.left < 0:
                self.charge(0)
            if name == "STOP":
                return self.finish(len(data) - (position or 0) - 1)
            if name in _PUSHES:
                self.stack.append(argument)
            elif name in _HANDLERS:
                _HANDLERS[name](self, argument)
            else:
                # INST carries its class in the opcode; the others find theirs on the stack, already allowed or refused.
                asked = f"{name} {shown(argument).replace(' ', '.')}" if argument is not None else name
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
            raise ValueError(f"protocol {shown(version)}")

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
        if not isinstance(target, list | Opaque):
            raise ValueError(f"items are appended to {kind_of(target)}")
        if isinstance(target, list):
            target.extend(items)

    def add_items(self, _: object) -> None:
        self.pop_to_mark()
        if not isinstance(self.stack[-1], Opaque):
            raise ValueError(f"items are added to {kind_of(self.stack[-1])}")

    def frozen_set(self, _: object) -> None:
        self.pop_to_mark()
        self.stack.append(Opaque("builtins.frozenset"))

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
        if place not in self.memo:
            raise ValueError(f"nothing is kept at {shown(place)}")
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
        full = f"{_MODULES.get(module, module)}.{name}" if isinstance(module, str) else ""
        full = _NAMES.get(full, full)
        known = isinstance(name, str) and (full in ALLOWED_GLOBALS or full in HARMLESS)
        if not known:
            raise UnsafeCheckpoint(f"it asks for {shown(module)}.{shown(name)}, which could run code; {ADVICE}")
        self.stack.append(Global(full))

    def reduce(self, _: object) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        # What copies its argument, such as a dict from a dict, does so each time that it is called.
        if isinstance(arguments, tuple):
            self.charge(sum(len(item) for item in arguments if isinstance(item, list | dict)))
        made = call(function, arguments)
        # A parameter is the tensor that it was called with, which is counted already.
        if isinstance(made, StoredTensor) and not _is_among(made, arguments):
            self.tensors.append(made)
            if len(self.tensors) > MAX_TENSORS:
                raise ValueError(f"more than {MAX_TENSORS} tensors")
        self.stack.append(made)

    def new_object(self, count: int) -> None:
        """Describe an object that is made without its ``__init__``; only harmless ones are."""
        *_, kind = [self.stack.pop() for _ in range(count)]
        if not isinstance(kind, Global) or kind.name not in HARMLESS:
            raise UnsafeCheckpoint(f"it uses the opcode NEWOBJ on {kind_of(kind)}, which no state dict needs; {ADVICE}")
        self.stack.append(Opaque(kind.name))

    def build(self, _: object) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        # A module's state dict carries its version numbers as the attribute _metadata; it is of no use here.
        harmless = isinstance(target, OrderedDictValue) and isinstance(state, dict) and set(state) == {"_metadata"}
        if not harmless and not isinstance(target, Opaque):
            message = f"it sets the state of {kind_of(target)} (BUILD), which could change what its code does; {ADVICE}"
            raise UnsafeCheckpoint(message)

    def persistent_id(self, _: object) -> None:
        self.stack.append(storage(self.stack.pop()))


def _is_among(made: object, arguments: object) -> bool:
    return isinstance(arguments, tuple) and any(item is made for item in arguments)


def _tuple_of(count: int) -> Callable[[_Machine, object], None]:
    def make(machine: _Machine, _: object) -> None:
        start = len(machine.stack) - count
        if start < 0:
            raise IndexError
        machine.stack[start:] = [tuple(machine.stack[start:])]

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
    "NEWOBJ": lambda machine, _: machine.new_object(2),
    "NEWOBJ_EX": lambda machine, _: machine.new_object(3),
    "EMPTY_SET": lambda machine, _: machine.stack.append(Opaque("builtins.set")),
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
    "BINPERSID": _Machine.persistent_id,
}
