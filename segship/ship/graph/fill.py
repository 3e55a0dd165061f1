# SPDX-License-Identifier: Apache-2.0
"""Put the weights of a checkpoint into a graph that has none. Needs neither torch nor onnx.

A `Template` is what `segship.ship.graph.cut` makes of a traced module: the ``body`` is the graph, whose weights are
inputs; ``prepare`` makes those of them that are no tensors of the checkpoint. It runs in ONNX Runtime, some outputs at
a time, and every weight goes to the file as soon as it is there, so that no second copy of all of them ever exists.

A checkpoint that was saved in half precision becomes float32 when it is read, and would be written at twice its size.
Such weights can go back to float16 in the file, where that holds them exactly, each followed by a Cast that runtimes
fold away when they load the graph. No value changes, so there is nothing to lose; the arithmetic stays float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from segship.arrays import AnyArray
from segship.bundle.artifacts import weights_file
from segship.bundle.onnx_file import BYTES, GRAPH, MODEL, VALUE_INFO, read_graph
from segship.errors import CheckpointError
from segship.ship.graph import wire
from segship.spec import GraphSpec, TensorSpec

LARGEST_INLINE_BYTES = 1_900_000_000
"""Protobuf stops at 2 GiB; some room is left for the nodes."""
SMALLEST_HALVED_ELEMENTS = 256
SMALLEST_EXTERNAL_BYTES = 1024
_BYTES_AT_A_TIME = 64 << 20
_LENGTH_BYTES = 5


@dataclass(frozen=True, slots=True)
class Template:
    """A graph without weights: two ONNX files.

    Attributes
    ----------
    prepare
        Tensors of the checkpoint to weights that have to be made of them.
    body
        The graph of a contract, and its weights as further inputs: outputs of ``prepare`` and tensors of the
        checkpoint, by their names.
    """

    prepare: bytes
    body: bytes


def fill_graph(
    template: Template,
    spec: GraphSpec,
    tensors: Mapping[str, AnyArray],
    path: Path,
    *,
    halves: bool = False,
    largest_inline_bytes: int = LARGEST_INLINE_BYTES,
) -> None:
    """Write the graph of a template with weights: ``path``, and ``path`` + ``.data`` beside it if they are too large.

    Parameters
    ----------
    spec
        The contract of the graph; what else the body takes are weights.
    tensors
        The checkpoint's tensors by name, weights in float32; more than are needed do no harm.
    halves
        Store weights as float16 where it holds them exactly.

    Raises
    ------
    CheckpointError
        ``state_mismatch`` when a tensor is missing.
    """
    own = {tensor.name for tensor in spec.inputs}
    weights = [tensor for tensor in read_graph(template.body).inputs if tensor.name not in own]
    large = sum(_bytes_of(tensor) for tensor in weights) > largest_inline_bytes
    beside = path.with_name(weights_file(path.name))
    beside.unlink(missing_ok=True)
    with ExitStack() as stack:
        stream = stack.enter_context(path.open("wb"))
        data = stack.enter_context(beside.open("wb")) if large else None
        writer = _GraphWriter(stream, data, beside.name, halves)
        for number, content in wire.fields_of(MODEL, template.body):
            if number == wire.MODEL_GRAPH and isinstance(content, bytes):
                with _length_before(stream):
                    for name, array in _made(template.prepare, weights, tensors):
                        writer.write(name, array)
                    # Casts come before the nodes that read them; the order of other fields means nothing.
                    stream.write(b"".join(writer.casts))
                    stream.write(_without_inputs(content, {tensor.name for tensor in weights}))
            else:
                stream.write(wire.field(number, content))


@contextmanager
def _length_before(stream: BinaryIO) -> Iterator[None]:
    """Write a graph's length before it, with all the bytes that such a number can take: it is known at the end."""
    stream.write(wire.tag(wire.MODEL_GRAPH, BYTES) + bytes(_LENGTH_BYTES))
    start = stream.tell()
    yield
    end = stream.tell()
    stream.seek(start - _LENGTH_BYTES)
    stream.write(_wide_varint(end - start))
    stream.seek(end)


def _without_inputs(graph: bytes, names: set[str]) -> bytes:
    """Return a graph without some of its inputs, and without what it says of values inside."""
    return b"".join(
        wire.field(number, content)
        for number, content in wire.fields_of(GRAPH, graph)
        if number != wire.GRAPH_VALUE_INFO
        and not (number == wire.GRAPH_INPUT and wire.first_text(VALUE_INFO, content) in names)
    )


