# SPDX-License-Identifier: Apache-2.0
"""Prompts from command-line text and from JSON: what is read, and what is refused with which code."""

from __future__ import annotations

import collections
import json
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.cli.segment import gather_prompts
from segship.errors import PromptError
from segship.promptable.prompt_text import parse_box, parse_point, parse_prompts_json
from segship.promptable.prompts import PromptLimits, Prompts, resolve_prompts

# No database in the working directory, and no deadline on a busy machine.
QUIET = settings(database=None, deadline=None)

CODES = {
    "bad_json", "json_too_large", "json_too_deep", "unknown_key", "duplicate_key", "bad_shape", "length_mismatch",
    "non_finite", "bad_label", "bad_mask_input", "no_prompts", "too_many_objects",
}  # fmt: skip


def refusal(text: str | bytes, code: str, limits: PromptLimits | None = None) -> str:
    started = time.perf_counter()
    with pytest.raises(PromptError) as caught:
        parse_prompts_json(text, limits or PromptLimits())
    assert caught.value.code == code
    assert time.perf_counter() - started < 2
    return str(caught.value)


def test_points_on_the_command_line() -> None:
    assert parse_point("500,375") == (500, 375, 1)
    assert parse_point(" 500.5 , 3.75e2 , 0 ") == (500.5, 375, 0)
    assert parse_point("-1,+.5,1.0") == (-1, 0.5, 1)
    assert isinstance(parse_point("1,2,1").label, int)


def test_boxes_on_the_command_line() -> None:
    assert parse_box("425,600,700.5,875") == (425, 600, 700.5, 875)


@pytest.mark.parametrize(
    "text", ["", "5", "1,2,3,4", "1;2", "a,b", "1,", ",2", "1_0,2", "0x10,2", "1 2,3", "١,٢", "1,2,x"]
)
def test_text_that_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="a point is x,y or x,y,label") as caught:
        parse_point(text)
    assert caught.value.code == "bad_shape"


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "1,2,3,d", "[1,2,3,4]"])
def test_text_that_is_no_box_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match="a box is x0,y0,x1,y1") as caught:
        parse_box(text)
    assert caught.value.code == "bad_shape"


@pytest.mark.parametrize("number", ["nan", "-inf", "Infinity", "1e400"])
def test_numbers_that_are_not_finite_are_refused_on_the_command_line(number: str) -> None:
    for parse, text in ((parse_point, f"{number},1"), (parse_box, f"1,2,3,{number}")):
        with pytest.raises(PromptError, match="not finite") as caught:
            parse(text)
        assert caught.value.code == "non_finite"


@pytest.mark.parametrize("label", ["2", "-1", "0.5"])
def test_other_labels_are_refused_on_the_command_line(label: str) -> None:
    with pytest.raises(PromptError, match="0 for background") as caught:
        parse_point(f"1,2,{label}")
    assert caught.value.code == "bad_label"


def test_a_long_text_is_quoted_in_short() -> None:
    with pytest.raises(PromptError) as caught:
        parse_point("9" * 100_000)
    assert len(str(caught.value)) < 300


def test_json_gives_the_prompts_that_python_gives() -> None:
    parts = {"points": [[1, 2], [3, 4.5]], "labels": [1, 0], "boxes": [1, 2, 30, 40], "mask_input": [[0.5] * 4] * 4}
    for text in (json.dumps(parts), json.dumps(parts).encode()):
        read, built = parse_prompts_json(text), Prompts(**parts)  # type: ignore[arg-type]
        assert isinstance(read, Prompts)
        for name in parts:
            assert np.array_equal(getattr(read, name), getattr(built, name))


def test_parts_may_be_null() -> None:
    read = parse_prompts_json('{"points": null, "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]}')
    assert isinstance(read, Prompts) and read.points is None and read.object_count == 2


