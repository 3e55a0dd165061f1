# SPDX-License-Identifier: Apache-2.0
"""Printing: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

STANDARD_INPUT = "<standard input>"
"""What stands for a lone dash among the arguments."""

# Columns; a table takes no more of them than its longest lines need.
_WIDEST = 4096


def results_console() -> Console:
    """Return the console for results; as wide as its tables need when it is no terminal."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDEST)


def errors_console() -> Console:
    """Return the console for progress and errors."""
    return Console(stderr=True, highlight=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def plain(text: str) -> str:
    """Return text from outside so that it can neither style nor steer the terminal."""
    visible = "".join(repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cf") else char for char in text)
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
    """Return a number of bytes as megabytes for people."""
    return f"{count / 1e6:,.1f} MB"
