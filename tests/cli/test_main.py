# SPDX-License-Identifier: Apache-2.0
"""Commands, exit codes and the shape of errors."""

import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import segship
from segship import errors
from segship.cli.main import COMMANDS as PANELS
from segship.cli.main import app, exit_code, find_command
from segship.cli.output import plain
from segship.writers import WRITERS

COMMANDS = ("segment", "everything", "demo", "fetch", "export", "inspect", "models", "doctor", "bench")
COMMANDS += ("tune", "evaluate", "train-ids", "semantic", "import", "bundle", "verify", "template", "calibrate")
COMMANDS += ("certify", "quantize", "convert", "serve", "run")


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


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_has_examples_exit_codes_and_no_default_that_says_nothing(run, command):
    out = run(command, "--help")[1]
    assert "Exit codes: 0 done" in out and "docs/use.md" in out
    assert not re.search(r"\[default: (False|None|\(\))\]", out)
    examples = [line.strip() for line in out.partition("\nExample")[2].splitlines() if "segship" in line]
    assert examples
    for example in examples:
        app.parse_args(shlex.split(example)[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_panel_of_a_help_is_longer_than_a_glance(command):
    find_command(command)
    panels = {}
    for argument in app[command].assemble_argument_collection(default_parameter=app.default_parameter):
        for group in argument.parameter.group or ("Options",):
            panels.setdefault(str(getattr(group, "name", group)), []).append(argument.name)
    assert max(map(len, panels.values())) <= 15, panels


def test_one_name_of_an_option_is_shown_and_the_other_accepted(run, tmp_path):
    assert "--force" not in run("segment", "--help")[1] and "--overwrite" in run("export", "--help")[1]
    for option in ("--overwrite", "--force"):
        assert run("demo", "-o", tmp_path, option)[0] == 0


def test_the_list_tells_of_the_environment_and_of_completion(run, monkeypatch, tmp_path):
    out = run("--help")[1]
    assert all(
        word in out for word in ("SEGSHIP_CACHE", "SEGSHIP_MIRROR", "NO_COLOR", "Exit codes", " 1 a fault", "141")
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("--install-completion", "--shell", "bash")[0] == 0
    (script,) = tmp_path.rglob("completions/segship")
    assert all(word in script.read_text("utf-8") for word in ("everything", "--skip-existing"))
    assert "--shell bash" in out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_files_where_no_word_of_ours_fits(run, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("--install-completion", "--shell", "bash")[0] == 0
    (script,) = tmp_path.rglob("completions/segship")
    lines = f"source '{script}'; COMP_WORDS=(segship segment pho); COMP_CWORD=2; _segship; echo ${{#COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", f"{lines}; complete -p segship"], capture_output=True, text=True, check=True)
    # Nothing of ours fits, and then readline completes files.
    assert done.stdout.splitlines()[0] == "0"
    assert " -o default " in done.stdout and done.stdout.endswith("-F _segship segship\n")


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


def test_a_half_is_no_whole_number(run):
    code, _, err = run("everything", "x.jpg", "--points-per-side", "2.5")
    assert code == 2 and "--points-per-side: 2.5 is no whole number" in err


TOO_LONG = "x" * 5000
ALL_MASK_FORMATS = ",".join(WRITERS["masks"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("segment", "PHOTO", "--point", "1,1", "--model", TOO_LONG), "unknown_model"),
        (("segment", "PHOTO", "--point", "1,1", "--model", ""), "unknown_model"),
        (("everything", "PHOTO", "--labels", TOO_LONG), "unknown_model"),
        (("segment", TOO_LONG, "--point", "1,1"), "unreadable_file"),
        (("segment", "", "--point", "1,1"), "missing_file"),
        (("tune", TOO_LONG), "unknown_model"),
        (("inspect", TOO_LONG), "file_missing"),
        (("inspect", "\udcff"), "file_missing"),
        (("segment", "PHOTO", "--point", "1,1", "--out", TOO_LONG), "cannot_write"),
        (("segment", "PHOTO", "--point", "1,1", "--out", "PHOTO"), "cannot_write"),
        (("segment", "PHOTO", "--point", "1,1", "--out", "PHOTO/inside"), "cannot_write"),
        (("demo", "--out", "PHOTO"), "cannot_write"),
        (("export", "no.pth", "-o", "x", "--size", f"{'9' * 5000},64"), "bad_size"),
        (("export", "no.pth", "-o", "x", "--batch", "9" * 5000), "bad_batch"),
        (("export", "no.pth", "-o", "x", "--scale", f"{'9' * 5000},1"), "bad_scale"),
    ],
)
def test_names_and_numbers_that_no_system_takes_are_told(run_json, photo, tmp_path, monkeypatch, arguments, error):
    monkeypatch.chdir(tmp_path)
    code, document = run_json(*(word.replace("PHOTO", photo.name) for word in arguments))
    assert code > 2 and document["error"]["code"] == error
    assert {path.name for path in tmp_path.iterdir()} <= {photo.name, "segship-output"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a file's name is text")
def test_file_whose_name_is_no_text_is_worked_on(run, photo, tmp_path):
    named = photo.rename(tmp_path / "\udcff.png")
    arguments = ("segment", named, "--point", "1,1", "--out", tmp_path / "out", "--format", ALL_MASK_FORMATS)
    code, out, _ = run(*arguments, "--json")
    assert code == 0 and json.loads(out.encode())["images"][0]["files"]
    code, out, _ = run(*arguments, "--overwrite")
    assert code == 0 and "\\udcff" in out and out.encode()


def test_text_from_outside_cannot_steer_the_terminal():
    assert plain("a\x1b[31mb") == "a\\x1b[31mb"
    assert plain("[red]b\u202e") == "\\[red]b\\u202e"
    assert plain("\udcff") == "\\udcff"


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
