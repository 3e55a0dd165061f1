# SPDX-License-Identifier: Apache-2.0
"""``segship tune``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from segship.backends.choice import choose_backend
from segship.backends.session import RunOptions
from segship.cli.everything import parse_bytes
from segship.cli.options import BUDGET_GROUP, Fields, Force, Json, command
from segship.cli.output import check_plot, make_table, megabytes, plain, print_json, progress_console, results_console
from segship.errors import InputError
from segship.files import write_file
from segship.tune import Budget, Trial, TuneOptions, draw_trials, pareto_front, tune_budget, tune_bundle

if TYPE_CHECKING:
    from segship.bundle.evidence import Check

ACCURACY = {"promptable": "mask_iou_mean", "semantic": "pixels_equal"}
"""What the table shows of a task where a budget names no figure."""
TIMES = {"decode": "8 clicks ms"}
"""What a timing is called in the table, where that is not its name."""


@command
def tune(
    model: str,
    /,
    *,
    options: Annotated[TuneOptions, Fields()],
    budget: Annotated[list[str] | None, Parameter(metavar="NAME=VALUE", group=BUDGET_GROUP)] = None,
    memory: Annotated[str | None, Parameter(metavar="SIZE", group=BUDGET_GROUP)] = None,
    latency: Annotated[str | None, Parameter(metavar="TIME", group=BUDGET_GROUP)] = None,
    plot: Annotated[Path | None, Parameter(group=BUDGET_GROUP)] = None,
    overwrite: Force = False,
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
    budget
        The least agreement with fp32, such as mask_iou=0.985 or pixels_equal=0.99: takes the fastest of all precisions,
        runtimes and numbers of threads that keeps it, for `--backend auto --precision auto`. May be given again.
    memory
        At most so much memory of a process, such as 1.5G; with --budget or alone.
    latency
        At most so long, such as 300ms, for what is timed.
    plot
        With a budget: draw accuracy over latency into this .svg file.
    overwrite
        Replace the .svg file if it is there.
    out
        Write a copy there; the bundle itself is renewed when left out.

    Examples
    --------
    segship tune sam_vit_b
    segship tune sam_vit_b --budget mask_iou=0.985 --memory 1.5G --plot pareto.svg
    """
    if budget or memory is not None or latency is not None:
        check_plot(plot, overwrite=overwrite)
        _tune_budget(model, make_budget(budget or [], memory, latency), options, out, plot, overwrite, json)
        return
    if plot is not None:
        raise InputError("--plot draws what a budget was chosen from; give --budget too", code="bad_option")
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
    console.print(checks_table(checks))
    for precision, choice in choices.items():
        chosen = f"{choice.backend} {choice.precision}"
        console.print(f"--backend auto --precision {precision}: [bold]{plain(chosen)}[/], {plain(choice.reason)}")
    console.print(f"written to {plain(str(bundle.path))}")


def make_budget(named: Sequence[str], memory: str | None, latency: str | None) -> Budget:
    """Return the budget that stands on the command line.

    Examples
    --------
    >>> make_budget(["mask_iou=0.985"], "1.5G", "0.3s").limits
    {'mask_iou_mean': 0.985, 'memory_bytes': 1500000000.0, 'latency_ms': 300.0}
    """
    least = {}
    for text in named:
        name, _, value = text.partition("=")
        if not re.fullmatch(r"\d*\.?\d+", value):
            raise InputError(f"--budget is {text!r}; accepted is NAME=VALUE, such as mask_iou=0.985", code="bad_option")
        least["mask_iou_mean" if name == "mask_iou" else name] = float(value)
    milliseconds = None
    if latency is not None:
        found = re.fullmatch(r"(\d*\.?\d+)(ms|s)", latency)
        if found is None:
            raise InputError(f"--latency is {latency!r}; accepted is a time, such as 300ms or 0.3s", code="bad_option")
        milliseconds = float(found[1]) * (1000 if found[2] == "s" else 1)
    return Budget(least, None if memory is None else parse_bytes(memory), milliseconds)


def _tune_budget(
    model: str, budget: Budget, options: TuneOptions, out: Path | None, plot: Path | None, overwrite: bool, json: bool
) -> None:
    with progress_console().status(f"measuring {plain(model)}"):
        bundle, trials = tune_budget(model, budget, options, _report, out=out)
    choice = bundle.manifest.choice
    assert choice is not None
    accuracy = next(iter(budget.least), ACCURACY[bundle.manifest.task])
    front = pareto_front(trials, accuracy)
    if plot is not None:
        write_file(plot, draw_trials(trials, accuracy).encode(), overwrite=overwrite)
    if json:
        tried = [
            {"backend": one.check.backend, "precision": one.check.precision, "threads": one.check.threads}
            | {"figures": _finite(one.figures), "pareto": one in front, "breaks": _finite(budget.excess(one))}
            for one in trials
        ]
        print_json({"path": str(bundle.path), "tried": tried, "choice": asdict(choice)})
        return
    console = results_console()
    console.print(_trials_table(trials, front, budget, accuracy))
    told = f"{choice.backend} {choice.precision} on {choice.threads} threads"
    console.print(f"--backend auto --precision auto: [bold]{plain(told)}[/], the fastest that keeps the budget")
    console.print(f"written to {plain(str(bundle.path))}")


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in figures.items()}


def _trials_table(trials: Sequence[Trial], front: Sequence[Trial], budget: Budget, accuracy: str) -> Table:
    rows = [
        (one.check.backend, one.check.precision, one.check.threads, f"{one.figures.get(accuracy, 0):.4f}")
        + (f"{one.figures['latency_ms']:,.1f}", megabytes(int(one.figures["memory_bytes"])))
        + (megabytes(int(one.figures["bytes"])), "yes" if one in front else "", ", ".join(budget.excess(one)))
        for one in trials
    ]
    heads = (
        "backend",
        "precision",
        ">threads",
        f">{accuracy}",
        ">ms",
        ">peak memory",
        ">size",
        "Pareto front",
        "breaks",
    )
    return make_table(heads, rows)


def checks_table(checks: Sequence[Check]) -> Table:
    """Return a table of checks: what ran, how fast, and whether it passed."""
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
