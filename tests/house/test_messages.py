# SPDX-License-Identifier: Apache-2.0
"""Errors speak with one voice (clauses joined by commas and semicolons, no full stop), in the words of each door."""

import ast
import re

import pytest

from segship import errors
from segship.cli.main import app
from tests.house.package import is_within, sources

ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}


def text_of(node):
    """The words of a string, with an x for every value that is put in; None of anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def messages(tree):
    """Every string in an error that is made, and in the functions that make one."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) in ERRORS | {"ValueError", "TypeError"}:
            parts = {id(part) for node in ast.walk(call) if isinstance(node, ast.JoinedStr) for part in node.values}
            yield from (text_of(node) or "" for node in ast.walk(call) if id(node) not in parts)


def test_no_message_is_a_row_of_sentences():
    found = {
        module
        for module, (_, tree) in sources().items()
        if any(re.search(r"\w\.$|[a-z]\. [A-Z]", message) for message in messages(tree))
    }
    assert found == set()


COMMAND = re.compile(r"`segship ([a-z-]+)([^`]*)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
# What is typed into a shell, and belongs to pip.
OF_PIP = {"--force-reinstall", "--no-deps", "--upgrade"}
IN_PYTHON = re.compile(r"\b[a-z_]+=(True|False|None|')|segship\.[a-z_]+|ImageLimits|ExportOptions")


def ways(tree):
    """The two sides of every way out."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "way":
            yield call.args


def strings(tree):
    """Every string that is neither documentation nor a side of a way out."""
    apart = {id(node) for sides in ways(tree) for side in sides for node in ast.walk(side)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) or isinstance(node, ast.JoinedStr):
            apart.update(id(part) for part in (node.values if isinstance(node, ast.JoinedStr) else [node.value]))
        if id(node) not in apart and text_of(node):
            yield text_of(node)


def options_of(command):
    return {name for argument in app[command].assemble_argument_collection() for name in argument.names}


@pytest.fixture(scope="module")
def known():
    return {command: options_of(command) for command in app if not command.startswith("-")}


def test_what_is_said_to_both_doors_names_no_way_of_one_of_them():
    for module, (_, tree) in sources().items():
        # The command line is one door; drawings, graphs and scripts for other machines hold other people's words.
        scripts = (
            "ship.targets.ascend.commands",
            "ship.targets.ascend.runner",
            "ship.targets.tensorrt",
            "ship.targets.nndeploy",
        )
        for text in (
            [] if is_within(module, ("cli", "bench.report", "compat", "pipelines", *scripts)) else strings(tree)
        ):
            left = set(OPTION.findall(COMMAND.sub("", text))) - OF_PIP
            assert left == set() or text.startswith("--"), f"{module}: {text}"


def test_each_side_of_a_way_out_exists_where_it_is_shown(known):
    found = [(module, sides) for module, (_, tree) in sources().items() for sides in ways(tree)]
    assert len(found) >= 25
    every = set().union(*known.values())
    for module, sides in found:
        python, command, *http = ((text_of(side) or "").removeprefix("--x") for side in sides)
        assert not any(OPTION.search(text) for text in http), f"{module}: {http}"
        assert not OPTION.search(python) and "`segship" not in python, f"{module}: {python}"
        assert not IN_PYTHON.search(command), f"{module}: {command}"
        assert set(OPTION.findall(command)) <= every, f"{module}: {command}"


def test_messages_of_the_command_line_have_no_words_of_python():
    for module, (_, tree) in sources().items():
        if is_within(module, ("cli",)):
            assert [text for text in messages(tree) if IN_PYTHON.search(text)] == [], module


def test_every_command_that_is_recommended_exists_with_its_options(known):
    for module, (_, tree) in sources().items():
        texts = [*strings(tree), *(text_of(side) or "" for sides in ways(tree) for side in sides)]
        for command, rest in (call for text in texts for call in COMMAND.findall(text)):
            assert set(OPTION.findall(rest)) <= known[command], f"{module}: segship {command}{rest}"


def test_an_error_has_the_words_of_both_doors_and_keeps_them_on_its_way_between_processes():
    import pickle

    error = errors.OutputError(f"x exists; replace it with {errors.way('force=True', '--overwrite')}", code="c")
    assert error.over_http == str(error)
    assert errors.InputError(f"no{errors.way(' x', ' --x', '')}").over_http == "no"
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert str(one) == "x exists; replace it with force=True" and one.code == "c"
        assert one.on_command_line == "x exists; replace it with --overwrite"
