# SPDX-License-Identifier: Apache-2.0
"""JSON files that are read strictly and end with their own digest: the manifest, the certificate, lists of images.

The digest, the last key, is the SHA-256 of the file itself with 64 zeros in the digest's place, so that no changed byte
goes unseen. It guards against damage, not against somebody who computes it anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from segship.errors import BundleError, InputError, SegshipError

Content = TypeVar("Content")

_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Document:
    """A kind of file.

    Attributes
    ----------
    file
        Its name.
    key
        That of the digest.
    version
        The only ``format_version`` that is read.
    most_bytes
        The largest that is read.
    code
        Of the error for what does not fit; ``unknown_format_version`` and ``changed_file`` are the others.
    mend
        What to do about one that cannot be used, and about one of an older version.
    error
        The class of its errors.
    """

    file: str
    key: str
    version: int
    most_bytes: int
    code: str
    mend: str
    mend_older: str
    error: type[SegshipError] = BundleError

    def write(self, kind: type[Content], content: Content, exclude: Set[str] = frozenset()) -> bytes:
        """Return the bytes of the file: UTF-8, indented, keys in the order of the fields, the digest last."""
        body = _adapter(cast(Any, kind)).dump_json(content, indent=2, exclude=set(exclude))
        return self._with_digest(body, hashlib.sha256(self._with_digest(body, _NO_DIGEST)).hexdigest())

    def digest(self, data: bytes) -> str:
        """Return the digest that stands in the bytes of a file that `write` or `parse` knows."""
        found = self._at_the_end.search(data)
        assert found is not None, f"{self.file} has no digest"
        return found[1].decode()

    def parse(self, data: bytes) -> dict[str, Any]:
        """Return the JSON object in the bytes of a file, once its version and its digest are right."""
        if len(data) > self.most_bytes:
            raise self.bad(f"it has {len(data)} bytes, and at most {self.most_bytes} are read")
        try:
            found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise self.bad(f"it is not strict JSON ({error})") from error
        if not isinstance(found, dict):
            raise self.bad("it is no JSON object")
        self._check_version(found.get("format_version"))
        self._check_digest(data)
        return found

    def validate(self, kind: type[Content], data: bytes) -> Content:
        """Return what stands in the bytes of a file that was parsed, as its dataclass."""
        try:
            found: Content = _adapter(cast(Any, kind)).validate_json(self._at_the_end.sub(b"\n}\n", data))
        except ValidationError as error:
            raise self.bad(_first_problems(error)) from error
        except InputError as error:
            # What its dataclasses refuse by themselves, such as a class that stands twice.
            raise self.bad(str(error)) from error
        return found

    def bad(self, problem: str) -> SegshipError:
        """Return the error for a file that cannot be used."""
        return self.error(f"{self.file} cannot be used: {problem}; {self.mend}", code=self.code)

    @property
    def _at_the_end(self) -> re.Pattern[bytes]:
        return re.compile(rb',\n  "%s": "([0-9a-f]{64})"\n}\n\Z' % self.key.encode())

    def _with_digest(self, body: bytes, digest: str) -> bytes:
        """Add the digest as the last key of a JSON object that ends in a line end and a brace."""
        return body[:-2] + f',\n  "{self.key}": "{digest}"\n}}\n'.encode()

    def _check_version(self, version: object) -> None:
        # True equals 1 in Python, and is no version.
        if type(version) is int and version == self.version:
            return
        is_older = type(version) is int and version < self.version
        mend = f"an older segship wrote it; {self.mend_older}" if is_older else f"update segship, or {self.mend_older}"
        shown = str(version)[:40]
        message = f"{self.file} has format_version {shown}, and this segship reads {self.version}; {mend}"
        raise self.error(message, code="unknown_format_version")

    def _check_digest(self, data: bytes) -> None:
        stated = self._at_the_end.search(data)
        empty = self._at_the_end.sub(f',\n  "{self.key}": "{_NO_DIGEST}"\n}}\n'.encode(), data)
        if stated is None or hashlib.sha256(empty).hexdigest().encode() != stated[1]:
            message = f"{self.file} was changed after it was written; {self.mend}"
            raise self.error(message, code="changed_file")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    # Milliseconds to make, and the same for every file of a kind.
    return TypeAdapter(kind)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)[:64]!r} stands twice")
    return document


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _first_problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{'.'.join(str(part)[:64] for part in problem['loc']) or 'document'}: {problem['msg']}" for problem in problems
    ]
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more
