# SPDX-License-Identifier: Apache-2.0
"""Prompts from text: ``x,y[,label]`` and ``x0,y0,x1,y1`` of the command line, and JSON of files and HTTP.

Strict: what is not understood is refused, never skipped. The same prompts give the same result, or the same code,
whichever way they come in: what arrays may hold is checked by `segship.promptable.prompts.Prompts` alone.

JSON is one object with ``points``, ``labels``, ``boxes`` and ``mask_input``, each left out, null or nested lists of
numbers in the shapes that `Prompts` takes; or ``{"objects": [...]}`` with a list of such objects.

Codes of `PromptError` on top of those of `segship.promptable.prompts`: ``bad_json``, ``json_too_large``,
``json_too_deep``, ``unknown_key``, ``duplicate_key``.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

from segship.errors import PromptError
from segship.promptable.prompts import DEFAULT_LIMITS, PromptLimits, Prompts
from segship.spec import LABEL_BACKGROUND, LABEL_FOREGROUND

# float() would also take "1_000", "infinity" and digits of other scripts.
_NUMBER = re.compile(r"\s*[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")
_NOT_FINITE = re.compile(r"\s*[+-]?(nan|inf|infinity)\s*", re.IGNORECASE)
_LONGEST_QUOTE = 60

_KEYS = ("points", "labels", "boxes", "mask_input")
# A string or a bracket. Possessive, and with the closing quote optional, so that no text makes it slower than linear.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


class LabelledPoint(NamedTuple):
    """One point of the command line."""

    x: float
    """Pixels from the left of the upright image."""
    y: float
    """Pixels from its top."""
    label: int
    """1 foreground, 0 background."""


def parse_point(text: str) -> LabelledPoint:
    """Return the point that ``x,y`` or ``x,y,label`` states; the label is 1 for foreground (default) or 0.

    Raises
    ------
    PromptError
        ``bad_shape``, ``non_finite`` or ``bad_label``.
    """
    numbers = _parse_numbers(text, (2, 3), "a point is x,y or x,y,label, such as 500,375,1")
    label = numbers[2] if len(numbers) == 3 else LABEL_FOREGROUND
    if label not in (LABEL_BACKGROUND, LABEL_FOREGROUND):
        raise PromptError(
            f"the point {_quoted(text)} has the label {label:g}; accepted are 1 for foreground and 0 for background",
            code="bad_label",
        )
    return LabelledPoint(numbers[0], numbers[1], int(label))


def parse_box(text: str) -> tuple[float, float, float, float]:
    """Return (x0, y0, x1, y1) from ``x0,y0,x1,y1``.

    Raises
    ------
    PromptError
        ``bad_shape`` or ``non_finite``.
    """
    x0, y0, x1, y1 = _parse_numbers(text, (4,), "a box is x0,y0,x1,y1, such as 425,600,700,875")
    return x0, y0, x1, y1


def _parse_numbers(text: str, counts: tuple[int, ...], accepted: str) -> list[float]:
    parts = text.split(",")
    if len(parts) not in counts:
        raise PromptError(f"{_quoted(text)} has {len(parts)} parts; {accepted}", code="bad_shape")
    return [_parse_number(part, text, accepted) for part in parts]


def _parse_number(part: str, text: str, accepted: str) -> float:
    if _NUMBER.fullmatch(part) is None and _NOT_FINITE.fullmatch(part) is None:
        raise PromptError(f"{_quoted(text)} has {_quoted(part)} where a number belongs; {accepted}", code="bad_shape")
    number = float(part)
    if number - number != 0:
        raise PromptError(f"{_quoted(text)} has a number that is not finite; {accepted}", code="non_finite")
    return number


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "...")


def parse_prompts_json(text: str | bytes, limits: PromptLimits = DEFAULT_LIMITS) -> Prompts | list[Prompts]:
    """Return the prompts that a JSON document states.

    Parameters
    ----------
    text
        The document; bytes are UTF-8.
    limits
        The most bytes, depth and objects.

    Returns
    -------
    Prompts or list of Prompts
        A list for a document with ``objects``; an empty one is no objects.

    Raises
    ------
    PromptError
        With one of the codes in this module's list, or of `Prompts`.
    """
    return prompts_of(load_json_object(text, limits), limits)


def load_json_object(text: str | bytes, limits: PromptLimits = DEFAULT_LIMITS) -> dict[str, Any]:
    """Return the one object that a JSON document is, its numbers as float; what may stand in it is not looked at.

    Raises
    ------
    PromptError
        ``bad_json``, ``json_too_large``, ``json_too_deep`` or ``duplicate_key``.
    """
    document = _load_json(_checked_text(text, limits), limits)
    if not isinstance(document, dict):
        raise PromptError(
            f"the JSON document is {_kind(document)}; it must be an object with {', '.join(_KEYS)}, or with objects",
            code="bad_json",
        )
    return document


def prompts_of(document: dict[str, Any], limits: PromptLimits = DEFAULT_LIMITS) -> Prompts | list[Prompts]:
    """Return the prompts of an object that `load_json_object` gave; errors are those of `parse_prompts_json`."""
    if "objects" not in document:
        return _prompts_of(document, "the JSON document")
    _refuse_unknown_keys(document, ("objects",), 'a JSON document with "objects"')
    entries = document["objects"]
    if not isinstance(entries, list):
        raise PromptError(f'"objects" is {_kind(entries)}; it must be a list of objects', code="bad_json")
    if limits.objects is not None and len(entries) > limits.objects:
        raise PromptError(
            f'"objects" has {len(entries)} entries; at most {limits.objects} are taken in one call',
            code="too_many_objects",
        )
    return [_prompts_of(entry, f"entry {index} of objects") for index, entry in enumerate(entries)]


def _checked_text(text: str | bytes, limits: PromptLimits) -> str:
    if len(text) > limits.json_bytes or (isinstance(text, str) and len(_encoded(text)) > limits.json_bytes):
        raise PromptError(
            f"the JSON document is longer than {limits.json_bytes:,} bytes; give fewer prompts in one call",
            code="json_too_large",
        )
    try:
        return text if isinstance(text, str) else text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"the JSON document is not UTF-8 at byte {error.start}; save it as UTF-8", code="bad_json"
        ) from None


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _load_json(text: str, limits: PromptLimits) -> Any:
    # Before the parser, which calls itself once a level.
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match.group()
        depth += (token in "[{") - (token in "]}")
        if depth > limits.json_depth:
            raise PromptError(
                f"the JSON document is nested deeper than {limits.json_depth} levels; points need four",
                code="json_too_deep",
            )
    try:
        # Whole numbers are read as float too: Python's own whole numbers have no bound, and take time to match.
        # NaN and Infinity too, which `Prompts` refuses, after what it refuses first.
        return json.loads(text, parse_int=float, object_pairs_hook=_refuse_duplicate_keys)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"the text is not JSON: {error.msg} at line {error.lineno}, column {error.colno}", code="bad_json"
        ) from None


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise PromptError(
                f"the JSON document has the key {_quoted(key)} twice in one object; give it once", code="duplicate_key"
            )
        entries[key] = value
    return entries


def _prompts_of(entry: Any, where: str) -> Prompts:
    if not isinstance(entry, dict):
        raise PromptError(f"{where} is {_kind(entry)}; it must be an object with {', '.join(_KEYS)}", code="bad_json")
    _refuse_unknown_keys(entry, _KEYS, where)
    try:
        return Prompts(**entry)
    except PromptError as error:
        raise PromptError(f"{where}: {error}{_odd_value(entry)}", code=error.code) from None


def _refuse_unknown_keys(entry: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = [key for key in entry if key not in known]
    if unknown:
        raise PromptError(
            f"{where} has the unknown key {_quoted(unknown[0])}; accepted are {', '.join(known)}", code="unknown_key"
        )


def _odd_value(entry: dict[str, Any]) -> str:
    """Say in the words of JSON which value is neither null nor a list of finite numbers; nothing if all are."""
    for key, value in entry.items():
        waiting = [] if value is None else [value]
        if not isinstance(value, list | None):
            return f"; {key!r} is {_kind(value)}"
        while waiting:
            for item in waiting.pop():
                if isinstance(item, list):
                    waiting.append(item)
                elif not isinstance(item, float):
                    return f"; there is {_kind(item)} in {key!r}"
                elif not math.isfinite(item):
                    return f"; there is {json.dumps(item)} in {key!r}"
    return ""


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", float: "a number", bool: "true or false"}
    return names.get(type(value), "null")
