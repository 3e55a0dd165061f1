# SPDX-License-Identifier: Apache-2.0
"""``segship tune``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from segship.backends.choice import choose_backend
from segship.backends.session import RunOptions
from segship.cli.options import Fields, Json, command
from segship.cli.output import make_table, plain, print_json, progress_console, results_console
from segship.tune import TuneOptions, tune_bundle

if TYPE_CHECKING:
    from segship.bundle.evidence import Check

TIMES = {"decode": "8 clicks ms"}
"""What a timing is called in the table, where that is not its name."""


@command
def tune(
    model: str,
    /,
    *,
    options: Annotated[TuneOptions, Fields()],
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    json: Json = False,
) -> None:
    """Find the backend that is right and fastest on this machine.

    Compares and times every installed backend and writes into the bundle what came out, which decides what
    `--backend auto` takes. Needs no torch.

    Parameters
    ----------
    model
        A bundle's folder, or a known name.
    out
        Write a copy there; the bundle itself is renewed when left out.

    Examples
    --------
    segship tune sam_vit_b
    """
    with progress_console().status(f"measuring {plain(model)}"):
        bundle = tune_bundle(model, options, _report, out=out)
    checks = bundle.manifest.checks
    choices = {precision: choose_backend(checks, RunOptions(precision=precision)) for precision in ("fp32", "auto")}
    if json:
        document: dict[str, Any] = {
            "path": str(bundle.path),
            "backends": [asdict(check) for check in checks],
            "choices": {
                precision: {"backend": choice.backend, "precision": choice.precision, "reason": choice.reason}
                for precision, choice in choices.items()
            },
        }
        print_json(document)
        return
    console = results_console()
    console.print(_checks_table(checks))
    for precision, choice in choices.items():
        chosen = f"{choice.backend} {choice.precision}"
        console.print(f"--backend auto --precision {precision}: [bold]{plain(chosen)}[/], {plain(choice.reason)}")
    console.print(f"written to {plain(str(bundle.path))}")


def _checks_table(checks: Sequence[Check]) -> Table:
    names = list(dict.fromkeys(name for check in checks for name in check.timings_ms))
    heads = (">" + TIMES.get(name, f"{name} ms") for name in names)
    rows = [_check_cells(check, [check.timings_ms.get(name) for name in names]) for check in checks]
    return make_table(("backend", "version", "precision", ">threads", *heads, "comparison"), rows)


def _check_cells(check: Check, milliseconds: Iterable[float | None]) -> tuple[object, ...]:
    passed = "passed" if check.passed else check.problem or "FAILED"
    return (check.backend, check.version, check.precision, check.threads, *map(_number, milliseconds), passed)


def _report(check: Check) -> None:
    passed = "passed" if check.passed else "FAILED"
    progress_console().print(f"{plain(check.backend)} {plain(check.precision)}: {passed}")


def _number(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:,.1f}"
