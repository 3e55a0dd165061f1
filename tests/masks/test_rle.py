# SPDX-License-Identifier: Apache-2.0
"""Run lengths against pycocotools, in both directions, and against what hostile files hold."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as oracle

from segship.errors import InputError
from segship.masks.rle import (
    compress_runs,
    decode_rle,
    decompress_runs,
    encode_rle,
    mask_to_runs,
    masks_to_runs,
    read_rle,
    runs_to_mask,
)
from tests.oracle import reference

masks = st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(lambda size: arrays(np.bool_, size))
runs_lists = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40)
# For rleToString of pycocotools, which reserves six characters for each run and writes a zero behind the last: runs
# that take six or seven write past its memory. These take five.
shorter_runs_lists = st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=40)


def oracle_encode(mask: np.ndarray) -> dict[str, Any]:
    return oracle.encode(np.asfortranarray(mask.view(np.uint8)))


def oracle_decode(rle: dict[str, Any]) -> np.ndarray:
    with warnings.catch_warnings():
        # pycocotools has an __array__ of before numpy 2.
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        return oracle.decode(rle).astype(bool)


@given(masks)
def test_compressed_bytes_equal_those_of_pycocotools(mask: np.ndarray) -> None:
    expected = oracle_encode(mask)
    assert encode_rle(mask) == {"size": expected["size"], "counts": expected["counts"].decode("ascii")}


@given(masks)
def test_pycocotools_reads_what_we_write(mask: np.ndarray) -> None:
    assert np.array_equal(oracle_decode(encode_rle(mask)), mask)


@given(masks)
def test_we_read_what_pycocotools_writes(mask: np.ndarray) -> None:
    decoded = decode_rle(oracle_encode(mask))
    assert decoded.dtype == np.bool_ and np.array_equal(decoded, mask)


@given(masks)
def test_plain_runs_round_trip_and_alternate_from_zeros(mask: np.ndarray) -> None:
    rle = encode_rle(mask, compressed=False)
    slow = [pixel for run, length in enumerate(rle["counts"]) for pixel in [run % 2 == 1] * int(length)]
    assert slow == mask.T.ravel().tolist()
    assert np.array_equal(decode_rle(rle), mask)


def slow_runs(mask: np.ndarray) -> list[int]:
    """Count pixel by pixel."""
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@given(masks)
def test_runs_are_those_of_counting(mask: np.ndarray) -> None:
    runs = mask_to_runs(mask)
    assert runs.dtype == np.int64 and runs.tolist() == slow_runs(mask)


@given(masks, st.tuples(*[st.integers(0, 3)] * 4))
def test_window_counts_as_the_image_around_it(mask: np.ndarray, margins: tuple[int, int, int, int]) -> None:
    above, below, left, right = margins
    image = np.pad(mask, ((above, below), (left, right)))
    assert mask_to_runs(mask, corner_xy=(left, above), size_hw=image.shape).tolist() == slow_runs(image)


@pytest.mark.parametrize("density", [0.0, 0.001, 0.02, 0.1, 0.5, 1.0])
def test_full_and_noisy_masks_are_counted_alike(density: float) -> None:
    rng = np.random.default_rng(0)
    for size in ((61, 83), (64, 80), (300, 7)):
        mask = rng.random(size) < density
        assert mask_to_runs(mask).tolist() == slow_runs(mask)
        window = mask_to_runs(mask, corner_xy=(2, 1), size_hw=(size[0] + 3, size[1] + 4))
        assert window.tolist() == slow_runs(np.pad(mask, ((1, 2), (2, 2))))
        assert np.array_equal(runs_to_mask(mask_to_runs(mask), size), mask)


@pytest.mark.parametrize("order", ["C", "F"])
def test_any_layout_and_any_whole_numbers_are_counted_alike(order: Any) -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.3
    for same in (mask.copy(order=order), 255 * mask.astype(np.uint8, order=order), np.repeat(mask, 2, axis=1)[:, ::2]):
        assert mask_to_runs(same).tolist() == slow_runs(mask)


def test_many_masks_are_counted_as_the_reference_counts_them() -> None:
    reference()
    import torch
    from segment_anything.utils.amg import coco_encode_rle, mask_to_rle_pytorch

    stack = np.random.default_rng(0).random((5, 31, 17)) < np.array([0, 0.1, 0.5, 0.9, 1])[:, None, None]
    expected = mask_to_rle_pytorch(torch.from_numpy(stack))
    assert [encode_rle(mask, compressed=False) for mask in stack] == expected
    assert [runs.tolist() for runs in masks_to_runs(stack)] == [rle["counts"] for rle in expected]
    assert [encode_rle(mask) for mask in stack] == [coco_encode_rle(rle) for rle in expected]
    assert masks_to_runs(stack[:0]) == []


def test_column_longer_than_16_bits_is_counted() -> None:
    mask = np.zeros((70_000, 2), bool)
    mask[5:, 0] = mask[:3, 1] = True
    assert mask_to_runs(mask).tolist() == [5, 69_998, 69_997]


def test_window_outside_its_image_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match=r"\(2, 2\) at \(3, 0\) of \(4, 4\)"):
        mask_to_runs(np.ones((2, 2), bool), corner_xy=(3, 0), size_hw=(4, 4))


@pytest.mark.parametrize("mask", [np.zeros((2, 2, 2), bool), np.zeros((2, 2), np.float32)])
def test_what_is_no_mask_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(InputError, match="mask has the "):
        encode_rle(mask)


@given(masks)
def test_run_lengths_can_be_read_without_the_mask(mask: np.ndarray) -> None:
    for compressed in (True, False):
        runs, size_hw = read_rle(encode_rle(mask, compressed=compressed))
        assert runs.dtype == np.int64 and np.array_equal(runs, mask_to_runs(mask)) and size_hw == mask.shape


@given(runs_lists)
def test_any_run_lengths_survive_compression(lengths: list[int]) -> None:
    runs = np.array(lengths, np.int64)
    assert np.array_equal(decompress_runs(compress_runs(runs), int(runs.sum()) + len(runs)), runs)


@given(shorter_runs_lists)
def test_run_lengths_are_compressed_as_in_pycocotools(lengths: list[int]) -> None:
    text = compress_runs(np.array(lengths, np.int64))
    # pycocotools takes plain runs as 32-bit numbers and packs them as they are.
    assert oracle.frPyObjects({"size": [1, 1], "counts": lengths}, 1, 1)["counts"].decode("ascii") == text


def slow_text(lengths: list[int]) -> str:
    """Write run lengths as maskApi.c does, one number and one character at a time, with room for any of them."""
    text = ""
    for index, length in enumerate(lengths):
        rest = length - lengths[index - 2] if index > 2 else length
        more = True
        while more:
            low, rest = rest & 0x1F, rest >> 5
            more = rest != -1 if low & 0x10 else rest != 0
            text += chr(48 + (low | 0x20 if more else low))
    return text


@given(shorter_runs_lists)
def test_slow_writer_is_pycocotools(lengths: list[int]) -> None:
    assert oracle.frPyObjects({"size": [1, 1], "counts": lengths}, 1, 1)["counts"].decode("ascii") == slow_text(lengths)


@given(runs_lists)
def test_run_lengths_of_any_size_are_compressed_as_by_the_slow_writer(lengths: list[int]) -> None:
    assert compress_runs(np.array(lengths, np.int64)) == slow_text(lengths)


@pytest.mark.parametrize("bits", range(4, 32))
def test_run_lengths_at_every_border_of_a_character_are_compressed_as_by_the_slow_writer(bits: int) -> None:
    for length in (2**bits - 1, 2**bits, 2**bits + 1):
        lengths = [length, 0, 0, length, length, 0, 2**31]
        assert compress_runs(np.array(lengths, np.int64)) == slow_text(lengths)
        assert decompress_runs(slow_text(lengths), sum(lengths)).tolist() == lengths


@pytest.mark.parametrize("size", [(0, 0), (0, 7), (7, 0)])
def test_mask_without_pixels_is_what_pycocotools_writes(size: tuple[int, int]) -> None:
    rle = encode_rle(np.zeros(size, bool))
    assert rle["counts"] == "0"
    assert decode_rle(rle).shape == size


def test_mask_that_begins_set_begins_with_a_run_of_no_zeros() -> None:
    assert mask_to_runs(np.ones((2, 3), bool)).tolist() == [0, 6]
    assert mask_to_runs(np.zeros((2, 3), bool)).tolist() == [6]


def test_decoded_mask_is_contiguous_and_writable() -> None:
    decoded = decode_rle({"size": [2, 3], "counts": [1, 2, 3]})
    assert decoded.flags.c_contiguous and decoded.flags.writeable


def test_size_may_be_an_array_or_a_tuple() -> None:
    for size in ((2, 3), np.array([2, 3])):
        assert decode_rle({"size": size, "counts": np.array([1, 2, 3])}).sum() == 2


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([4, -1, 3], "length -1"),
        ([7], "length 7"),
        ([3, 2], "sum to 5"),
        ([3, 3, 3], "sum to 9"),
        ([], "float64"),
        ([1] * 8, "8 runs"),
        ([2**62, 2**62, 2**62, 2**62 + 6], "length 4611686018427387910"),
        ([2**70], "object"),
        ([1.0, 5.0], "float64"),
        ([[6]], r"\(1, 1\)"),
        ([[1], [2, 3]], "ragged"),
        (None, "NoneType"),
        (6, "int"),
        (np.array(6), "one ndarray"),
        (np.array("6"), "one ndarray"),
        (np.int64(6), "one int64"),
        ("", "empty"),
        (b"", "empty"),
        ("P", "middle of a run"),
        ("6é", "ASCII"),
        ("6 ", "alphabet"),
        (b"6\xff", "alphabet"),
        ("PPPPPPP0", "8 characters"),
        ("P" * 60, "60 characters"),
        ("oooooo?", "longer than the mask"),
        ("5M4", "length -3"),
        ("5", "sum to 5"),
        ("33112O2O2", "9 runs"),
    ],
)
def test_hostile_counts_are_refused(counts: object, message: str) -> None:
    for read in (decode_rle, read_rle):
        with pytest.raises(InputError, match=message) as caught:
            read({"size": [2, 3], "counts": counts})
        assert caught.value.code == "bad_rle"


@pytest.mark.parametrize(
    "size", [[2], [2, 3, 1], "23", None, [2.0, 3], [True, 3], [-2, 3], [-2, -3], ["2", "3"], [[2], [3]], ["x" * 99, 1]]
)
def test_hostile_sizes_are_refused(size: object) -> None:
    with pytest.raises(InputError, match="size is .* accepted is .height, width.") as caught:
        decode_rle({"size": size, "counts": [6]})
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("size", [[30_000, 30_000], [10**30, 10**30], [0, 10**30]])
def test_huge_size_is_refused_before_anything_is_reserved(size: list[int]) -> None:
    with pytest.raises(InputError, match="at most 400000000 pixels"):
        decode_rle({"size": size, "counts": [size[0] * size[1]]})


def test_limit_of_pixels_can_be_lowered() -> None:
    with pytest.raises(InputError, match="2 x 3"):
        decode_rle({"size": [2, 3], "counts": [6]}, max_pixels=5)


@pytest.mark.parametrize("rle", [None, [], "6", {"size": [2, 3]}, {"counts": "6"}])
def test_what_is_no_run_length_object_is_refused(rle: Any) -> None:
    with pytest.raises(InputError, match="size and counts"):
        decode_rle(rle)


@given(st.binary(max_size=40))
def test_any_string_gives_a_mask_or_a_reason(counts: bytes) -> None:
    try:
        decoded = decode_rle({"size": [3, 4], "counts": counts})
    except InputError as error:
        assert error.code == "bad_rle"
    else:
        assert np.array_equal(decoded, oracle_decode({"size": [3, 4], "counts": counts}))


def test_runs_are_a_list_of_numbers() -> None:
    with pytest.raises(InputError, match=r"the runs have the shape \(\)"):
        runs_to_mask(np.array(6), (2, 3))


def test_runs_are_checked_one_by_one_so_that_their_sum_cannot_wrap() -> None:
    with pytest.raises(InputError, match="length 9223372036854775807"):
        runs_to_mask(np.array([2**63 - 1, 2**63 - 1, 8]), (2, 3))


def test_large_mask_is_encoded_within_20_ms() -> None:
    y, x = np.mgrid[:1200, :1800]
    mask = ((x - 900) / 500) ** 2 + ((y - 600) / 400) ** 2 < 1
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        encode_rle(mask)
        seconds.append(time.perf_counter() - start)
    # The best of some: other programs on the machine only ever add to it.
    assert min(seconds) < 0.020
