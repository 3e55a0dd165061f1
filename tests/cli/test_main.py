# SPDX-License-Identifier: Apache-2.0
"""Commands, exit codes and the shape of errors."""

import pytest

import segship
from segship import errors
from segship.cli.main import app, exit_code
from segship.cli.output import plain

COMMANDS = ("segment", "everything", "demo", "fetch", "export", "inspect", "models", "doctor", "bench")
COMMANDS += ("tune", "evaluate", "train-ids", "semantic")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and command in out


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
    assert code == 2 and out == "" and "nope" in err and "segship --help" in err
    assert run_json("segment", "--nope")[1]["error"]["code"] == "usage"


def test_text_from_outside_cannot_steer_the_terminal():
    assert plain("a\x1b[31mb") == "a\\x1b[31mb"
    assert plain("[red]b\u202e") == "\\[red]b\\u202e"
