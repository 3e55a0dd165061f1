# SPDX-License-Identifier: Apache-2.0
"""Commands, exit codes and the shape of errors."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import segship
from segship import errors
from segship.cli.main import COMMANDS as PANELS
from segship.cli.main import app, exit_code, find_command
from segship.cli.output import plain

COMMANDS = ("segment", "everything", "demo", "fetch", "export", "inspect", "models", "doctor", "bench")
COMMANDS += ("tune", "evaluate", "train-ids", "semantic")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and out.startswith(f"Usage: segship {command} ")


LINES = {name: line for lines in PANELS.values() for name, line in lines.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_one_line_in_the_list_which_begins_its_own_help(run, command):
    assert f"\n  {command.ljust(10)}  {LINES[command]}" in run("--help")[1]
    assert inspect.getdoc(find_command(command).default_command).splitlines()[0] == LINES[command]
    assert run(command, "--help")[1].splitlines()[2].strip() == LINES[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_part_of_a_help_is_empty(run, command):
    lines = [line.rstrip() for line in run(command, "--help")[1].splitlines()]
    titles = {"Arguments", "Options", "Input", "Model", "Output"}
    assert all(lines[place + 1].startswith("  ") for place, line in enumerate(lines) if line in titles)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_an_example_that_is_understood(run, command):
    example = run(command, "--help")[1].splitlines()[-1].removeprefix("Example: ")
    program, *tokens = shlex.split(example)
    assert program == "segship" and tokens[0] == command
    app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_the_list_of_commands_imports_no_command():
    code = "import sys; from segship.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert not {f"segship.cli.{name.replace('-', '_')}" for name in COMMANDS} & set(loaded)
    assert not {"onnxruntime", "openvino", "torch", "onnx", "segship.jobs"} & set(loaded)


def test_commands_are_those_of_the_readme():
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS)


def test_version(run):
    assert run("--version")[1].strip() == segship.__version__


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ImageError, 3),
        (errors.PromptError, 3),
        (errors.UnsafeCheckpoint, 3),
        (errors.BundleError, 3),
        (errors.BackendUnavailable, 4),
        (errors.FetchError, 4),
        (errors.ComparisonFailed, 5),
        (errors.OutputError, 6),
        (errors.SegshipError, 1),
    ],
)
def test_exit_codes(kind, code):
    assert exit_code(kind("message")) == code


def test_unknown_option_is_a_usage_error(run, run_json):
    code, out, err = run("segment", "--nope")
    assert code == 2 and out == "" and "nope" in err and "see: segship segment --help" in err
    assert "see: segship --help" in run("segmnet")[2]
    assert run_json("segment", "--nope")[1]["error"]["code"] == "usage"


def test_text_from_outside_cannot_steer_the_terminal():
    assert plain("a\x1b[31mb") == "a\\x1b[31mb"
    assert plain("[red]b\u202e") == "\\[red]b\\u202e"


def commands_of_the_docs():
    root = Path(__file__).parents[2]
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
            for line in filter(lambda line: line.startswith("segship "), block.splitlines()):
                lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                words = " ".join(shlex.quote(word) for word in lexer)
                for call in re.split(r" '?(?:&&|[|;>])'? ", words):
                    program, *tokens = shlex.split(call)
                    if program == "segship":
                        yield pytest.param(tokens, id=f"{page.stem}: {' '.join(tokens)}")


@pytest.mark.parametrize("tokens", list(commands_of_the_docs()))
def test_commands_of_the_docs_are_understood(tokens):
    app.parse_args(tokens, exit_on_error=False, print_error=False)
