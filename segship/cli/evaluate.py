# SPDX-License-Identifier: Apache-2.0
"""``segship evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from segship.cli.main import EXIT_BAD_INPUT
from segship.cli.options import MODEL_GROUP, OUTPUT_GROUP, OVERWRITE, Fields, Json, Option, command
from segship.cli.output import errors_console, make_table, plain, print_error, print_json, progress_bar, results_console
from segship.cli.semantic import SEMANTIC
from segship.datasets.folders import FailedSample
from segship.evaluation import EvaluateOptions, Evaluation
from segship.evaluation import evaluate as evaluate_data_set

_FAILURES_SHOWN = 20


@command
def evaluate(
    data_set: Literal["cityscapes", "ade20k"],
    /,
    *,
    data: Path,
    options: Annotated[
        EvaluateOptions,
        Fields(
            bundle=Option(kind=str | None, group=MODEL_GROUP),
            semantic=SEMANTIC,
            runtime=Fields(None, MODEL_GROUP),
            out=Option(name=("--out", "-o"), kind=Path, default=Path("segship-output"), group=OUTPUT_GROUP),
            overwrite=OVERWRITE,
        ),
    ],
    json: Json = False,
) -> int:
    """Score a semantic model or class maps on a data set.

    Class maps may be another program's. Gives the IoU of every class, mIoU, aAcc and mAcc. A run that stopped goes on
    where it was when the same command is given again. When pictures could not be used, the others are scored, and the
    exit code is 3.

    Parameters
    ----------
    data_set
        cityscapes or ade20k.
    data
        Folder that holds leftImg8bit and gtFine, or images and annotations, or ADEChallengeData2016.

    Examples
    --------
    segship evaluate cityscapes --data cityscapes --bundle streets
    """
    with progress_bar("scoring") as tick:
        evaluation = evaluate_data_set(data_set, data, options, progress=tick)
    if json:
        failed = [failure.to_dict(command_line=True) for failure in evaluation.failed]
        print_json(evaluation.to_dict() | {"failed": failed, "file": str(evaluation.file)})
    else:
        _print_evaluation(evaluation)
    return EXIT_BAD_INPUT if evaluation.failed else 0


def _print_evaluation(evaluation: Evaluation) -> None:
    console = results_console()
    rows = [(name, _figure(iou), _figure(accuracy)) for name, iou, accuracy in evaluation.rows()]
    console.print(make_table(("class", ">IoU", ">Acc"), rows))
    summary = "  ".join(f"[bold]{name}[/] {_figure(value)}" for name, value in evaluation.summary().items())
    console.print(f"\n{summary}" if evaluation.is_complete else f"\n[bold red]of a part of the split:[/] {summary}")
    scored = evaluation.samples - len(evaluation.failed)
    resumed = f", {evaluation.resumed} of them by a run before" if evaluation.resumed else ""
    console.print(f"{scored} of {evaluation.samples} pictures scored in {evaluation.seconds:.0f} s{resumed}")
    if "limited" in evaluation.identity:
        console.print(f"--limit left {evaluation.identity['limited']} pictures of the split")
    if evaluation.failed:
        console.print(f"[bold red]{len(evaluation.failed)} could not be used and count for nothing[/]")
    print_failures(evaluation.failed)
    console.print(f"  {plain(str(evaluation.file))}")


def _figure(percent: float | None) -> str:
    return "nan" if percent is None else f"{percent:.2f}"


def print_failures(failed: Sequence[FailedSample]) -> None:
    """Tell on standard error of the first files that could not be used."""
    for failure in failed[:_FAILURES_SHOWN]:
        print_error(failure.name, failure.code, failure.on_command_line or failure.message)
    if len(failed) > _FAILURES_SHOWN:
        errors_console().print(f"and {len(failed) - _FAILURES_SHOWN} more; --json lists all")
