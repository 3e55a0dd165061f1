# SPDX-License-Identifier: Apache-2.0
"""Whether a tensor lies in its storage, against writing down every place."""

import itertools

import pytest

from segship.ship.checkpoints.archive import StoredTensor, TensorInfo


def stored(shape, strides, offset, elements):
    return StoredTensor("float32", tuple(shape), tuple(strides), offset, "0", elements)


def places(shape, strides, offset):
    indices = itertools.product(*map(range, shape))
    return [offset + sum(i * s for i, s in zip(index, strides, strict=True)) for index in indices]


def test_sizes_are_those_of_the_shape():
    assert (TensorInfo("bfloat16", (2, 3)).elements, TensorInfo("bfloat16", (2, 3)).bytes) == (6, 12)
    assert TensorInfo("int64", ()).bytes == 8
    assert TensorInfo("float32", (4, 0)).bytes == 0


def test_what_lies_within_never_repeats_or_leaves_a_place():
    accepted = 0
    for shape in itertools.product(range(1, 4), repeat=2):
        for strides in itertools.product(range(8), repeat=2):
            for offset in range(3):
                found = places(shape, strides, offset)
                if stored(shape, strides, offset, 10).lies_within_storage():
                    accepted += 1
                    assert len(set(found)) == len(found) and max(found) < 10
    assert accepted > 100


@pytest.mark.parametrize(
    ("shape", "strides"), [((2, 3), (3, 1)), ((3, 2), (1, 3)), ((2, 3, 4), (1, 8, 2)), ((), ()), ((1, 6), (99, 1))]
)
def test_ordinary_layouts_lie_within(shape, strides):
    elements = max(places(shape, strides, 0)) + 1
    assert stored(shape, strides, 0, elements).lies_within_storage()
    assert not stored(shape, strides, 1, elements).lies_within_storage()


def test_an_empty_tensor_needs_no_place():
    assert stored((0, 5), (5, 1), 0, 0).lies_within_storage()
    assert not stored((0,), (1,), 1, 0).lies_within_storage()
