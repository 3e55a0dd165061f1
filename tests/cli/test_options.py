# SPDX-License-Identifier: Apache-2.0
"""Fields of options classes as options of a command."""

from dataclasses import dataclass, field
from typing import Annotated

import pytest
from cyclopts import App

from segship.cli.options import Fields, Option, command, read_help
from segship.errors import InputError


@dataclass(frozen=True, slots=True)
class Inner:
    """What is inside.

    Attributes
    ----------
    size
        How large it is,
        in ``pixels``.
    hidden
        Nobody sees it.
    """

    size: int = 3
    hidden: bool = False

    def __post_init__(self):
        if self.size < 0:
            raise InputError("size is below 0", code="bad_option")


@dataclass(frozen=True, slots=True)
class Outer:
    """What is around it.

    Attributes
    ----------
    names, more
        Some names.
    """

    names: tuple[str, ...] = ("a", "b")
    more: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def make_inner(*, double: bool = False, **given):
    """Return what is inside.

    Parameters
    ----------
    double
        Twice as large.
    """
    inner = Inner(**given)
    return Inner(2 * inner.size) if double else inner


@command
def show(
    *words: str,
    options: Annotated[
        Outer,
        Fields(
            names=Option(name="--list", parse=lambda text: tuple(text.split(","))),
            inner=Fields(make_inner, hidden=None),
        ),
    ],
    last: bool = False,
):
    """Show it.

    Parameters
    ----------
    last
        The last one.
    """
    return words, options, last


@pytest.fixture
def answer():
    app = App(default_parameter=None)
    app.default(show)
    return lambda *tokens: app(tokens, exit_on_error=False, print_error=False, result_action="return_value")


def test_defaults_are_those_of_the_classes(answer):
    assert answer() == ((), Outer(), False)


def test_options_reach_the_classes_they_belong_to(answer):
    found = answer("w", "--list", "x,y", "--more", "z", "--size", "4", "--last")
    assert found == (("w",), Outer(("x", "y"), ("z",), Inner(4)), True)
    assert answer("--double")[1].inner == Inner(6)


def test_a_class_refuses_with_its_own_error(answer):
    with pytest.raises(InputError, match="below 0"):
        answer("--size", "-1")


def test_options_have_help_and_defaults_of_their_fields():
    app = App()
    app.default(show)
    options = {argument.name: argument for argument in app.assemble_argument_collection()}
    assert set(options) == {"WORDS", "--list", "--more", "--size", "--double", "--last", "--quiet"}
    assert options["--list"].field_info.default == "a,b" == options["--list"].parameter.show_default
    assert options["--size"].parameter.help == "How large it is, in pixels."
    assert options["--list"].parameter.help == options["--more"].parameter.help == "Some names."
    assert options["--double"].parameter.help == "Twice as large."


def test_help_of_a_class_has_that_of_its_bases():
    @dataclass(frozen=True)
    class Derived(Inner):
        """More.

        Attributes
        ----------
        other
            One more.

        Raises
        ------
        InputError
            Never.
        """

        other: int = 0

    assert read_help(Derived) == {
        "size": "How large it is, in pixels.",
        "hidden": "Nobody sees it.",
        "other": "One more.",
    }
