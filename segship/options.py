# SPDX-License-Identifier: Apache-2.0
"""What every options class is held to: an option that it does not have is told, and each field has its type.

An options class calls `check_types` when it is made, and `check_whole` for its numbers. So a slip is refused at the
door, by the name of the option, and not by whatever meets it first inside.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from segship.errors import InputError, SegshipError, option, shown

Options = TypeVar("Options")

_NUMBERS: dict[type, tuple[type, str]] = {int: (Integral, "a whole number"), float: (Real, "a number")}
_NAMES = {bool: "True or False", str: "a string", type(None): "None", Path: "a path"}


def make_options(door: str, options_class: type[Options], given: Mapping[str, Any]) -> Options:
    """Make options of the keywords of a function; one that there is not is a TypeError that says what it may mean."""
    known = [field.name for field in fields(options_class)]  # type: ignore[arg-type]  # A dataclass, all of them.
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f"did you mean {near[0]}" if near else f"accepted are {', '.join(known)}"
            raise TypeError(f"{door}() got an unexpected keyword argument {name!r}; {meant}")
    return options_class(**given)


def check_types(options: object, error: type[SegshipError] = InputError) -> None:
    """Refuse values that are not of the types of their fields, as ``bad_option``; paths may be strings.

    Examples
    --------
    >>> from segship.backends.session import RunOptions
    >>> RunOptions(threads="2")
    Traceback (most recent call last):
    segship.errors.InputError: threads is '2'; accepted is a whole number or None
    """
    kind: Any = type(options)
    for name, hint in _hints(kind).items():
        value = getattr(options, name)
        if isinstance(value, str) and Path in (hint, *get_args(hint)) and str not in get_args(hint):
            object.__setattr__(options, name, Path(value))
        elif not _fits(value, hint):
            raise error(f"{option(name)} is {_quoted(value)}; accepted is {_accepted(hint)}", code="bad_option")


def check_whole(options: object, least: int, most: int, *names: str) -> None:
    """Refuse numbers outside a range, as ``bad_option``; None and what is no number are left to the types."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            message = f"{option(name)} is {_quoted(value)}; accepted is a whole number from {least} to {most}"
            raise InputError(message, code="bad_option")


@functools.cache
def _hints(options_class: Any) -> dict[str, Any]:
    hints = get_type_hints(options_class)
    return {field.name: hints[field.name] for field in fields(options_class)}


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if origin is tuple:
        # A list is taken for a tuple, and text is no row of letters.
        several = isinstance(value, tuple | list)
        same = parts[-1] is Ellipsis or (several and len(value) == len(parts))
        return several and same and all(_fits(item, parts[0]) for item in value)
    if origin is not None:
        return isinstance(value, origin)
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint][0]) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def _accepted(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_accepted(part) for part in parts)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is tuple:
        number = "a tuple" if parts[-1] is Ellipsis else f"a tuple of {len(parts)}"
        return f"{number}, each {_accepted(parts[0])}"
    if hint in _NUMBERS:
        return _NUMBERS[hint][1]
    return _NAMES.get(hint) or f"a {getattr(origin or hint, '__name__', hint)}"


def _quoted(value: object) -> str:
    return shown(value if isinstance(value, int) else repr(value))


def read_help(documented: Callable[..., Any]) -> dict[str, str]:
    """Return what a docstring says of each parameter or attribute, on one line; base classes speak for theirs."""
    found: dict[str, str] = {}
    for one in reversed(getattr(documented, "__mro__", (documented,))[:-1] or (documented,)):
        section = re.search(
            r"\n(?:Parameters|Attributes)\n-+\n(.*?)(?:\n\n\w+\n---|\Z)", inspect.getdoc(one) or "", re.S
        )
        for names, text in re.findall(r"^(\S.*)\n((?: +.*\n?|\n)+)", section[1] if section else "", re.M):
            line = " ".join(text.split()).replace("``", "")
            found.update(dict.fromkeys(names.split(", "), line))
    return found
