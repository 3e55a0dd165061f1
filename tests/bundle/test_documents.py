# SPDX-License-Identifier: Apache-2.0
import random
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from pydantic import ConfigDict

from segship.bundle.documents import Document
from segship.errors import InputError

KIND = Document("notes.json", "notes_sha256", 3, 1000, "bad_notes", "write them anew", "write them anew", InputError)


@dataclass(frozen=True)
class Notes:
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    text: str
    parts: tuple[float, ...]
    format_version: Literal[3] = 3


NOTES = Notes("grün", (1.0, 2.5))


def refuse(data, code, words):
    with pytest.raises(InputError, match=words) as caught:
        KIND.parse(data)
    assert caught.value.code == code


def test_a_document_is_read_as_it_was_written():
    data = KIND.write(Notes, NOTES)
    assert KIND.parse(data)["text"] == "grün" and KIND.validate(Notes, data) == NOTES
    assert data.decode().splitlines()[-2] == f'  "notes_sha256": "{KIND.digest(data)}"'
    assert b"text" not in KIND.write(Notes, NOTES, {"text"})


def test_every_changed_byte_is_found():
    data, rng = KIND.write(Notes, NOTES), random.Random(0)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= rng.randrange(1, 256)
        with pytest.raises(InputError):
            KIND.validate(Notes, bytes(changed)) if KIND.parse(bytes(changed)) else None


def test_what_is_no_document_is_refused_in_words():
    refuse(b"{", "bad_notes", "notes.json cannot be used: it is not strict JSON .*; write them anew")
    refuse(b"[]", "bad_notes", "it is no JSON object")
    refuse(b'{"a": 1, "a": 2}', "bad_notes", "key 'a' stands twice")
    refuse(b'{"a": NaN}', "bad_notes", "NaN is no JSON number")
    refuse(b" " * 1001, "bad_notes", "it has 1001 bytes, and at most 1000 are read")
    refuse(b'{"format_version": 2}', "unknown_format_version", "an older segship wrote it; write them anew")
    refuse(b'{"format_version": 4}', "unknown_format_version", "reads 3; update segship, or write them anew")
    refuse(b'{"format_version": 3}', "changed_file", "was changed after it was written")


def test_content_that_does_not_fit_is_named():
    data = KIND.write(dict, {"text": 1, "parts": [1.0, "two"], "format_version": 3})
    with pytest.raises(InputError, match="text: Input should be .*; parts.1: Input should be a valid number") as caught:
        KIND.validate(Notes, data)
    assert caught.value.code == "bad_notes"
