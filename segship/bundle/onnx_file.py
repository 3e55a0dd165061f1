# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file declares, read without onnx: `read_graph`, on the ground of `WireReader`.

Protobuf messages are walked by position: no recursion, no copies, bounded by a budget of fields. Follows
protobuf.dev/programming-guides/encoding, and is stricter than protobuf where leniency would let two readers see two
different messages: a field given twice, a wrong wire type and a group are errors; a field that the caller's table does
not know is handed to `WireReader.odd`.
"""

from __future__ import annotations

import math
import mmap
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from segship.errors import BundleError
from segship.files import open_regular
from segship.spec import Dimension, TensorSpec

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Buffer = bytes | mmap.mmap
_MAX_ODDITIES = 20


@dataclass(frozen=True, slots=True)
class Message:
    """The fields of one message: number -> wire type. Numbers in ``repeated`` may come packed as well."""

    name: str
    singular: Mapping[int, int]
    repeated: Mapping[int, int]


def malformed(what: str, position: int) -> BundleError:
    """Return the error for bytes that are no ONNX file."""
    message = f"not a well-formed ONNX file: {what} near byte {position}; export the graph again or fetch it anew"
    return BundleError(message, code="onnx_malformed")


def too_many(what: str, limit: int) -> BundleError:
    """Return the error for a file that exceeds a limit of the reader."""
    return BundleError(f"the ONNX graph has more than {limit} {what}, which is the limit", code="onnx_too_large")


@dataclass(slots=True)
class WireReader:
    """Reads one buffer; counts the fields it has left and collects what it did not expect."""

    buffer: Buffer
    fields_left: int
    oddities: dict[str, None] = field(default_factory=dict)

    def odd(self, what: str) -> None:
        """Note something that an ordinary file does not have; only the first 20 are kept."""
        if len(self.oddities) < _MAX_ODDITIES:
            self.oddities[what] = None

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """Return the unsigned 64-bit number at a position, and the position after it."""
        value = shift = 0
        # 10 bytes of 7 bits hold 64 bits; protobuf readers stop there too.
        for at in range(position, min(end, position + 10)):
            byte = self.buffer[at]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + 1
            shift += 7
        raise malformed("a number is cut off or too long", position)

    def fields(self, message: Message, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (field number, wire type, start of the data, end of the data).

        Of a varint, the third value is the number itself.
        """
        seen: set[int] = set()
        position = start
        while position < end:
            self.fields_left -= 1
            if self.fields_left < 0:
                raise BundleError("the ONNX graph has too many fields to be read", code="onnx_too_large")
            at = position
            tag, position = self.varint(position, end)
            number, wire = tag >> 3, tag & 7
            first, position = self._payload(wire, position, end)
            if not self._is_known(message, number, wire, at):
                continue
            if number in message.singular:
                if number in seen:
                    raise malformed(f"{message.name} has field {number} twice", at)
                seen.add(number)
            yield number, wire, first, position

    def _payload(self, wire: int, position: int, end: int) -> tuple[int, int]:
        if wire == VARINT:
            return self.varint(position, end)
        if wire == BYTES:
            size, position = self.varint(position, end)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise malformed(f"wire type {wire} is not used by ONNX", position)
        if size > end - position:
            raise malformed(f"a field of {size} bytes does not fit into its message", position)
        return position, position + size

    def _is_known(self, message: Message, number: int, wire: int, at: int) -> bool:
        if not 0 < number < 2**29:
            raise malformed(f"field number {number} is not possible", at)
        expected = message.singular.get(number, message.repeated.get(number))
        if expected is None:
            self.odd(f"unknown field {number} in {message.name}")
            return False
        if wire != expected and not (number in message.repeated and wire == BYTES):
            raise malformed(f"field {number} of {message.name} has wire type {wire}", at)
        return True

    def text(self, start: int, end: int) -> str:
        """Return a string field."""
        try:
            return self.buffer[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            raise malformed("a name is not UTF-8", start) from error

    def packed_numbers(self, start: int, end: int, most: int) -> list[int]:
        """Return the signed numbers of a packed field, of which there may be at most ``most``."""
        numbers: list[int] = []
        while start < end:
            if len(numbers) == most:
                raise malformed(f"more than {most} numbers in a field that holds few", start)
            value, start = self.varint(start, end)
            numbers.append(signed(value))
        return numbers

    def count_varints(self, start: int, end: int) -> int:
        """Return how many numbers a packed field holds, without decoding them."""
        # A byte below 128 ends a number. The view is not bound to a name, so that a mapped file can be closed.
        return int(np.count_nonzero(np.frombuffer(self.buffer, np.uint8, end - start, start) < 0x80))


def signed(value: int) -> int:
    """Return the two's complement meaning of an unsigned 64-bit number."""
    return value - 2**64 if value >= 2**63 else value


ONNX_DTYPES: dict[int, tuple[str, int]] = {
    1: ("float32", 32),
    2: ("uint8", 8),
    3: ("int8", 8),
    4: ("uint16", 16),
    5: ("int16", 16),
    6: ("int32", 32),
    7: ("int64", 64),
    9: ("bool", 8),
    10: ("float16", 16),
    11: ("float64", 64),
    12: ("uint32", 32),
    13: ("uint64", 64),
    16: ("bfloat16", 16),
    21: ("uint4", 4),
    22: ("int4", 4),
}
"""Code of TensorProto.DataType -> numpy-like name and bits of an element; others are named ``unknown_CODE``."""

DTYPE_BITS = dict(ONNX_DTYPES.values())

_MAX_READ_RANK = 64

SIZE_INPUTS: Mapping[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1),
    "Resize": (2, 3),
    "Tile": (1,),
}
"""Operators whose result can be far larger than what they are given -> the inputs that say how large."""
_INT64, _FLOAT32 = 7, 1
_MAX_SIZES = 16


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """Counts at which reading a graph stops.

    Attributes
    ----------
    bytes
        Of the file; 2 GiB is protobuf's own limit.
    nodes, initializers, constants
        Of the whole graph; constants are tensors that stand in attributes of nodes.
    fields
        Protobuf fields that are looked at, which bounds the time.
    """

    bytes: int = 2**31 - 1
    nodes: int = 20_000
    initializers: int = 5_000
    constants: int = 20_000
    fields: int = 2_000_000


