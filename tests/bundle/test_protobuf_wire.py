# SPDX-License-Identifier: Apache-2.0
import pytest
from google.protobuf.internal.encoder import _VarintBytes
from hypothesis import given
from hypothesis import strategies as st

from segship.bundle.onnx_file import BYTES, FIXED32, VARINT, Message, WireReader, malformed, signed, too_many
from segship.errors import BundleError

MESSAGE = Message("Thing", {1: VARINT, 2: BYTES}, {3: VARINT, 4: FIXED32})


def walk(data, budget=100):
    reader = WireReader(data, budget)
    return list(reader.fields(MESSAGE, 0, len(data))), reader


def refused(data, words, budget=100):
    with pytest.raises(BundleError, match=words):
        walk(data, budget)


@given(st.integers(0, 2**64 - 1))
def test_number_is_read_as_protobuf_wrote_it(value):
    data = _VarintBytes(value)
    assert WireReader(data, 1).varint(0, len(data)) == (value, len(data))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_packed_numbers_are_read_and_counted(values):
    data = b"".join(_VarintBytes(value % 2**64) for value in values)
    reader = WireReader(data, 1)
    assert reader.packed_numbers(0, len(data), 20) == values
    assert reader.count_varints(0, len(data)) == len(values)


def test_sign_is_that_of_twos_complement():
    assert [signed(value) for value in (0, 2**63 - 1, 2**63, 2**64 - 1)] == [0, 2**63 - 1, -(2**63), -1]


def test_fields_come_with_their_place():
    fields, _ = walk(b"\x08\x07\x12\x02ab\x18\x01\x18\x02\x1a\x02\x01\x02")
    assert fields == [(1, 0, 7, 2), (2, 2, 4, 6), (3, 0, 1, 8), (3, 0, 2, 10), (3, 2, 12, 14)]


def test_unknown_field_is_noted_and_skipped():
    fields, reader = walk(b"\x78\x01\x08\x07")
    assert fields == [(1, 0, 7, 4)]
    assert list(reader.oddities) == ["unknown field 15 in Thing"]


def test_only_some_oddities_are_kept():
    reader = WireReader(b"", 1)
    for number in range(100):
        reader.odd(str(number))
    assert len(reader.oddities) == 20


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x08", "cut off or too long"),
        (b"\x08" + b"\xff" * 10, "cut off or too long"),
        (b"\x12\x05ab", "a field of 5 bytes does not fit"),
        (b"\x12" + b"\xff" * 9 + b"\x01", "a field of 18446744073709551615 bytes does not fit"),
        (b"\x25\x00\x00", "a field of 4 bytes does not fit"),
        (b"\x0b\x0c", "wire type 3 is not used"),
        (b"\x0f", "wire type 7 is not used"),
        (b"\x08\x01\x08\x02", "Thing has field 1 twice"),
        (b"\x0a\x01a", "field 1 of Thing has wire type 2"),
        (b"\x10\x01", "field 2 of Thing has wire type 0"),
        (b"\x00\x01", "field number 0 is not possible"),
        (b"\xf8\xff\xff\xff\xff\x01\x01", "field number .* is not possible"),
    ],
)
def test_malformed_bytes_are_refused(data, words):
    refused(data, words)


def test_budget_of_fields_bounds_the_work():
    refused(b"\x18\x01" * 101, "too many fields")
    assert len(walk(b"\x18\x01" * 100)[0]) == 100


def test_too_many_packed_numbers_are_refused():
    with pytest.raises(BundleError, match="more than 64 numbers in a field that holds few"):
        WireReader(b"\x01" * 65, 1).packed_numbers(0, 65, 64)


def test_name_that_is_no_utf8_is_refused():
    with pytest.raises(BundleError, match="a name is not UTF-8"):
        WireReader(b"\xff", 1).text(0, 1)


def test_errors_have_stable_codes():
    assert malformed("x", 0).code == "onnx_malformed"
    assert too_many("nodes", 3).code == "onnx_too_large"
