# SPDX-License-Identifier: Apache-2.0
"""Commands, exit codes and the shape of errors."""

import inspect
import shlex
import subprocess
import sys

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