@dataclass(frozen=True, slots=True)
class OnnxTensor:
    """One initializer, or a constant in a node.

    Attributes
    ----------
    name
        As it stands in the file.
    dtype, shape
        As declared; nothing says yet that the data agree.
    stored_bytes
        Bytes that the data found in the file take in memory; 0 for external data.
    location
        0 if the data stand in the file, 1 if outside it; other numbers have no meaning.
    external_entries
        Key and value pairs of ``external_data``, in order, duplicates kept.
    values
        The numbers of a tensor of up to 16 int64 or float32 that stand in the file; sizes are made of such.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored_bytes: int
    location: int
    external_entries: tuple[tuple[str, str], ...]
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One node: its operator, the names it takes and makes, and the numbers of a small constant that stands in it."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """What an ONNX file declares.

    Attributes
    ----------
    inputs, outputs
        An axis without size or name is ``?``; a tensor without a shape has the shape ``("...",)``.
    operators
        (domain, op_type) -> number of nodes; subgraphs and functions are not entered.
    constants
        Tensors that stand in attributes of nodes.
    sizes
        Operators of `SIZE_INPUTS` whose size stands in the file, and the product of its numbers.
    oddities
        Things that an ordinary graph does not have, such as ``local functions`` or ``subgraph in Loop``.
    """

    file_bytes: int
    ir_version: int
    producer: str
    opset_imports: tuple[tuple[str, int], ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: Mapping[tuple[str, str], int]
    initializers: tuple[OnnxTensor, ...]
    constants: tuple[OnnxTensor, ...]
    sizes: tuple[tuple[str, float], ...]
    oddities: tuple[str, ...]
    nodes: tuple[OnnxNode, ...] = ()

    @property
    def external_locations(self) -> tuple[str, ...]:
        """Names of the files that hold weights, each once, sorted."""
        tensors = self.initializers + self.constants
        return tuple(
            sorted({value for tensor in tensors for key, value in tensor.external_entries if key == "location"})
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a summary that JSON can carry: weights by dtype and by where they lie, operators by count."""
        most_used = sorted(self.operators.items(), key=lambda item: (-item[1], item[0]))
        return {
            "file_bytes": self.file_bytes,
            "ir_version": self.ir_version,
            "producer": self.producer,
            "opset_imports": {domain or "ai.onnx": version for domain, version in self.opset_imports},
            "inputs": [_tensor_dict(spec) for spec in self.inputs],
            "outputs": [_tensor_dict(spec) for spec in self.outputs],
            "nodes": sum(self.operators.values()),
            "operators": {operator_name(domain, op_type): count for (domain, op_type), count in most_used},
            "initializers": len(self.initializers),
            "initializer_dtypes": dict(sorted(Counter(tensor.dtype for tensor in self.initializers).items())),
            "inline_weight_bytes": sum(tensor.stored_bytes for tensor in self.initializers),
            "external_locations": list(self.external_locations),
            "oddities": list(self.oddities),
        }


