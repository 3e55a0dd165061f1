# SPDX-License-Identifier: Apache-2.0
"""Hostile and merely unusual input names."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segship.writers.names import MAX_STEM_BYTES, NAMELESS, output_stems, safe_file_name, safe_stem


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("photo.jpg", "photo"),
        ("a/b/photo.jpg", "photo"),
        ("summer 2024 été 写真 🐱.png", "summer 2024 été 写真 🐱"),
        ("archive.tar.gz", "archive.tar"),
        ("-rf.jpg", "rf"),
        (".hidden.jpg", "hidden"),
        ("...", NAMELESS),
        ("-", NAMELESS),
        ("", NAMELESS),
        ("/", NAMELESS),
        ("a\nb\x1b[31m.png", "a_b_[31m"),
        ("gpj\u202etxt.png", "gpj_txt"),
        ("a:b?c*.png", "a_b_c_"),
        ("..\\..\\x.png", "_.._x"),
        (os.fsdecode(b"caf\xe9.jpg"), "caf_"),
        ("con.jpg", "_con"),
        ("Com1.x.jpg", "_Com1.x"),
        ("ends with a dot. .jpg", "ends with a dot"),
    ],
)
def test_stem_is_safe_and_keeps_what_it_can(name: str, stem: str) -> None:
    assert safe_stem(name) == stem


@given(st.text(), st.text())
def test_any_name_gives_a_stem_that_can_be_made(first: str, second: str) -> None:
    stems = output_stems([first, second, first])
    assert len({stem.casefold() for stem in stems}) == 3
    for stem in stems:
        assert 0 < len(stem.encode("utf-8")) <= MAX_STEM_BYTES
        assert stem[0] not in "-. " and not {"/", "\\", "\0", "\n"} & set(stem)


def test_long_names_are_cut_between_characters() -> None:
    stem = safe_stem("é" * 300 + ".jpg")
    assert set(stem) == {"é"} and len(stem.encode("utf-8")) in (MAX_STEM_BYTES - 1, MAX_STEM_BYTES - 2)


def test_equal_stems_are_numbered_in_order() -> None:
    assert output_stems(["a.jpg", "x/a.png", "a-2.jpg", "A.gif"]) == ["a", "a-2", "a-2-2", "A-3"]


def test_numbered_long_names_stay_within_the_limit() -> None:
    stems = output_stems(["x" * 300] * 12)
    assert len(set(stems)) == 12 and max(map(len, stems)) <= MAX_STEM_BYTES


def test_other_compositions_of_one_name_count_as_equal() -> None:
    names = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    assert output_stems(names)[1].endswith("-2")


def test_file_name_keeps_its_extension_and_loses_its_directories() -> None:
    assert safe_file_name("/home/someone/-a b\n.jpg") == "-a b_.jpg"
