# SPDX-License-Identifier: Apache-2.0
"""Printing: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from segship.promptable.predictor import Predictor

if TYPE_CHECKING:
    from segship.semantic.predictor import SemanticPredictor

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


EXIT_BAD_INPUT = 3


class Outcome(Protocol):
    """An image that was done."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a JSON document says of it."""


Done = TypeVar("Done", bound=Outcome)


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that could not be used, and why."""

    image: str
    code: str
    message: str


def report_outcomes(
    predictor: Predictor | SemanticPredictor,
    model: str,
    outcomes: Iterable[Done | FailedImage],
    print_image: Callable[[Done], None],
    *,
    as_json: bool,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Print outcomes as they come, so that no picture is kept, and return the exit code.

    ``more`` is what else a JSON document says of the run.
    """
    documents: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for outcome in outcomes:
        if isinstance(outcome, FailedImage):
            failed.append(asdict(outcome))
            print_failure(outcome)
        elif as_json:
            documents.append(outcome.to_dict())
        else:
            print_image(outcome)
    if as_json:
        print_json({**describe_run(predictor, model), **(more or {}), "images": documents, "failed": failed})
    else:
        results_console().print(f"[dim]{plain(model)} in {plain(predictor.description)}[/]")
    return EXIT_BAD_INPUT if failed else 0


def describe_run(predictor: Predictor | SemanticPredictor, model: str) -> dict[str, Any]:
    """Return what a JSON document says of the model and of what ran it."""
    return {
        "model": model,
        "architecture": predictor.manifest.architecture,
        "backend": predictor.backend,
        "precision": predictor.precision,
        "backend_reason": predictor.backend_reason,
        "runs_on": predictor.description,
    }


def print_failure(failure: FailedImage) -> None:
    """Tell of an image that could not be used, on standard error."""
    line = f"[bold red]error[/] [dim]({failure.code})[/] {plain(failure.image)}: {plain(failure.message)}"
    errors_console().print(line, soft_wrap=True)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs the model.

    Parameters
    ----------
    backend
        onnxruntime, openvino or torch; auto takes the fastest that the bundle has found right.
    device
        cpu or cuda.
    precision
        fp32; bf16 and fp16 where the backend and the chip have them; auto may take them where they were measured here.
    threads
        Threads of the runtime; all usable cores when left out.
    streams
        Calls that are worked on side by side (openvino).
    compile
        Compile the model with torch on CUDA.
    """

    backend: str = "auto"
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    streams: int = 1
    compile: bool = False

    def settings(self) -> dict[str, Any]:
        """Return them as `segship.load` takes them."""
        return asdict(self)


DEFAULT_RUNTIME = Runtime()
