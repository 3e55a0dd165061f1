# SPDX-License-Identifier: Apache-2.0
"""The table of commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

import segship
from segship.cli.output import STANDARD_INPUT, errors_console, plain
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
EXIT_CODES: tuple[tuple[type[SegshipError], int], ...] = (
    (InputError, 3),
    (CheckpointError, 3),
    (BundleError, 3),
    (BackendUnavailable, 4),
    (FetchError, 4),
    (ExportError, 5),
    (OutputError, 6),
)
EXIT_INTERRUPTED = 130

app = App(
    name="segship",
    help="Ship Segment Anything to any machine: from a published checkpoint to verified, fast, servable masks.",
    version=segship.__version__,
    default_parameter=Parameter(negative=()),
)
# Each is imported when it is asked for, so that one command does not wait for what another needs.
for command in (
    "segment:segment",
    "everything:everything",
    "semantic:semantic",
    "segment:demo",
    "ship:fetch",
    "ship:export",
    "tune:tune",
    "look:inspect",
    "look:models",
    "look:doctor",
    "bench:bench",
    "evaluate:evaluate",
    "evaluate:train_ids",
):
    app.command(f"segship.cli.{command}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see `segship.cli`."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    # A lone dash means standard input, and would be taken for an option without a name.
    tokens = [STANDARD_INPUT if token == "-" else token for token in tokens]
    try:
        answer = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _fail(str(error), "usage", EXIT_USAGE, tokens)
    except SegshipError as error:
        return _fail(str(error), error.code, exit_code(error), tokens)
    except KeyboardInterrupt:
        return _fail("interrupted", "interrupted", EXIT_INTERRUPTED, tokens)
    return answer if isinstance(answer, int) else 0


def exit_code(error: SegshipError) -> int:
    """Return the exit code that an error stands for."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


def _fail(message: str, code: str, exit_with: int, tokens: Sequence[str]) -> int:
    errors_console().print(f"[bold red]error[/] [dim]({code})[/]: {plain(message)}", highlight=False, soft_wrap=True)
    if "--json" in tokens:
        print(json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False))
    if exit_with == EXIT_USAGE:
        errors_console().print("see: segship --help", highlight=False)
    return exit_with
