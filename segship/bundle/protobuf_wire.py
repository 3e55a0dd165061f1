# SPDX-License-Identifier: Apache-2.0
"""Walk protobuf messages by position: no recursion, no copies, bounded by a budget of fields.

It is the ground that `onnx_wire` stands on, and follows protobuf.dev/programming-guides/encoding. It is stricter than
protobuf where leniency would let two readers see two different messages: a field given twice, a wrong wire type and a
group are errors; a field that the caller's table does not know is handed to `WireReader.odd`.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from segship.errors import BundleError

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
