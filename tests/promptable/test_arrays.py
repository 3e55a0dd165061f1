# SPDX-License-Identifier: Apache-2.0
"""What `Prompts` takes, and what it refuses before it knows the image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segship.errors import PromptError
from segship.promptable.prompts import Prompts

# No database in the working directory, and no deadline on a busy machine.
QUIET = settings(database=None, deadline=None)


def refusal(code: str, **parts: object) -> str:
    with pytest.raises(PromptError) as caught:
        Prompts(**parts)  # type: ignore[arg-type]
    assert caught.value.code == code
    return str(caught.value)


def test_rank_decides_how_many_objects_points_are_for() -> None:
    one, three = Prompts(points=[[1, 2], [3, 4], [5, 6]]), Prompts(points=[[[1, 2]], [[3, 4]], [[5, 6]]])
    assert one.points is not None and one.points.shape == (1, 3, 2) and one.object_count == 1
    assert three.points is not None and three.points.shape == (3, 1, 2) and three.object_count == 3
    assert one.points.dtype == np.float32 and np.array_equal(one.points.ravel(), three.points.ravel())


def test_labels_default_to_foreground_and_follow_the_points() -> None:
    for labels in (None, [1, 1], (True, True), np.ones(2), [[1, 1]]):
        prompts = Prompts(points=[[1, 2], [3, 4]], labels=labels)
        assert prompts.labels is not None and prompts.labels.dtype == np.int64
        assert prompts.labels.tolist() == [[1, 1]]
    both = Prompts(points=[[[1, 2]], [[3, 4]]], labels=[[1], [0]])
    assert both.labels is not None and both.labels.tolist() == [[1], [0]]


def test_boxes_and_mask_inputs_get_their_object_axis() -> None:
    for boxes in ([1, 2, 3, 4], [[1, 2, 3, 4]]):
        assert np.array_equal(Prompts(boxes=boxes).boxes, np.array([[1, 2, 3, 4]], np.float32))
    for shape in ((8, 8), (1, 8, 8), (1, 1, 8, 8)):
        prompts = Prompts(mask_input=np.ones(shape, np.float16))
        assert prompts.mask_input is not None and prompts.mask_input.shape == (1, 1, 8, 8)
        assert prompts.mask_input.dtype == np.float32


def test_later_changes_of_an_array_change_no_prompts() -> None:
    points, box = np.ones((1, 2), np.float32), np.ones(4, np.float32)
    prompts = Prompts(points=points, boxes=box)
    points[:], box[:] = 9, 9
    assert prompts.points is not None and prompts.boxes is not None
    assert (prompts.points == 1).all() and (prompts.boxes == 1).all()
    with pytest.raises(ValueError, match="read-only"):
        prompts.points[:] = 9


def test_empty_parts_beside_an_object_count_as_not_given() -> None:
    one = Prompts(points=[[1, 2]], boxes=[], mask_input=np.zeros((0, 1, 4, 4)))
    assert one.object_count == 1 and one.boxes is None and one.mask_input is None


def test_empty_lists_are_no_objects() -> None:
    assert Prompts(points=[], labels=[], boxes=[]).object_count == 0
    assert Prompts(points=np.zeros((0, 2)), boxes=[1, 2, 3, 4]).points is None


@pytest.mark.parametrize(
    "points",
    [
        [1, 2],
        5,
        [[1, 2, 3]],
        [[[[1, 2]]]],
        [[1, 2], [3]],
        [["1", "2"]],
        [[None, 1]],
        [[True, False]],
        [[True, 5]],
        "12",
        [[1j, 0]],
    ],
)
def test_points_of_another_rank_or_type_are_refused(points: object) -> None:
    assert "(N, 2) for N points" in refusal("bad_shape", points=points)


def test_a_flat_point_is_told_how_to_be_one() -> None:
    assert "one point is [[x, y]]" in refusal("bad_shape", points=[500, 375])


@pytest.mark.parametrize("boxes", [[1, 2, 3], [[[1, 2, 3, 4]]], [[1, 2, 3, 4], [1, 2]], 7, ["a"] * 4])
def test_boxes_of_another_rank_or_type_are_refused(boxes: object) -> None:
    assert "x0 y0 x1 y1" in refusal("bad_shape", boxes=boxes)


@pytest.mark.parametrize("shape", [(8,), (2, 8, 8), (1, 2, 8, 8), (1, 1, 1, 8, 8), (0, 8), ()])
def test_mask_inputs_of_another_rank_are_refused(shape: tuple[int, ...]) -> None:
    assert str(shape) in refusal("bad_mask_input", mask_input=np.zeros(shape, np.float32))


def test_a_binary_mask_is_no_mask_input() -> None:
    assert "low_res_masks of an earlier prediction" in refusal("bad_mask_input", mask_input=np.ones((8, 8), bool))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39, -1e300, 10**400])
@pytest.mark.parametrize("name", ["points", "boxes", "mask_input"])
def test_numbers_that_are_not_finite_are_refused(name: str, number: float) -> None:
    values = {"points": [[number, 1]], "boxes": [1, 2, number, 4], "mask_input": [[0, number]]}
    assert name in refusal("non_finite", **{name: values[name]})


def test_a_whole_number_past_64_bits_is_a_number() -> None:
    assert Prompts(points=[[10**30, 1]]).points is not None


def test_a_label_that_is_not_finite_is_refused() -> None:
    refusal("non_finite", points=[[1, 2]], labels=[np.nan])


def test_a_label_past_64_bits_is_told_beside_a_bool() -> None:
    assert "too large" in refusal("non_finite", points=[[1, 1], [2, 2]], labels=[True, 10**400])


@pytest.mark.parametrize("label", [2, 3, -1, -2, 0.5, 2**40])
def test_labels_other_than_foreground_and_background_are_refused(label: float) -> None:
    message = refusal("bad_label", points=[[1, 2], [3, 4]], labels=[1, label])
    assert str(label) in message and "0 for background" in message and "boxes" in message


@pytest.mark.parametrize(
    ("points", "labels"),
    [([[1, 2]], [1, 1]), ([[1, 2]], 1), ([[1, 2], [3, 4]], [[1], [1]]), ([[[1, 2]], [[3, 4]]], [1, 1]), ([[1, 2]], [])],
)
def test_labels_of_another_length_are_refused(points: object, labels: object) -> None:
    assert "one label a point" in refusal("length_mismatch", points=points, labels=labels)


def test_labels_without_points_are_refused() -> None:
    assert "there are no points" in refusal("length_mismatch", labels=[1], boxes=[1, 2, 3, 4])


def test_labels_that_are_no_numbers_are_refused() -> None:
    refusal("bad_shape", points=[[1, 2]], labels=["1"])


def test_parts_for_different_numbers_of_objects_are_refused() -> None:
    message = refusal("length_mismatch", points=[[1, 2], [3, 4]], boxes=[[1, 2, 3, 4], [5, 6, 7, 8]])
    assert "points for 1, boxes for 2" in message and "not repeated" in message
    refusal("length_mismatch", mask_input=np.zeros((1, 1, 4, 4)), boxes=[[1, 2, 3, 4], [5, 6, 7, 8]])


ANY_NUMBERS = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.uint8]), hnp.array_shapes(min_dims=0, max_dims=4, max_side=4)
)


@QUIET
@given(st.none() | ANY_NUMBERS, st.none() | ANY_NUMBERS, st.none() | ANY_NUMBERS, st.none() | ANY_NUMBERS)
def test_whatever_is_taken_is_canonical(points: object, labels: object, boxes: object, mask_input: object) -> None:
    try:
        prompts = Prompts(points, labels, boxes, mask_input)  # type: ignore[arg-type]
    except PromptError as error:
        assert error.code in ("bad_shape", "bad_mask_input", "length_mismatch", "non_finite", "bad_label")
        return
    for part in (prompts.points, prompts.boxes, prompts.mask_input):
        assert part is None or (part.dtype == np.float32 and np.isfinite(part).all())
        assert part is None or len(part) == prompts.object_count
    if prompts.points is not None:
        assert prompts.labels is not None and prompts.labels.shape == prompts.points.shape[:2]