def operator_name(domain: str, op_type: str) -> str:
    """Return how an operator is written for people: with its domain unless that is ONNX's own."""
    return op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"


def _tensor_dict(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _text(*numbers: int) -> dict[int, int]:
    return dict.fromkeys(numbers, BYTES)


# Names of the fields stand in onnx/onnx.proto; only those that are used are named again below.
MODEL = Message("ModelProto", {1: VARINT, 5: VARINT, **_text(2, 3, 4, 6, 7)}, _text(8, 14, 20, 25, 26))
OPSET = Message("OperatorSetIdProto", {1: BYTES, 2: VARINT}, {})
GRAPH = Message("GraphProto", _text(2, 10), _text(1, 5, 11, 12, 13, 14, 15, 16))
NODE = Message("NodeProto", _text(3, 4, 6, 7, 8), _text(1, 2, 5, 9, 10))
_ATTRIBUTE = Message(
    "AttributeProto",
    {2: FIXED32, 3: VARINT, 20: VARINT, **_text(1, 4, 5, 6, 13, 14, 21, 22)},
    {7: FIXED32, 8: VARINT, **_text(9, 10, 11, 15, 23)},
)
TENSOR = Message(
    "TensorProto",
    {2: VARINT, 14: VARINT, **_text(3, 8, 9, 12)},
    {1: VARINT, 4: FIXED32, 5: VARINT, 7: VARINT, 10: FIXED64, 11: VARINT, **_text(6, 13, 16)},
)
_ENTRY = Message("StringStringEntryProto", _text(1, 2), {})
VALUE_INFO = Message("ValueInfoProto", _text(1, 2, 3), _text(4))
_TYPE = Message("TypeProto", _text(1, 4, 5, 6, 7, 8, 9), {})
_TENSOR_TYPE = Message("TypeProto.Tensor", {1: VARINT, 2: BYTES}, {})
_SHAPE = Message("TensorShapeProto", {}, _text(1))
_DIMENSION = Message("TensorShapeProto.Dimension", {1: VARINT, **_text(2, 3)}, {})

_MODEL_ODDITIES = {20: "training info", 25: "local functions", 26: "device configuration"}
_ATTRIBUTE_ODDITIES = {6: "subgraph", 11: "subgraph", 14: "type", 15: "type", 22: "sparse tensor", 23: "sparse tensor"}


def read_graph(source: bytes | str | os.PathLike[str], limits: GraphLimits | None = None) -> OnnxGraph:
    """Return what an ONNX file declares, from its bytes or its path; weights are skipped, not read.

    Raises
    ------
    BundleError
        ``onnx_malformed`` if the bytes are no ONNX file, ``onnx_too_large`` beyond the limits.
    """
    limits = limits or GraphLimits()
    if isinstance(source, bytes):
        if len(source) > limits.bytes:
            raise too_many("bytes", limits.bytes)
        return _read(source, limits)
    with open_regular(source) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limits.bytes:
            raise too_many("bytes", limits.bytes)
        if size == 0:
            raise malformed("the file is empty", 0)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _read(mapped, limits)


def _read(buffer: Buffer, limits: GraphLimits) -> OnnxGraph:
    return _ModelReader(WireReader(buffer, limits.fields), limits).model(len(buffer))


@dataclass(slots=True)
class _ModelReader:
    """Walks ModelProto from the top; every method takes the first and last position of one message."""

    wire: WireReader
    limits: GraphLimits
    operators: Counter[tuple[str, str]] = field(default_factory=Counter)
    initializers: list[OnnxTensor] = field(default_factory=list)
    constants: list[OnnxTensor] = field(default_factory=list)
    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)
    sized: list[tuple[str, str]] = field(default_factory=list)
    made: dict[str, OnnxTensor] = field(default_factory=dict)
    nodes: list[OnnxNode] = field(default_factory=list)

    def model(self, end: int) -> OnnxGraph:
        values: dict[int, tuple[int, int]] = {}
        opsets: list[tuple[str, int]] = []
        for number, _, first, last in self.wire.fields(MODEL, 0, end):
            if number == 8:
                opsets.append(self._opset(first, last))
            elif number in _MODEL_ODDITIES:
                self.wire.odd(_MODEL_ODDITIES[number])
            else:
                values[number] = (first, last)
        if 7 not in values:
            raise malformed("there is no graph in it", 0)
        self._graph(*values[7])
        initialized = {tensor.name for tensor in self.initializers}
        return OnnxGraph(
            file_bytes=end,
            ir_version=signed(values[1][0]) if 1 in values else 0,
            producer=" ".join(self.wire.text(*values[number]) for number in (2, 3) if number in values),
            opset_imports=tuple(opsets),
            # Up to IR version 3 every initializer is listed as an input as well.
            inputs=tuple(spec for spec in self.inputs if spec.name not in initialized),
            outputs=tuple(self.outputs),
            operators=dict(self.operators),
            initializers=tuple(self.initializers),
            constants=tuple(self.constants),
            sizes=tuple(self._sizes()),
            oddities=tuple(self.wire.oddities),
            nodes=tuple(self.nodes),
        )

    def _sizes(self) -> Iterator[tuple[str, float]]:
        known = {**{tensor.name: tensor for tensor in self.initializers}, **self.made}
        for op_type, name in self.sized:
            if name in known and known[name].values:
                yield op_type, math.prod(max(1.0, abs(value)) for value in known[name].values)

    def _opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, _, first, last in self.wire.fields(OPSET, start, end):
            if number == 1:
                domain = self.wire.text(first, last)
            else:
                version = signed(first)
        return domain, version

    def _graph(self, start: int, end: int) -> None:
        for number, _, first, last in self.wire.fields(GRAPH, start, end):
            if number == 1:
                self._node(first, last)
            elif number == 5:
                if len(self.initializers) == self.limits.initializers:
                    raise too_many("initializers", self.limits.initializers)
                self.initializers.append(self._tensor(first, last))
            elif number in (11, 12):
                (self.inputs if number == 11 else self.outputs).append(self._value_info(first, last))
            elif number == 15:
                self.wire.odd("sparse initializer")

    def _node(self, start: int, end: int) -> None:
        if len(self.nodes) == self.limits.nodes:
            raise too_many("nodes", self.limits.nodes)
        op_type = domain = ""
        attributes: list[tuple[int, int]] = []
        inputs: list[str] = []
        outputs: list[str] = []
        for number, _, first, last in self.wire.fields(NODE, start, end):
            if number in (1, 2):
                (inputs if number == 1 else outputs).append(self.wire.text(first, last))
            elif number == 4:
                op_type = self.wire.text(first, last)
            elif number == 7:
                domain = self.wire.text(first, last)
            elif number == 5:
                attributes.append((first, last))
            elif number in (8, 10):
                self.wire.odd("overload" if number == 8 else "device configuration")
        self.operators[domain, op_type] += 1
        asked = [inputs[index] for index in SIZE_INPUTS.get(op_type, ()) if index < len(inputs)]
        self.sized.extend((op_type, name) for name in asked)
        before = len(self.constants)
        for first, last in attributes:
            self._attribute(op_type, first, last)
        if op_type == "Constant" and outputs and len(self.constants) > before:
            self.made[outputs[0]] = self.constants[before]
        values = self.constants[before].values if len(self.constants) > before else ()
        self.nodes.append(OnnxNode(op_type, tuple(inputs), tuple(outputs), values))

    def _attribute(self, op_type: str, start: int, end: int) -> None:
        for number, _, first, last in self.wire.fields(_ATTRIBUTE, start, end):
            if number in _ATTRIBUTE_ODDITIES:
                self.wire.odd(f"{_ATTRIBUTE_ODDITIES[number]} in {op_type}")
            elif number in (5, 10):
                if len(self.constants) == self.limits.constants:
                    raise too_many("constants", self.limits.constants)
                self.constants.append(self._tensor(first, last))

    def _tensor(self, start: int, end: int) -> OnnxTensor:
        name, code, location, stored_bits = "", 0, 0, 0
        shape: list[int] = []
        entries: list[tuple[str, str]] = []
        typed: list[tuple[int, int, int, int]] = []
        raw = (0, 0)
        for number, wire, first, last in self.wire.fields(TENSOR, start, end):
            if number == 1:
                shape += [signed(first)] if wire == VARINT else self.wire.packed_numbers(first, last, _MAX_READ_RANK)
                if len(shape) > _MAX_READ_RANK:
                    raise malformed(f"a tensor has more than {_MAX_READ_RANK} axes", first)
            elif number == 2:
                code = first
            elif number == 8:
                name = self.wire.text(first, last)
            elif number == 9:
                stored_bits, raw = 8 * (last - first), (first, last)
            elif number == 13:
                entries.append(self._entry(first, last))
            elif number == 14:
                location = first
            elif number in (3, 6):
                self.wire.odd("segmented tensor" if number == 3 else "string tensor")
            else:
                typed.append((number, wire, first, last))
        dtype, bits = ONNX_DTYPES.get(code, (f"unknown_{code}", 0))
        stored_bits += sum(self._typed_bits(*part, bits) for part in typed)
        values = self._values(code, raw, typed) if math.prod(shape) <= _MAX_SIZES else ()
        return OnnxTensor(name, dtype, tuple(shape), (stored_bits + 7) // 8, location, tuple(entries), values)

    def _values(self, code: int, raw: tuple[int, int], typed: list[tuple[int, int, int, int]]) -> tuple[float, ...]:
        """Return the numbers of a small tensor, from whichever field has them."""
        each = {_INT64: 8, _FLOAT32: 4}.get(code, 0)
        if not each or raw[1] - raw[0] > _MAX_SIZES * each:
            return ()
        data = self.wire.buffer[raw[0] : raw[1]]
        values: list[float] = (
            np.frombuffer(data, f"<{'i' if code == _INT64 else 'f'}{each}").tolist() if len(data) % each == 0 else []
        )
        for number, wire, first, last in typed:
            if (number, code) == (7, _INT64):
                values += [signed(first)] if wire == VARINT else self.wire.packed_numbers(first, last, _MAX_SIZES)
            elif (number, code) == (4, _FLOAT32) and (last - first) % 4 == 0 and last - first <= 4 * _MAX_SIZES:
                values += np.frombuffer(self.wire.buffer[first:last], "<f4").tolist()
        return tuple(values)

    def _typed_bits(self, number: int, wire: int, first: int, last: int, bits: int) -> int:
        """Return the bits in memory of data that stand in a typed field instead of in ``raw_data``."""
        if number in (4, 10):
            return 8 * (last - first)
        # int32_data carries all small integers and halves, one a number; two of 4 bits share one.
        each = max(bits, 8) if number == 5 else bits
        return each * (1 if wire == VARINT else self.wire.count_varints(first, last)) if number != 16 else 0

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        parts = {1: "", 2: ""}
        for number, _, first, last in self.wire.fields(_ENTRY, start, end):
            parts[number] = self.wire.text(first, last)
        return parts[1], parts[2]

    def _value_info(self, start: int, end: int) -> TensorSpec:
        name, dtype = "", "?"
        shape: tuple[Dimension, ...] = ("...",)
        for number, _, first, last in self.wire.fields(VALUE_INFO, start, end):
            if number == 1:
                name = self.wire.text(first, last)
            elif number == 2:
                dtype, shape = self._type(first, last)
        return TensorSpec(name, dtype, shape)

    def _type(self, start: int, end: int) -> tuple[str, tuple[Dimension, ...]]:
        dtype = "not_a_tensor"
        shape: tuple[Dimension, ...] = ("...",)
        for number, _, first, last in self.wire.fields(_TYPE, start, end):
            if number != 1:
                continue
            dtype = "unknown_0"
            for part, _, begin, stop in self.wire.fields(_TENSOR_TYPE, first, last):
                if part == 1:
                    dtype = ONNX_DTYPES.get(begin, (f"unknown_{begin}", 0))[0]
                else:
                    shape = self._shape(begin, stop)
        return dtype, shape

    def _shape(self, start: int, end: int) -> tuple[Dimension, ...]:
        shape: list[Dimension] = []
        for _, _, first, last in self.wire.fields(_SHAPE, start, end):
            size: Dimension = "?"
            for number, _, begin, stop in self.wire.fields(_DIMENSION, first, last):
                if number == 1:
                    size = signed(begin)
                elif number == 2:
                    size = self.wire.text(begin, stop) or "?"
            shape.append(size)
            if len(shape) > _MAX_READ_RANK:
                raise malformed(f"a tensor has more than {_MAX_READ_RANK} axes", start)
        return tuple(shape)
