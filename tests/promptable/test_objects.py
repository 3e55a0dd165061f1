# SPDX-License-Identifier: Apache-2.0
"""Prompts against their image, and as tensors; what arrays may hold is in test_prompt_arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.errors import PromptError
from segship.promptable.prompts import (
    ObjectPrompt,
    PromptLimits,
    PromptRules,
    Prompts,
    encode_clicks,
    encode_prompts,
    resolve_prompts,
)
from segship.promptable.transforms import resized_size, to_model_frame

# No database in the working directory, and no deadline on a busy machine.
QUIET = settings(database=None, deadline=None)

SIZE = (60, 100)
INPUT_SIZE = resized_size(SIZE, 64)


def refusal(prompts: Prompts | Sequence[Prompts], code: str, **options: object) -> str:
    with pytest.raises(PromptError) as caught:
        resolve_prompts(prompts, SIZE, **options)  # type: ignore[arg-type]
    assert caught.value.code == code
    return str(caught.value)


def encode(prompts: Prompts | Sequence[Prompts], padding_point: str = "without_box") -> dict[str, np.ndarray]:
    rules = PromptRules(padding_point)  # type: ignore[arg-type]
    objects = resolve_prompts(prompts, SIZE).objects
    return encode_prompts(objects, original_size=SIZE, input_size=INPUT_SIZE, low_res_size=16, rules=rules)


@pytest.mark.parametrize(
    "nothing",
    [Prompts(), Prompts(points=np.zeros((0, 2))), [Prompts(), Prompts()], [Prompts(points=[[1, 2]]), Prompts()]],
)
def test_no_prompts_are_refused(nothing: Prompts | Sequence[Prompts]) -> None:
    assert "generate_masks" in refusal(nothing, "no_prompts")


@pytest.mark.parametrize(
    "nobody",
    [
        [],
        Prompts(boxes=[]),
        Prompts(boxes=np.zeros((0, 4)), labels=[]),
        Prompts(points=[]),
        Prompts(points=np.zeros((0, 3, 2)), labels=np.zeros((0, 3))),
        Prompts(mask_input=np.zeros((0, 1, 16, 16))),
        [Prompts(boxes=[]), Prompts(points=[])],
    ],
)
def test_no_objects_are_an_answer(nobody: Prompts | Sequence[Prompts]) -> None:
    assert resolve_prompts(nobody, SIZE).objects == ()
    assert len(resolve_prompts([Prompts(points=[[1, 2]]), *[nobody] * isinstance(nobody, Prompts)], SIZE).objects) == 1
    tensors = encode(nobody)
    assert {name: array.shape for name, array in tensors.items()} == {
        "point_coords": (0, 1, 2), "point_labels": (0, 1), "mask_input": (0, 1, 16, 16), "has_mask_input": (0,)
    }  # fmt: skip


def test_points_on_every_edge_are_inside() -> None:
    edges = [[0, 0], [100, 0], [0, 60], [100, 60]]
    resolved = resolve_prompts(Prompts(points=edges), SIZE)
    assert resolved.objects[0].points.tolist() == edges and resolved.notes == ()


@pytest.mark.parametrize("point", [(-0.01, 5), (100.01, 5), (5, -1), (5, 60.01), (1e30, 5), (70, 90)])
def test_a_point_outside_is_refused_or_moved_to_the_edge(point: tuple[float, float]) -> None:
    prompts = Prompts(points=[[1, 2], point])
    message = refusal(prompts, "point_outside")
    assert "object 0" in message and "x from 0 to 100 and y from 0 to 60" in message
    resolved = resolve_prompts(prompts, SIZE, outside="clip")
    assert resolved.notes == ("point_clipped",)
    expected = [[1, 2], [min(max(point[0], 0), 100), min(max(point[1], 0), 60)]]
    assert resolved.objects[0].points.tolist() == expected


def test_reversed_corners_are_put_in_order() -> None:
    for box in ([30, 10, 5, 40], [5, 40, 30, 10], [30, 40, 5, 10]):
        resolved = resolve_prompts(Prompts(boxes=box), SIZE)
        assert resolved.objects[0].box is not None and resolved.objects[0].box.tolist() == [5, 10, 30, 40]
        assert resolved.notes == ("box_reversed",)


@pytest.mark.parametrize("outside", ["error", "clip"])
def test_a_box_partly_outside_is_cut_at_the_edge(outside: str) -> None:
    resolved = resolve_prompts(Prompts(boxes=[-5, 10, 130, 70]), SIZE, outside=outside)  # type: ignore[arg-type]
    assert resolved.objects[0].box is not None and resolved.objects[0].box.tolist() == [0, 10, 100, 60]
    assert resolved.notes == ("box_clipped",)


@pytest.mark.parametrize("outside", ["error", "clip"])
@pytest.mark.parametrize("box", [[-9, 5, 0, 9], [100, 5, 120, 9], [5, 60, 9, 61], [5, -9, 9, -1], [200, 200, 300, 300]])
def test_a_box_wholly_outside_is_refused(box: list[float], outside: str) -> None:
    assert "all of it outside" in refusal(Prompts(boxes=box), "box_outside", outside=outside)


@pytest.mark.parametrize("box", [[5, 5, 5, 5], [5, 5, 5, 9], [5, 5, 9, 5], [300, 5, 300, 9]])
def test_a_box_without_area_is_refused(box: list[float]) -> None:
    assert "no area" in refusal(Prompts(boxes=[[1, 2, 3, 4], box]), "empty_box")


def test_background_points_alone_are_allowed_and_noted() -> None:
    negative = Prompts(points=[[1, 2], [3, 4]], labels=[0, 0])
    assert resolve_prompts(negative, SIZE).notes == ("no_positive_prompt",)
    for more in ({"boxes": [1, 2, 30, 40]}, {"mask_input": np.zeros((4, 4))}):
        assert resolve_prompts(Prompts(points=[[1, 2]], labels=[0], **more), SIZE).notes == ()  # type: ignore[arg-type]


def test_repeated_and_contradictory_points_are_kept() -> None:
    resolved = resolve_prompts(Prompts(points=[[1, 2], [1, 2], [1, 2]], labels=[1, 1, 0]), SIZE)
    assert len(resolved.objects[0].points) == 3


def test_points_per_object_are_limited_where_a_limit_is_given() -> None:
    limits = PromptLimits(points_per_object=64)
    assert len(resolve_prompts(Prompts(points=np.ones((64, 2))), SIZE, limits=limits).objects[0].points) == 64
    for count in (65, 64_000):
        prompts = Prompts(points=np.ones((count, 2)))
        assert f"{count} points; at most 64" in refusal(prompts, "too_many_points", limits=limits)
        assert len(resolve_prompts(prompts, SIZE).objects[0].points) == count


def test_objects_per_call_are_limited_over_all_prompts() -> None:
    limits = PromptLimits(objects=3)
    two, one = Prompts(boxes=[[1, 2, 3, 4]] * 2), Prompts(points=[[1, 2]])
    assert len(resolve_prompts([two, one], SIZE, limits=limits).objects) == 3
    assert "4 objects; at most 3" in refusal([two, two], "too_many_objects", limits=limits)
    many = Prompts(boxes=[[1, 2, 3, 4]] * 10_000)
    refusal(many, "too_many_objects", limits=PromptLimits(objects=64))
    assert len(resolve_prompts(many, SIZE).objects) == 10_000


def test_ragged_prompts_are_put_one_behind_the_other() -> None:
    resolved = resolve_prompts([Prompts(points=[[1, 2], [3, 4]]), Prompts(boxes=[[1, 2, 3, 4], [5, 6, 7, 8]])], SIZE)
    assert [len(entry.points) for entry in resolved.objects] == [2, 0, 0]
    assert resolved.objects[2].box is not None and resolved.objects[2].box.tolist() == [5, 6, 7, 8]


def test_each_note_is_given_once() -> None:
    resolved = resolve_prompts(Prompts(boxes=[[9, 9, -5, 1], [9, 9, -5, 2]]), SIZE)
    assert resolved.notes == ("box_reversed", "box_clipped")


def test_one_click_alone_is_ambiguous() -> None:
    def only(**parts: object) -> ObjectPrompt:
        return resolve_prompts(Prompts(**parts), SIZE).objects[0]  # type: ignore[arg-type]

    assert only(points=[[1, 2]]).ambiguous
    assert not only(points=[[1, 2], [3, 4]]).ambiguous
    assert not only(boxes=[1, 2, 3, 4]).ambiguous
    assert not only(points=[[1, 2]], boxes=[1, 2, 3, 4]).ambiguous
    assert not only(points=[[1, 2]], mask_input=np.zeros((4, 4))).ambiguous


def test_points_without_a_box_are_followed_by_not_a_point() -> None:
    tensors = encode(Prompts(points=[[50, 30], [100, 60]], labels=[1, 0]))
    assert tensors["point_labels"].tolist() == [[1, 0, -1]]
    assert tensors["point_coords"].tolist() == [[[32, 19], [64, 38], [0, 0]]]
    assert INPUT_SIZE == (38, 64)


def test_a_box_is_two_corners_behind_the_points() -> None:
    tensors = encode(Prompts(points=[[50, 30]], labels=[0], boxes=[0, 0, 100, 60]))
    assert tensors["point_labels"].tolist() == [[0, 2, 3]]
    assert tensors["point_coords"].tolist() == [[[32, 19], [0, 0], [64, 38]]]
    assert encode(Prompts(boxes=[0, 0, 100, 60]))["point_labels"].tolist() == [[2, 3]]


def test_a_mask_input_alone_has_one_empty_place() -> None:
    mask = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    tensors = encode(Prompts(mask_input=mask))
    assert tensors["point_labels"].tolist() == [[-2]] and tensors["point_coords"].tolist() == [[[0, 0]]]
    assert tensors["has_mask_input"].tolist() == [1] and np.array_equal(tensors["mask_input"][0, 0], mask)


def test_shorter_objects_are_filled_with_empty_places() -> None:
    click, box = Prompts(points=[[50, 30]]), Prompts(boxes=[0, 0, 100, 60])
    mask = Prompts(mask_input=np.ones((16, 16)), points=[[1, 2], [3, 4], [5, 6]])
    tensors = encode([click, box, mask])
    assert tensors["point_labels"].tolist() == [[1, -1, -2, -2], [2, 3, -2, -2], [1, 1, 1, -1]]
    assert (tensors["point_coords"][0, 2:] == 0).all()
    assert tensors["has_mask_input"].tolist() == [0, 0, 1]
    assert (tensors["mask_input"][:2] == 0).all() and (tensors["mask_input"][2] == 1).all()
    assert {name: (array.dtype, array.shape) for name, array in tensors.items()} == {
        "point_coords": (np.float32, (3, 4, 2)),
        "point_labels": (np.float32, (3, 4)),
        "mask_input": (np.float32, (3, 1, 16, 16)),
        "has_mask_input": (np.float32, (3,)),
    }


def test_families_differ_in_the_padding_point() -> None:
    both = [Prompts(points=[[50, 30]]), Prompts(boxes=[0, 0, 100, 60])]
    assert encode(both, "always")["point_labels"].tolist() == [[1, -1, -2], [-1, 2, 3]]
    assert encode(both, "never")["point_labels"].tolist() == [[1, -2], [2, 3]]


def test_a_mask_input_of_another_size_is_refused() -> None:
    with pytest.raises(PromptError, match=r"object 1 .* \(1, 8, 8\); this model takes \(1, 16, 16\)") as caught:
        encode([Prompts(points=[[1, 2]]), Prompts(mask_input=np.zeros((8, 8)))])
    assert caught.value.code == "bad_mask_input"


coordinate = st.floats(-300, 300, width=32)
one_object = st.builds(
    lambda points, seed, box: Prompts(
        points, None if points is None else [(seed >> i) & 1 for i in range(len(points))], box
    ),
    st.none() | st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=5),
    st.integers(0, 31),
    st.none() | st.tuples(coordinate, coordinate, coordinate, coordinate),
)


@QUIET
@given(st.lists(one_object, max_size=4))
def test_any_prompts_become_sound_tensors_or_a_code(prompts: list[Prompts]) -> None:
    try:
        resolved = resolve_prompts(prompts, SIZE, outside="clip")
    except PromptError as error:
        assert error.code in ("no_prompts", "empty_box", "box_outside")
        return
    for entry in resolved.objects:
        assert (entry.points >= 0).all() and (entry.points <= (100, 60)).all()
        if entry.box is not None:
            x0, y0, x1, y1 = entry.box
            assert 0 <= x0 < x1 <= 100 and 0 <= y0 < y1 <= 60
    tensors = encode_prompts(
        resolved.objects, original_size=SIZE, input_size=INPUT_SIZE, low_res_size=4, rules=PromptRules()
    )
    for row, entry in enumerate(resolved.objects):
        labels = tensors["point_labels"][row].tolist()
        used = [label for label in labels if label != -2]
        ending = [2, 3] if entry.box is not None else [-1]
        assert used == [*entry.labels.tolist(), *ending] and labels == used + [-2] * (len(labels) - len(used))
        count = len(entry.points)
        expected = to_model_frame(entry.points, SIZE, INPUT_SIZE)
        assert np.array_equal(tensors["point_coords"][row, :count], expected)


@pytest.mark.parametrize("padding_point", ["without_box", "always", "never"])
def test_clicks_are_encoded_as_prompts_are(padding_point) -> None:
    points = np.random.default_rng(0).random((50, 2)) * np.array([100, 60])
    settings = {
        "original_size": SIZE,
        "input_size": INPUT_SIZE,
        "low_res_size": 16,
        "rules": PromptRules(padding_point=padding_point),
    }
    expected = encode_prompts(resolve_prompts(Prompts(points=points[:, None]), SIZE).objects, **settings)
    found = encode_clicks(points, **settings)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