def test_objects_are_a_list_of_prompts() -> None:
    read = parse_prompts_json('{"objects": [{"points": [[1, 2]]}, {"boxes": [1, 2, 3, 4]}]}')
    assert isinstance(read, list) and [entry.object_count for entry in read] == [1, 1]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", "bad_json", "line 1"),
        ("{", "bad_json", "not JSON"),
        ('{"points": [[1, 2]]} x', "bad_json", "Extra data"),
        ("[[1, 2]]", "bad_json", "a list"),
        ("null", "bad_json", "null"),
        ('"points"', "bad_json", "a text"),
        (b"\xff\xfe{\x00}\x00", "bad_json", "not UTF-8 at byte 0"),
        ('\ufeff{"points": [[1, 2]]}', "bad_json", "BOM"),
        ('{"objects": {}}', "bad_json", "an object"),
        ('{"objects": [[1]]}', "bad_json", "entry 0"),
        ('{"objects": [], "points": [[1, 2]]}', "unknown_key", "'points'"),
        ('{"point": [[1, 2]]}', "unknown_key", "accepted are points, labels, boxes, mask_input"),
        ('{"objects": [{"points": [[1, 2]]}, {"lables": [1]}]}', "unknown_key", "entry 1"),
        ('{"points": [[1, 2]], "points": [[3, 4]]}', "duplicate_key", "'points' twice"),
        ('{"objects": [{"boxes": 1, "boxes": 2}]}', "duplicate_key", "'boxes' twice"),
        ('{"points": [[NaN, 1]]}', "non_finite", "NaN"),
        ('{"points": [[-Infinity, 1]]}', "non_finite", "-Infinity"),
        ('{"points": [[1e400, 1]]}', "non_finite", "NaN or infinite"),
        ('{"points": [["NaN", 1]]}', "bad_shape", "a text"),
        ('{"points": [[true, 1]]}', "bad_shape", "true or false"),
        ('{"points": [[null, 1]]}', "bad_shape", "null"),
        ('{"points": [[1, {}]]}', "bad_shape", "an object"),
        ('{"points": "1,2"}', "bad_shape", "a text"),
        ('{"points": 1}', "bad_shape", "a number"),
        ('{"points": [1, 2]}', "bad_shape", "[[x, y]]"),
        ('{"points": [[1, 2], [3]]}', "bad_shape", "regular"),
        ('{"points": [[1, 2]], "labels": [2]}', "bad_label", "the JSON document"),
        ('{"points": [[1, 2]], "labels": [1, 1]}', "length_mismatch", "one label a point"),
        ('{"mask_input": []}', "bad_mask_input", "mask_input"),
    ],
)
def test_json_that_is_not_understood_is_refused(text: str | bytes, code: str, words: str) -> None:
    assert words in refusal(text, code)


@pytest.mark.parametrize("text", ['{"objects": []}', '{"boxes": []}', '{"objects": [{"points": []}]}'])
def test_json_of_no_objects_is_no_objects(text: str) -> None:
    assert resolve_prompts(parse_prompts_json(text), (60, 100)).objects == ()


def test_a_whole_number_of_any_length_is_refused_fast() -> None:
    refusal('{"points": [[' + "9" * 1_000_000 + ", 1]]}", "non_finite")


def test_the_size_limit_counts_bytes() -> None:
    text = '{"points": [[1, 2]]}'
    assert parse_prompts_json(text, PromptLimits(json_bytes=len(text)))
    for source in (text, text.encode()):
        refusal(source, "json_too_large", PromptLimits(json_bytes=len(text) - 1))
    wide = '{"é": 1}'
    refusal(wide, "json_too_large", PromptLimits(json_bytes=len(wide)))
    refusal(b"[" * (1024 * 1024 + 1), "json_too_large")


@pytest.mark.parametrize("opening", ["[", '{"a":', '["]",', '["\\"]",'])
def test_depth_is_limited(opening: str) -> None:
    refusal(opening * 17, "json_too_deep")
    refusal(opening * 16, "bad_json")
    refusal(opening * 100_000, "json_too_deep")


@pytest.mark.parametrize("text", ['"' + '\\"' * 500_000, '"' * 1_000_000, "\\" * 1_000_000, '"x' * 500_000])
def test_no_text_is_slow_to_measure(text: str) -> None:
    refusal(text, "bad_json")


def test_brackets_inside_texts_are_no_depth() -> None:
    assert "unknown key" in refusal(json.dumps({"[" * 40: 1}), "unknown_key")


def test_the_number_of_objects_is_limited() -> None:
    entry = '{"points": [[1, 2]]}'
    limit = PromptLimits(objects=2)
    assert parse_prompts_json(f'{{"objects": [{entry}, {entry}]}}', limit)
    assert "at most 2" in refusal(f'{{"objects": [{entry}, {entry}, {entry}]}}', "too_many_objects", limit)


# Own letters, so that hypothesis need not build its table of all of Unicode.
LETTERS = '[]{}":,.-0123456789eNaIfy tpoinslbxm\\é\ud800\0'
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["points", "x"]), inner, max_size=2),
    max_leaves=8,
)
keys = st.sampled_from(["points", "labels", "boxes", "mask_input", "objects", "other"])


@QUIET
@given(st.dictionaries(keys, values, max_size=3))
def test_any_json_becomes_prompts_or_a_code(document: dict[str, object]) -> None:
    try:
        parse_prompts_json(json.dumps(document))
    except PromptError as error:
        assert error.code in CODES


