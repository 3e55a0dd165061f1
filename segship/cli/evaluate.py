# SPDX-License-Identifier: Apache-2.0
"""The command that scores semantic models, and the one that writes train ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cyclopts import Parameter
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segship.cli.look import Json
from segship.cli.output import (
    DEFAULT_RUNTIME,
    EXIT_BAD_INPUT,
    Runtime,
    errors_console,
    make_table,
    plain,
    print_json,
    results_console,
)
from segship.datasets.folders import FailedSample, Truth
from segship.datasets.train_ids import TrainIdsOptions, write_train_ids
from segship.errors import InputError
from segship.evaluation import EvaluateOptions, Evaluation
from segship.evaluation import evaluate as evaluate_data_set
from segship.evaluation.sources import Ids, RawType
from segship.semantic.views import MULTI_SCALE_RATIOS, SemanticOptions

Number = TypeVar("Number", int, float)

_FAILURES_SHOWN = 20


def evaluate(
    data_set: Literal["cityscapes", "ade20k"],
    /,
    *,
    data: Path,
    bundle: str | None = None,
    predictions: Path | None = None,
    split: str = "val",
    truth: Truth = "auto",
    batch: int = 1,
    window: str | None = None,
    stride: str | None = None,
    ratios: str | None = None,
    flip: bool = False,
    multi_scale: bool = False,
    ids: Ids = "train",
    raw_type: RawType = "auto",
    workers: int | None = None,
    limit: int | None = None,
    strict: bool = False,
    fresh: bool = False,
    out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("segship-output"),
    overwrite: bool = False,
    runtime: Runtime = DEFAULT_RUNTIME,
    json: Json = False,
) -> int:
    """Score a semantic model, or class maps of another program, on a data set: IoU of every class, mIoU, aAcc, mAcc.

    A run that stopped goes on where it was when the same command is given again.

    Parameters
    ----------
    data_set
        cityscapes or ade20k.
    data
        Folder that holds leftImg8bit and gtFine, or images and annotations, or ADEChallengeData2016.
    bundle
        The model to run: a bundle, a checkpoint (torch backend), or a known name.
    predictions
        Folder of class maps to score instead: .png, .npy or raw .bin, found by the stems of the pictures.
    split
        Folder below those of the data set.
    truth
        auto, labelTrainIds, labelIds or polygons, for cityscapes.
    batch
        Pictures that the model gets at once.
    window
        HEIGHT,WIDTH of sliding windows; the whole picture at once when left out.
    stride
        ROWS,COLUMNS from window to window.
    ratios
        Comma-separated factors of the test scale; answers are averaged.
    flip
        Look at each ratio mirrored too.
    multi_scale
        The published multi-scale test: ratios 0.5 to 1.75 and mirrored.
    ids
        What class maps hold: train, classes as models give them; label, the data set's own numbers.
    raw_type
        What .bin files hold: int64, int32, uint8, float32; auto tells it from their length.
    workers
        Processes that read files, 0 for none; one for each core, up to 8, if the split is not small, when left out.
    limit
        Only the first pictures, so many.
    strict
        A damaged or missing file ends the evaluation; without it such files are listed and count for nothing.
    fresh
        Begin anew instead of going on.
    out
        Folder for the result, a JSON document.
    overwrite
        Replace a result that is there.
    """
    options = EvaluateOptions(
        bundle=bundle,
        predictions=predictions,
        split=split,
        truth=truth,
        batch=batch,
        look=parse_look(window, stride, ratios, flip=flip, multi_scale=multi_scale),
        runtime=runtime.settings(),
        ids=ids,
        raw_type=raw_type,
        workers=workers,
        limit=limit,
        strict=strict,
        fresh=fresh,
        out=out,
        overwrite=overwrite,
    )
    with _progress("scoring") as tick:
        evaluation = evaluate_data_set(data_set, data, options, progress=tick)
    if json:
        print_json(evaluation.to_dict() | {"file": str(evaluation.file)})
    else:
        _print_evaluation(evaluation)
    return 0


def train_ids(
    *,
    data: Path,
    split: tuple[str, ...] = (),
    overwrite: bool = False,
    workers: int | None = None,
    json: Json = False,
) -> int:
    """Write *_gtFine_labelTrainIds.png for Cityscapes, beside its polygons, as programs for training want them.

    Parameters
    ----------
    data
        Folder that holds gtFine.
    split
        Only this split; may be repeated. All that are there when left out.
    overwrite
        Write files anew that are there.
    workers
        Processes, 0 for none; one for each core, up to 8, if there is much to do, when left out.
    """
    options = TrainIdsOptions(splits=split, overwrite=overwrite, workers=workers)
    with _progress("writing train ids") as tick:
        done = write_train_ids(data, options, progress=tick)
    if json:
        print_json(asdict(done))
    else:
        results_console().print(f"{done.written} written, {done.kept} were there, {len(done.failed)} failed")
        _print_failures(done.failed)
    return EXIT_BAD_INPUT if done.failed else 0


def parse_look(
    window: str | None, stride: str | None, ratios: str | None, *, flip: bool, multi_scale: bool
) -> SemanticOptions:
    """Return how the model looks at a picture, from text of the command line.

    Examples
    --------
    >>> parse_look("512,1024", None, "0.5,1", flip=True, multi_scale=False).ratios
    (0.5, 1.0)
    """
    if multi_scale and (ratios is not None or flip):
        raise InputError("--multi-scale was given with --ratios or --flip, which it contains", code="bad_option")
    factors = MULTI_SCALE_RATIOS if multi_scale else _numbers("--ratios", ratios or "1", float)
    return SemanticOptions(_pair("--window", window), _pair("--stride", stride), factors, flip or multi_scale)


def _pair(option: str, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    numbers = _numbers(option, text, int)
    if len(numbers) != 2:
        raise InputError(f"{option} is {text!r}; accepted are two sizes, such as 512,1024", code="bad_option")
    return numbers[0], numbers[1]


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        message = f"{option} is {text!r}; accepted are numbers with commas between"
        raise InputError(message, code="bad_option") from error


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on standard error how many files are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = errors_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_evaluation(evaluation: Evaluation) -> None:
    console = results_console()
    rows = [(name, _figure(iou), _figure(accuracy)) for name, iou, accuracy in evaluation.rows()]
    console.print(make_table(("class", ">IoU", ">Acc"), rows))
    summary = "  ".join(f"[bold]{name}[/] {_figure(value)}" for name, value in evaluation.summary().items())
    console.print(f"\n{summary}")
    scored = evaluation.samples - len(evaluation.failed)
    resumed = f", {evaluation.resumed} of them by a run before" if evaluation.resumed else ""
    console.print(f"{scored} of {evaluation.samples} pictures scored in {evaluation.seconds:.0f} s{resumed}")
    if evaluation.failed:
        console.print(f"[bold red]{len(evaluation.failed)} could not be used and count for nothing[/]")
    _print_failures(evaluation.failed)
    console.print(f"  {plain(str(evaluation.file))}")


def _figure(percent: float | None) -> str:
    return "nan" if percent is None else f"{percent:.2f}"


def _print_failures(failed: Sequence[FailedSample]) -> None:
    for failure in failed[:_FAILURES_SHOWN]:
        line = f"[bold red]error[/] [dim]({failure.code})[/] {plain(failure.name)}: {plain(failure.message)}"
        errors_console().print(line, soft_wrap=True)
    if len(failed) > _FAILURES_SHOWN:
        errors_console().print(f"and {len(failed) - _FAILURES_SHOWN} more; --json lists all")
