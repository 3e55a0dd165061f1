# SPDX-License-Identifier: Apache-2.0
"""Printing: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segship.errors import InputError
from segship.files import check_ending, check_target

STANDARD_INPUT = "<standard input>"
"""What stands for a lone dash among the arguments."""

_quiet = False

# Columns; a table takes no more of them than its longest lines need.
_WIDEST = 4096


def be_quiet(quiet: bool) -> None:
    """Print results for people, and progress, or not; errors and JSON are always printed."""
    global _quiet
    _quiet = quiet


def results_console() -> Console:
    """Return the console for results; as wide as its tables need when it is no terminal."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDEST, quiet=_quiet)


def progress_console() -> Console:
    """Return the console for progress."""
    return Console(stderr=True, highlight=False, soft_wrap=True, quiet=_quiet)


def errors_console() -> Console:
    """Return the console for errors."""
    return Console(stderr=True, highlight=False)


def check_plot(plot: Path | None, *, overwrite: bool) -> None:
    """Refuse a place that no .svg file can be written to, before minutes are spent on what is drawn."""
    if plot is not None:
        check_ending(plot, [".svg"], "an SVG picture")
        check_target(plot, overwrite=overwrite)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on standard output."""
    print(dump_json(document, indent=2))


def print_json_line(document: Mapping[str, Any]) -> None:
    """Print one line of JSON on standard output, at once."""
    print(dump_json(document), flush=True)


def dump_json(document: Mapping[str, Any], indent: int | None = None) -> str:
    """Return JSON that UTF-8 can hold: bytes of a file's name that are no text stand in it as escapes."""
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def print_failure(code: str, message: str) -> None:
    """Tell on standard error why the command ends."""
    errors_console().print(f"[bold red]error[/] [dim]({code})[/]: {plain(message)}", soft_wrap=True)


def read_standard_input(limit: int) -> bytes:
    """Return what comes from standard input, at most so many bytes."""
    try:
        return cast(bytes, sys.stdin.buffer.read(limit))
    except OSError as error:
        message = f"cannot read standard input: {error.strerror}; name a file instead"
        raise InputError(message, code="unreadable_file") from error


def print_error(subject: str, code: str, message: str) -> None:
    """Tell on standard error of one of many that could not be used; a message need not name it, and may."""
    line = f"[bold red]error[/] [dim]({code})[/] {plain(subject)}: {plain(message.removeprefix(f'{subject}: '))}"
    errors_console().print(line, soft_wrap=True)


def plain(text: str) -> str:
    """Return text from outside so that it can neither style nor steer the terminal."""
    visible = "".join(repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cf", "Cs") else char for char in text)
    return escape(visible)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table of plain text; columns named with a leading ``>`` are aligned right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        # What is too long is folded; an address or a path cut short would be of no use.
        table.add_column(column.removeprefix(">"), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(plain(str(cell)) for cell in row))
    return table


def megabytes(count: int) -> str:
    """Return a number of bytes as megabytes for people, and one that is small beside these as kilobytes."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 or not count else f"{count / 1e3:,.1f} kB"


@contextmanager
def progress_bar(what: str, *, of_bytes: bool = False) -> Iterator[Callable[[int, int | None], None]]:
    """Show on standard error, if it is a terminal, how many are done, and of how many."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    counts = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn())
    console = progress_console()
    hidden = console.quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(plain(what), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_tree(document: Mapping[str, Any]) -> None:
    """Print nested dicts and lists as indented text, leaving out what is empty."""
    console = results_console()
    for line in _lines(document, 0):
        console.print(line)


def _lines(value: Any, depth: int) -> list[str]:
    indent = "  " * depth
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            if item is None or item in ([], (), {}, ""):
                continue
            if _is_short(item):
                lines.append(f"{indent}[bold]{plain(str(key))}[/]: {plain(_short(item))}")
            else:
                lines.append(f"{indent}[bold]{plain(str(key))}[/]:")
                lines.extend(_lines(item, depth + 1))
        return lines
    if isinstance(value, list | tuple):
        return [line for item in value for line in _item_lines(item, depth)]
    return [f"{indent}{plain(str(value))}"]


def _item_lines(item: Any, depth: int) -> list[str]:
    lines = _lines(item, depth + 1)
    if lines:
        lines[0] = f"{'  ' * depth}- {lines[0].lstrip()}"
    return lines


def _is_short(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(not isinstance(item, Mapping | list | tuple) for item in value) and len(str(value)) < 100
    return not isinstance(value, Mapping)


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