@QUIET
@given(st.binary(max_size=60) | st.text(LETTERS, max_size=60))
def test_any_text_ends_in_a_code(text: str | bytes) -> None:
    try:
        parse_prompts_json(text)
    except PromptError as error:
        assert error.code in CODES
    for parse in (parse_point, parse_box):
        try:
            parse(str(text))
        except PromptError as error:
            assert error.code in CODES


ODD_NUMBERS = [
    0,
    1,
    5,
    99.5,
    100,
    101,
    -1,
    2,
    0.5,
    1e30,
    1e39,
    10**30,
    10**400,
    np.nan,
    np.inf,
    True,
    None,
    "1",
    [1],
    {},
]
ODD_PARTS = [None, 5, True, "1,2", {}, [], [[]], [[[]]], np.nan, [None], [[1, 2], [3]]]


def odd_part(rng: random.Random, name: str) -> object:
    """A part that is usually of the right shape, with numbers of which some are odd."""
    if rng.random() < 0.12:
        return rng.choice(ODD_PARTS)
    shapes = {
        "points": [(2, 2), (1, 2), (2, 1, 2), (2,), (1, 3)],
        "labels": [(2,), (1,), (2, 1), (1, 2), ()],
        "boxes": [(4,), (2, 4), (1, 4), (3,), (1, 2, 2)],
        "mask_input": [(4, 4), (1, 4, 4), (1, 1, 4, 4), (2, 1, 4, 4), (2, 4, 4), (4,)],
    }
    odd = rng.choice([0, 0, 0.05, 0.3])

    def fill(shape: tuple[int, ...]) -> object:
        if shape:
            return [fill(shape[1:]) for _ in range(shape[0])]
        return rng.choice(ODD_NUMBERS) if rng.random() < odd else rng.randrange(2 if name == "labels" else 100)

    return fill(rng.choice(shapes[name]))


def answer(door: Callable[[], Prompts | list[Prompts]]) -> object:
    """What a door makes of prompts in an image of 100 x 60: the objects, or the reason code."""
    try:
        objects = resolve_prompts(door(), (60, 100)).objects
    except PromptError as error:
        return error.code
    return [
        [None if part is None else part.tolist() for part in (entry.points, entry.labels, entry.box, entry.mask_input)]
        for entry in objects
    ]


def words_of(parts: dict[str, Any]) -> tuple[list[str], list[str]] | None:
    """The options --point and --box that say the same; None where they cannot."""
    points, labels, boxes = (parts.get(name) for name in ("points", "labels", "boxes"))
    plain = "mask_input" not in parts and isinstance(points, list | None) and isinstance(boxes, list | None)
    rows = [*(points or []), *(boxes or [])] if plain else [None]
    if not rows or not all(isinstance(row, list) and all(type(x) in (int, float) for x in row) for row in rows):
        return None
    if any(len(row) != 2 for row in points or []) or any(len(row) != 4 for row in boxes or []):
        return None
    if labels is None:
        labels = [1] * len(points or [])
    if not isinstance(labels, list) or len(labels) != len(points or []) or (points and len(boxes or []) > 1):
        return None
    if not all(type(label) in (int, float) for label in labels):
        return None
    return [f"{x},{y},{label}" for (x, y), label in zip(points or [], labels, strict=True)], [
        ",".join(map(str, box)) for box in boxes or []
    ]


def test_the_same_prompts_have_the_same_answer_at_every_door() -> None:
    rng, codes, at_the_command_line = random.Random(14), collections.Counter[str](), 0
    for _ in range(10_000):
        names = [name for name in ("points", "labels", "boxes", "mask_input") if rng.random() < 0.5]
        parts = {name: odd_part(rng, name) for name in names}
        expected = answer(lambda parts=parts: Prompts(**parts))
        codes[expected if isinstance(expected, str) else "answered"] += 1
        text = json.dumps(parts)
        assert answer(lambda text=text: parse_prompts_json(text)) == expected, text
        several = json.dumps({"objects": [parts]})
        assert answer(lambda text=several: parse_prompts_json(text)) == expected, text
        if (words := words_of(parts)) is not None:
            at_the_command_line += 1
            assert answer(lambda words=words: gather_prompts(*words, None, None)) == expected, text
    assert at_the_command_line > 200
    everything = {"bad_shape", "length_mismatch", "non_finite", "bad_label", "bad_mask_input", "no_prompts"}
    assert min(codes[code] for code in (*everything, "point_outside", "empty_box", "box_outside", "answered")) > 10
