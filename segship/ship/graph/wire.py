# SPDX-License-Identifier: Apache-2.0
"""ONNX files changed as bytes, without onnx: fields of protobuf messages, written and rearranged.

`segship.bundle.onnx_file` reads them; what is written here is the little that graphs need once they are traced. Follows
protobuf.dev/programming-guides/encoding; numbers of fields are those of onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from segship.bundle.onnx_file import (
    BYTES,
    GRAPH,
    MODEL,
    NODE,
    ONNX_DTYPES,
    OPSET,
    TENSOR,
    VALUE_INFO,
    VARINT,
    Message,
    WireReader,
)
from segship.bundle.onnx_rules import OWN_DOMAINS
from segship.errors import ExportError

ONNX_CODES = {name: code for code, (name, _) in ONNX_DTYPES.items()}
"""numpy-like name of a dtype -> TensorProto.DataType."""
MODEL_GRAPH, MODEL_OPSET = 7, 8
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE_INFO = 1, 5, 11, 12, 13
NODE_INPUT, NODE_OUTPUT, NODE_OP_TYPE, NODE_ATTRIBUTE = 1, 2, 4, 5
_MOST_FIELDS = 10_000_000
Content = bytes | int


def fields_of(message: Message, data: bytes) -> list[tuple[int, Content]]:
    """Return the fields of a message in their order: number, and its bytes, or the number itself of a varint."""
    reader = WireReader(data, _MOST_FIELDS)
    return [
        (number, first if wire == VARINT else data[first:last])
        for number, wire, first, last in reader.fields(message, 0, len(data))
    ]


def field(number: int, content: Content) -> bytes:
    """Return a field: text, bytes or a message with its length before it, or a number."""
    if isinstance(content, int):
        return tag(number, VARINT) + varint(content)
    return tag(number, BYTES) + varint(len(content)) + content


def tag(number: int, wire: int) -> bytes:
    """Return what stands before every field."""
    return varint(number << 3 | wire)


def varint(value: int) -> bytes:
    """Return an unsigned number in 7 bits a byte, lowest first; the highest bit is set on all but the last.

    Examples
    --------
    >>> varint(300).hex()
    'ac02'
    """
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def first_text(message: Message, content: Content) -> str:
    """Return the text of field 1 of a message: the name of a value, the domain of an operator set."""
    found = dict(fields_of(message, _bytes(content)))
    return _bytes(found.get(1, b"")).decode()


def node(op_type: str, source: str, result: str, attribute: bytes = b"") -> bytes:
    """Return a node of one input and one output, as a field of a graph."""
    content = field(NODE_INPUT, source.encode()) + field(NODE_OUTPUT, result.encode())
    return field(GRAPH_NODE, content + field(NODE_OP_TYPE, op_type.encode()) + attribute)


def cast_to_float(source: str, result: str) -> bytes:
    """Return a Cast to float32, as a field of a graph."""
    to_float = field(1, b"to") + field(3, ONNX_CODES["float32"]) + field(20, 2)
    return node("Cast", source, result, field(NODE_ATTRIBUTE, to_float))


def own_domain_only(model: bytes) -> bytes:
    """Return a model without the operator sets of other domains, all of which ONNX Runtime lists in what it writes."""
    return b"".join(
        field(number, content)
        for number, content in fields_of(MODEL, model)
        if number != MODEL_OPSET or first_text(OPSET, content) in OWN_DOMAINS
    )


def parts_of(model: bytes, outputs: Iterable[Collection[str]]) -> Iterator[bytes]:
    """Yield, for each of some sets of a graph's outputs, the model that makes these alone of the inputs they need."""
    fields = fields_of(MODEL, model)
    graph = fields_of(GRAPH, next(_bytes(content) for number, content in fields if number == MODEL_GRAPH))
    # Of every field of the graph what it needs and what it gives, in names.
    names = [_names_of(number, content) for number, content in graph]
    for some in outputs:
        wanted = set(some)
        kept = []
        for (number, content), (needed, given) in zip(reversed(graph), reversed(names), strict=True):
            # Initializers, inputs and outputs stand behind the nodes, whose needs are not known there yet.
            if number == GRAPH_NODE and not wanted.isdisjoint(given):
                wanted.update(needed)
                kept.append((number, content))
        tensors = [
            (number, content)
            for (number, content), (_, given) in zip(graph, names, strict=True)
            if (number in (GRAPH_INITIALIZER, GRAPH_INPUT) and not wanted.isdisjoint(given))
            or (number == GRAPH_OUTPUT and not given.isdisjoint(some))
        ]
        part = b"".join(field(number, content) for number, content in (*reversed(kept), *tensors))
        yield b"".join(
            field(number, field(2, b"part") + part if number == MODEL_GRAPH else content) for number, content in fields
        )


def _names_of(number: int, content: Content) -> tuple[set[str], set[str]]:
    """Return the names that a field of a graph needs, and those that it gives."""
    if number == GRAPH_NODE:
        parts = fields_of(NODE, _bytes(content))
        needed, given = (
            {_bytes(name).decode() for kind, name in parts if kind == wanted} for wanted in (NODE_INPUT, NODE_OUTPUT)
        )
        return needed, given
    if number == GRAPH_INITIALIZER:
        return set(), {next(_bytes(name).decode() for kind, name in fields_of(TENSOR, _bytes(content)) if kind == 8)}
    if number in (GRAPH_INPUT, GRAPH_OUTPUT):
        return set(), {first_text(VALUE_INFO, content)}
    return set(), set()


def add_logits(source: Path, twin: Path) -> None:
    """Write a graph that gives out, besides the classes, the ``logits`` that they are taken from.

    It lies in the folder of the source, whose weights in a file of their own serve both.

    Raises
    ------
    ExportError
        ``no_argmax`` when the graph gives classes and does not take them from logits.
    """
    # Of four axes, whose sizes a reader finds by itself.
    float_tensor = field(1, field(1, ONNX_CODES["float32"]) + field(2, 4 * field(1, b"")))
    with twin.open("wb") as stream:
        for number, content in fields_of(MODEL, source.read_bytes()):
            if number == MODEL_GRAPH:
                graph = _bytes(content)
                output = field(GRAPH_OUTPUT, field(1, b"logits") + field(2, float_tensor))
                content = graph + node("Identity", _argmax_input(graph), "logits") + output
            stream.write(field(number, content))


def _argmax_input(graph: bytes) -> str:
    nodes = [fields_of(NODE, _bytes(content)) for number, content in fields_of(GRAPH, graph) if number == GRAPH_NODE]
    found = [parts for parts in nodes if (NODE_OP_TYPE, b"ArgMax") in parts]
    if len(found) != 1:
        message = f"the graph takes classes by {len(found)} ArgMax nodes, and one is expected; report this"
        raise ExportError(message, code="no_argmax")
    return next(_bytes(content).decode() for number, content in found[0] if number == NODE_INPUT)


def _bytes(content: Content) -> bytes:
    assert isinstance(content, bytes), "a message, not a number"
    return content