def _made(prepare: bytes, weights: list[TensorSpec], tensors: Mapping[str, AnyArray]) -> Iterator[tuple[str, AnyArray]]:
    """Yield every weight by name: tensors as they are, then what ``prepare`` makes, some at a time."""
    graph = read_graph(prepare)
    made = {tensor.name for tensor in graph.outputs}
    needed = {tensor.name for tensor in graph.inputs} | {tensor.name for tensor in weights if tensor.name not in made}
    if missing := sorted(needed - tensors.keys()):
        message = f"{len(missing)} tensors are missing, among them {', '.join(missing[:5])}; give a whole checkpoint"
        raise CheckpointError(message, code="state_mismatch")
    for tensor in weights:
        if tensor.name not in made:
            yield tensor.name, tensors[tensor.name]
    portions = list(_portions([tensor for tensor in weights if tensor.name in made]))
    for names, part in zip(portions, wire.parts_of(prepare, portions), strict=True):
        yield from zip(names, _run_once(part, names, tensors), strict=True)


def _run_once(model: bytes, names: list[str], tensors: Mapping[str, AnyArray]) -> list[AnyArray]:
    """Run a graph of tensors of the checkpoint and return some of its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    # Each node runs once, so looking for a faster way takes longer than the way.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {tensor.name: np.ascontiguousarray(tensors[tensor.name]) for tensor in session.get_inputs()}
    found: list[AnyArray] = session.run(names, feeds)
    return found


def _portions(weights: list[TensorSpec]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for tensor in weights:
        names.append(tensor.name)
        size += _bytes_of(tensor)
        if size >= _BYTES_AT_A_TIME:
            yield names
            names, size = [], 0
    if names:
        yield names


def _bytes_of(tensor: TensorSpec) -> int:
    """Return the bytes of a tensor; a size with a name, such as the number of classes, counts as 1."""
    return 4 * prod(size if isinstance(size, int) else 1 for size in tensor.shape)


@dataclass(slots=True)
class _GraphWriter:
    """Writes initializers into the bytes of a GraphProto, large ones beside it where there is such a file."""

    graph: BinaryIO
    data: BinaryIO | None
    location: str
    halves: bool
    casts: list[bytes] = field(default_factory=list)

    def write(self, name: str, array: AnyArray) -> None:
        """Write one weight; as float16 with a Cast behind it where that is exact and wanted."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        half = self._half(array)
        if half is not None:
            self.casts.append(wire.cast_to_float(f"{name}.half", name))
            name, array = f"{name}.half", half
        header = b"".join(wire.field(1, size) for size in array.shape)
        header += wire.field(2, wire.ONNX_CODES[array.dtype.name]) + wire.field(8, name.encode())
        if self.data is not None and array.nbytes >= SMALLEST_EXTERNAL_BYTES:
            entries = {"location": self.location, "offset": str(self.data.tell()), "length": str(array.nbytes)}
            header += b"".join(
                wire.field(13, wire.field(1, key.encode()) + wire.field(2, value.encode()))
                for key, value in entries.items()
            )
            header += wire.field(14, 1)
            self.data.write(_bytes_in(array))
            self.graph.write(wire.field(wire.GRAPH_INITIALIZER, header))
            return
        header += wire.tag(9, BYTES) + wire.varint(array.nbytes)
        self.graph.write(wire.tag(wire.GRAPH_INITIALIZER, BYTES) + wire.varint(len(header) + array.nbytes) + header)
        self.graph.write(_bytes_in(array))

    def _half(self, array: AnyArray) -> AnyArray | None:
        if not self.halves or array.dtype != np.float32 or array.size < SMALLEST_HALVED_ELEMENTS:
            return None
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        return half if np.array_equal(half.astype(np.float32), array) else None


def _bytes_in(array: AnyArray) -> memoryview:
    """Return the bytes of an array, without a copy; ONNX's are little-endian, as are those of all machines here."""
    return array.reshape(-1).view(np.uint8).data


def _wide_varint(value: int) -> bytes:
    """Return a number with leading zeros, in as many bytes as were left for it."""
    return bytes(
        value >> 7 * index & 0x7F | (0x80 if index < _LENGTH_BYTES - 1 else 0) for index in range(_LENGTH_BYTES)
    )
