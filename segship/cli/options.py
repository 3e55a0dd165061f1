# SPDX-License-Identifier: Apache-2.0
"""Options of commands are the fields of options classes: name, default and help stand there and nowhere else.

`command` gives a function whose parameters are options classes the flat signature that cyclopts reads. `Fields` and
`Option` say where the command line differs from a class: another name, a text form, a field that stays inside.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from cyclopts import CoercionError, Group, Parameter, Token

from segship.backends.session import RunOptions
from segship.cli.output import be_quiet
from segship.errors import shown
from segship.options import read_help
from segship.writers import WRITERS, check_formats
from segship.writers.instances import Kind

SEARCH_GROUP = Group("Where to look", sort_key=-0.9)
FILTER_GROUP = Group("Which masks stay", sort_key=-0.8)
COST_GROUP = Group("What it may cost", sort_key=-0.7)
LABELS_GROUP = Group("Names for masks", sort_key=-0.6)
VIEWS_GROUP = Group("Views of a picture", sort_key=-0.5)
PROMPTABLE_GROUP = Group("Promptable models alone", sort_key=-0.4)
SEMANTIC_GROUP = Group("Semantic models alone", sort_key=-0.3)
LOCATE_GROUP = Group("Where a graph leaves its reference", sort_key=-0.25)
BUDGET_GROUP = Group("Under a budget", sort_key=-0.22)
GRAPHS_GROUP = Group("Single graphs", sort_key=-0.2)
INPUT_GROUP = Group("Input", sort_key=0)
MODEL_GROUP = Group("Model", sort_key=1)
OUTPUT_GROUP = Group("Output", sort_key=2)

Images = Annotated[str, Parameter(help="Image files, folders of them, patterns; - is standard input.")]
Model = Annotated[
    str,
    Parameter(help="tiny, a bundle, a checkpoint (torch backend), or a known name.", group=MODEL_GROUP),
]
Out = Annotated[Path, Parameter(name=("--out", "-o"), help="Folder for the files.", group=OUTPUT_GROUP)]
Force = Annotated[
    bool, Parameter(name=("--overwrite", "--force"), help="Replace files that are there.", group=OUTPUT_GROUP)
]
Quiet = Annotated[
    bool,
    Parameter(name=("--quiet", "-q"), help="Print neither results for people nor progress.", group=OUTPUT_GROUP),
]
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document.", group=OUTPUT_GROUP)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A field that looks different on the command line.

    Attributes
    ----------
    name
        With its dashes; several are one option.
    kind
        Type that is read; text when there is ``parse``, else that of the field.
    parse
        Makes the field's value of what was read; raises `segship.errors.InputError`.
    default
        Of the command, where it is not that of the class.
    negative
        What switches it off.
    metavar, help, group
        Of the help.
    """

    name: str | tuple[str, ...] | None = None
    kind: Any = None
    parse: Callable[[Any], Any] | None = None
    default: Any = inspect.Parameter.empty
    negative: str | None = None
    metavar: str | None = None
    help: str | None = None
    group: Group | None = None


class Fields:
    """How an options class stands on the command line.

    Parameters
    ----------
    make
        Makes the options of the fields that were given; its own keywords are options too. The class when left out.
    group
        Panel of the help.
    fields
        An `Option` or `Fields` for each field that differs; None leaves it out.
    """

    def __init__(
        self,
        make: Callable[..., Any] | None = None,
        group: Group | None = None,
        /,
        **fields: Option | Fields | None,
    ) -> None:
        self.make = make
        self.group = group
        self.fields = fields


