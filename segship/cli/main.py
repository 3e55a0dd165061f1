# SPDX-License-Identifier: Apache-2.0
"""The table of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import inspect
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from keyword import iskeyword
from typing import Any

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.help import DefaultFormatter, DescriptionRenderer, HelpPanel, NameRenderer
from cyclopts.help.specs import DefaultStyled
from rich.console import Console, ConsoleOptions
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import segship
from segship.cli.output import STANDARD_INPUT, be_quiet, dump_json, errors_console, print_failure
from segship.errors import (
    BackendUnavailable,
    BundleError,
    CheckpointError,
    ExportError,
    FetchError,
    InputError,
    OutputError,
    SegshipError,
)

EXIT_USAGE = 2
EXIT_BAD_INPUT = 3
EXIT_CODES: tuple[tuple[type[SegshipError], int], ...] = (
    (InputError, EXIT_BAD_INPUT),
    (CheckpointError, EXIT_BAD_INPUT),
    (BundleError, EXIT_BAD_INPUT),
    (BackendUnavailable, 4),
    (FetchError, 4),
    (ExportError, 5),
    (OutputError, 6),
)
# As shells tell of SIGINT, and of SIGPIPE: what read standard output is gone, as `head` is after its lines.
EXIT_TOO_MANY = 8
"""A run was ended by ``--max-quarantine``; 7 is one that is done and has pictures without an answer."""
EXIT_INTERRUPTED = 130
EXIT_NOBODY_READS = 141
_OUTPUT_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


class Help(DefaultFormatter):
    """Prints each part of a help as a title over indented lines, without a frame."""

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print how a command is called; arguments that may be many are images, but for those of ``run``."""
        many = "[ACTION] SOURCE-OR-RUN" if "segship run" in usage.plain else "IMAGES..."
        super().render_usage(console, options, Text(usage.plain.replace("[ARGS...]", many), "cyclopts.usage"))

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one part, unless nothing is in it."""
        if not panel.entries:
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        # Wide enough for every command, so that the parts of the list are aligned.
        table.add_column(style="cyclopts.name", min_width=10)
        table.add_column(overflow="fold")
        names, descriptions = NameRenderer(max_width=console.width * 2 // 5), DescriptionRenderer()
        for entry in panel.entries:
            # Other names are for those who know them from elsewhere, and nothing given is no default worth a word.
            default = None if entry.default in ("False", "()", "None") else entry.default
            entry = entry.copy(positive_names=entry.positive_names[:1], default=default)
            table.add_row(names(entry), descriptions(entry))
        console.print(f"[bold]{panel.title}[/]")
        console.print(DefaultStyled(Padding(table, (0, 0, 1, 2))))


_END = """\
Exit codes: 0 done, 1 a fault of segship itself, 2 not understood, 3 input cannot be used, 4 something is missing here,
5 not exported, 6 not written, 130 interrupted, 141 nobody reads the output any more. Documentation: docs/ of the
repository, from docs/use.md and docs/ship.md on."""
_ENVIRONMENT = """\
Environment: SEGSHIP_CACHE is the folder of fetched checkpoints and of bundles that have a name (else segship in
XDG_CACHE_HOME, or in the system's own cache folder); SEGSHIP_MIRROR is a base address to fetch from; NO_COLOR switches
colors off."""


class _App(App):
    """Completes files, where nothing else fits, in bash too: cyclopts leaves that out."""

    def generate_completion(self, **how: Any) -> str:
        """Return the script of a shell."""
        script = super().generate_completion(**how)
        return script.replace("\ncomplete -F ", "\ncomplete -o bashdefault -o default -o filenames -F ")


app = _App(
    name="segship",
    help="Ship Segment Anything to any machine: from a published checkpoint to verified, fast, servable masks.",
    help_epilogue=f"{_ENVIRONMENT}\n\n{_END}",
    version=segship.__version__,
    default_parameter=Parameter(negative=()),
    group_parameters=Group("Options", sort_key=-1),
    group_commands=Group("Options", sort_key=9),
    help_formatter=Help(),
    suppress_keyboard_interrupt=False,
)
COMMANDS = {
    "Use": {
        "segment": "Segment images from points, boxes and masks.",
        "everything": "Find everything in images, without a prompt.",
        "semantic": "Find the class of every pixel of images.",
        "run": "Segment any number of pictures into Parquet, each exactly once.",
        "serve": "Serve masks over HTTP, and a page to click in.",
        "demo": "Segment a photograph inside the package from one click.",
    },
    "Ship": {
        "fetch": "Fetch a published model and make its bundle, without torch.",
        "bundle": "Make a bundle of a checkpoint in seconds, without torch.",
        "export": "Export a checkpoint to a checked bundle.",
        "import": "Make a bundle of ONNX graphs that another program exported.",
        "calibrate": "List pictures and prompts to quantize and certify models on.",
        "certify": "Certify what every precision costs in masks or classes here.",
        "verify": "Prove a certificate anew, or hold graphs against a torch model.",
        "template": "Make the graphs of an architecture anew, as the package has them.",
        "quantize": "Make a bundle smaller or faster, and say what it costs.",
        "convert": "Convert a model for another engine or program, and compare it.",
        "tune": "Find the backend that is right and fastest on this machine.",
    },
    "Measure": {
        "bench": "Measure how fast a model or an ONNX graph is here.",
        "evaluate": "Score a semantic model or class maps on a data set.",
        "train-ids": "Write the train ids of Cityscapes beside its polygons.",
    },
    "Look": {
        "inspect": "Say what a bundle, an ONNX graph or a checkpoint holds.",
        "models": "List the models that have a name, and where each stands.",
        "doctor": "Say what runs here, what is missing, and what mends it.",
    },
}
"""Panels of the list, their commands, and the first line of the help of each. Said here too, since a command is
imported only when it is asked for, so that none waits for what another needs."""

for place, (panel, lines) in enumerate(COMMANDS.items()):
    group = Group(panel, sort_key=place)
    for command, line in lines.items():
        # A keyword of Python is no name of a function.
        function = command.replace("-", "_") + "_" * iskeyword(command)
        source, place_in_panel = f"segship.cli.{function}:{function}", list(lines).index(command)
        app.command(source, name=command, group=group, help=line, sort_key=place_in_panel)

app.register_install_completion_command(
    help="Install completion for this shell, or for another: --shell bash, zsh, fish or powershell.",
    group="Options",
    help_flags=["--help"],
)


def find_command(name: str) -> App:
    """Return a command with the whole of its help: its docstring, and the examples in it last."""
    found = app[name]
    # Not the line of the list.
    found.help = None
    _, _, examples = (inspect.getdoc(found.default_command) or "").partition("Examples\n--------\n")
    lines = examples.strip().splitlines()
    code_lines = "\n".join(f"    {line.strip()}" for line in lines)
    found.help_epilogue = f"{_END}\n\nExample{'s' * (len(lines) > 1)}:\n\n{code_lines}"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see `segship.cli`."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # The shell has closed it (`>&-`).
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return EXIT_NOBODY_READS
    except OSError as error:
        _drop_output()
        message = f"cannot write standard output: {error.strerror}; what was not printed is lost"
        return _fail(message, OutputError.default_code, exit_code(OutputError("")), ())


def _drop_output() -> None:
    """Keep Python from writing what is left at its end, which would fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_interrupt(error: BaseException | None) -> bool:
    """Tell whether an error comes of an interrupt: a runtime makes an ImportError of one that meets its import."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _is_of_output(error: OSError) -> bool:
    """Tell whether an error of the system is of standard output, since those of files have a name or one of our own."""
    return error.filename is None and error.errno in _OUTPUT_ERRORS


def _run(arguments: Sequence[str] | None) -> int:
    be_quiet(False)
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    # A lone dash means standard input, and would be taken for an option without a name.
    tokens = [STANDARD_INPUT if token == "-" else token for token in tokens]
    asked = next((name for names in COMMANDS.values() for name in names if name in tokens[:1]), "")
    try:
        if asked:
            find_command(asked)
        answer = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        code = _fail(str(error), "usage", EXIT_USAGE, tokens)
        errors_console().print(f"see: {' '.join(['segship', asked]).strip()} --help", highlight=False)
        return code
    except SegshipError as error:
        if _is_interrupt(error):
            return _fail("interrupted", "interrupted", EXIT_INTERRUPTED, tokens)
        return _fail(error.on_command_line, error.code, exit_code(error), tokens)
    except OSError as error:
        if _is_of_output(error):
            raise
        # Of a file; those that were thought of have an error of their own.
        where = "" if error.filename is None else f"{error.filename}: "
        message = f"{where}{error.strerror}; check the name, and who may read and write it"
        return _fail(message, "system_error", EXIT_BAD_INPUT, tokens)
    except MemoryError:
        message = "there is not enough memory for it; ask for less at once, or for smaller pictures"
        return _fail(message, "out_of_memory", exit_code(BackendUnavailable("")), tokens)
    except KeyboardInterrupt as error:
        return _fail(str(error) or "interrupted", "interrupted", EXIT_INTERRUPTED, tokens)
    return answer if isinstance(answer, int) else 0


def exit_code(error: SegshipError) -> int:
    """Return the exit code that an error stands for: one cause has one code, whatever was done when it came."""
    if error.code == OutputError.default_code:
        error = OutputError("")
    if error.code == "too_many_quarantined":
        return EXIT_TOO_MANY
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def _fail(message: str, code: str, exit_with: int, tokens: Sequence[str]) -> int:
    print_failure(code, message)
    if "--json" in tokens or "--jsonl" in tokens:
        print(dump_json({"error": {"code": code, "message": message}}))
    return exit_with