Given = Mapping[str, Any]
"""Values that were given on the command line, by the names of their fields."""


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that cyclopts reads flat, and that calls the given one with its options classes.

    Every command also gets what all have: ``--quiet``.
    """
    parameters, arguments = _flatten(function, Fields())
    quiet = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    parameters.append(quiet)

    @functools.wraps(function)
    def run(*positional: Any, quiet: bool = False, **given: Any) -> Any:
        be_quiet(quiet)
        return function(*positional, **arguments(given))

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _flatten(
    target: Callable[..., Any], how: Fields
) -> tuple[list[inspect.Parameter], Callable[[Given], dict[str, Any]]]:
    """Return the parameters of a function or class, and what makes its keyword arguments of those that were given."""
    hints, helps = get_type_hints(target, include_extras=True), read_help(target)
    parameters: list[inspect.Parameter] = []
    readers: dict[str, Callable[[Given], dict[str, Any]]] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        kind, more = _unwrap(hints[name])
        here = (item for item in more if isinstance(item, Fields | Option))
        option = how.fields.get(name, next(here, Option()))
        if option is None:
            continue
        if isinstance(option, Fields):
            inner, readers[name] = _flatten_field(name, kind, option)
            parameters.extend(inner)
        else:
            parameters.append(_flat(parameter, hints[name], option, helps.get(name), how.group))
            readers[name] = functools.partial(_read, name, option)

    strange = set(how.fields) - set(hints)
    assert not strange, f"{target.__name__} has no {strange}"

    def arguments(given: Given) -> dict[str, Any]:
        return {key: value for reader in readers.values() for key, value in reader(given).items()}

    return parameters, arguments


def _flatten_field(
    name: str, options_class: type, how: Fields
) -> tuple[list[inspect.Parameter], Callable[[Given], dict[str, Any]]]:
    assert is_dataclass(options_class), f"{name} is no options class"
    parameters, arguments = _flatten(options_class, how)
    if how.make is None:
        return parameters, lambda given: {name: options_class(**arguments(given))}
    make = how.make
    own, own_arguments = _flatten(make, Fields(None, how.group))
    return parameters + own, lambda given: {name: make(**arguments(given), **own_arguments(given))}


def _read(name: str, option: Option, given: Given) -> dict[str, Any]:
    value = given.get(name, option.default)
    if value is inspect.Parameter.empty:
        return {}
    return {name: value if option.parse is None else option.parse(value)}


def _flat(
    parameter: inspect.Parameter, hint: Any, option: Option, help_text: str | None, group: Group | None
) -> inspect.Parameter:
    kind = option.kind or (str | None if option.parse else hint)
    default = parameter.default if option.default is inspect.Parameter.empty else option.default
    if option.parse is not None and option.kind is None and isinstance(default, tuple):
        default = ",".join(_as_text(part) for part in default)
    details: dict[str, Any] = {
        "name": option.name,
        "negative": option.negative,
        "metavar": option.metavar,
        "group": option.group or group,
        "help": option.help or help_text,
        "show_default": _as_text(default) or False,
        "converter": _whole if _unwrap(kind)[0] in (int, int | None) else None,
    }
    given = Parameter(**{key: value for key, value in details.items() if value is not None})
    annotation: Any = Annotated[kind, given]
    keyword = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    return parameter.replace(
        annotation=annotation, default=default, kind=parameter.KEYWORD_ONLY if keyword else parameter.kind
    )


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    # cyclopts rounds 2.5 to 2, and nobody would be told.
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise CoercionError(msg=f"{shown(text)} is no whole number", token=tokens[0]) from None


def _as_text(value: Any) -> str:
    """Return a default as people type it; nothing where there is none, or for a flag."""
    if value is None or value is inspect.Parameter.empty or isinstance(value, bool | tuple):
        return "yes" if value is True else ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())


def parse_words(text: str) -> tuple[str, ...]:
    """Return comma-separated words."""
    return tuple(part.strip() for part in text.split(","))


OVERWRITE = Option(name=("--overwrite", "--force"), group=OUTPUT_GROUP)
"""Both names are accepted, and help shows the first."""


EDGES = Option(negative="--no-edges")
"""Left out, it is what the model's manifest says."""


def in_group(group: Group, *names: str, **fields: Option) -> dict[str, Option | Fields | None]:
    """Return fields with the panel that they stand in: some that differ in nothing else, and others."""
    return {name: replace(fields.get(name, Option()), group=group) for name in (*names, *fields)}


def job_fields(kind: Kind, **fields: Option | Fields | None) -> Fields:
    """Return how the options of a job stand on the command line; formats are refused before any work is done."""
    names = Option(
        name="--format",
        parse=lambda text: check_formats(parse_words(text), kind),
        metavar="NAMES",
        help=f"Comma-separated: {', '.join(WRITERS[kind])}.",
        group=OUTPUT_GROUP,
    )
    pixels = Option(name="--max-pixels", help="Take images of up to this many pixels.", group=INPUT_GROUP)
    limits = Fields(pixels=pixels, bytes=None, side=None, aspect_ratio=None)
    outlines = Fields(None, OUTPUT_GROUP, tolerance=Option(metavar="PIXELS")) if kind == "masks" else None
    depth = Option(group=INPUT_GROUP)
    return Fields(formats=names, overwrite=OVERWRITE, limits=limits, depth=depth, outlines=outlines, **fields)


Run = Annotated[RunOptions, Fields(None, MODEL_GROUP)]
