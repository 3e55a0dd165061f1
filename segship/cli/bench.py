# SPDX-License-Identifier: Apache-2.0
"""``segship bench``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from segship.bench.benchmark import benchmark
from segship.bench.options import BenchmarkOptions
from segship.bench.report import BenchmarkReport, draw_chart
from segship.cli.options import GRAPHS_GROUP, MODEL_GROUP, OUTPUT_GROUP, Fields, Force, Json, Option, command, in_group
from segship.cli.output import make_table, megabytes, plain, print_json, progress_console, results_console
from segship.errors import InputError
from segship.files import write_file


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Return comma-separated whole numbers.

    Examples
    --------
    >>> parse_numbers("--threads", "1,2")
    (1, 2)
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        message = f"{option} is {text!r}; accepted are whole numbers, such as 1 or 1,8,64"
        raise InputError(message, code="bad_benchmark_option") from error


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one row of a graph.

    Examples
    --------
    >>> parse_shapes("x:1,3,4;y:2")
    {'x': (1, 3, 4), 'y': (2,)}
    """
    shapes = {}
    for part in text.split(";"):
        name, colon, sizes = part.strip().rpartition(":")
        if not colon or not name or not sizes:
            message = f"--shape is {text!r}; accepted is NAME:SIZE,SIZE;NAME:SIZE, such as image:1,3,1024,1024"
            raise InputError(message, code="bad_benchmark_option")
        shapes[name] = parse_numbers("--shape", sizes)
    return shapes


def parse_size(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the name of a dynamic axis and its sizes.

    Examples
    --------
    >>> parse_size("objects=1,8")
    ('objects', (1, 8))
    """
    name, equals, sizes = text.partition("=")
    if not equals or not name or not sizes:
        message = f"--size is {text!r}; accepted is AXIS=SIZE,SIZE, such as objects=1,8,64"
        raise InputError(message, code="bad_benchmark_option")
    return name, parse_numbers("--size", sizes)


def _numbers(option: str, **more: Any) -> Option:
    return Option(name=option, parse=partial(parse_numbers, option), metavar="NUMBERS", **more)


FIELDS = Fields(
    run=Fields(None, MODEL_GROUP, threads=None),
    threads=_numbers("--threads", group=MODEL_GROUP),
    stages=Option(name="--stage"),
    objects=_numbers("--objects"),
    batch_sizes=_numbers("--batch"),
    repeats=Option(name=("--repeats", "--loop")),
    fresh=Option(negative="--no-fresh"),
    **in_group(
        GRAPHS_GROUP,
        "output_format",
        shapes=Option(
            name="--shape",
            kind=tuple[str, ...],
            default=(),
            parse=lambda texts: tuple(parse_shapes(text) for text in texts),
            metavar="SHAPES",
        ),
        sizes=Option(
            name="--size",
            kind=tuple[str, ...],
            default=(),
            parse=lambda texts: dict(parse_size(text) for text in texts),
            metavar="AXIS=SIZES",
        ),
        inputs=Option(name="--input"),
        outputs=Option(name="--output"),
    ),
)


@command
def bench(
    target: str,
    /,
    *,
    options: Annotated[BenchmarkOptions, FIELDS],
    plot: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
    overwrite: Force = False,
    json: Json = False,
) -> None:
    """Measure how fast a model or an ONNX graph is here.

    A model is measured stage by stage, a graph in a pure loop. Numbers come only with the machine, the versions, the
    precision and the threads that they were measured with.

    Parameters
    ----------
    target
        A model as `segment` takes it, or an .onnx file of any program.
    plot
        Draw the rows into this .svg file.
    overwrite
        Replace the .svg file if it is there.

    Examples
    --------
    segship bench tiny --stage decode --objects 1,8 --no-fresh
    segship bench model.onnx --shape image:1,3,1024,1024 --repeats 10
    """
    report = benchmark(target, options, progress=lambda what: progress_console().print(plain(what), style="dim"))
    if plot is not None:
        write_file(plot, draw_chart(report).encode(), overwrite=overwrite)
    if json:
        print_json(report.to_dict())
        return
    _print_report(report)
    if plot is not None:
        results_console().print(f"drawn into {plain(str(plot))}")


def _print_report(report: BenchmarkReport) -> None:
    console = results_console()
    console.print(f"[bold]{plain(report.target)}[/] in {plain(report.runs_on)}, {plain(report.precision)}")
    console.print(plain(str(report.machine)))
    console.print(plain(", ".join(f"{name} {number}" for name, number in report.versions.items())))
    columns = ("warm process", ">threads", ">p50 ms", ">p90 ms", ">p99 ms", ">a second", ">calls")
    rows = [
        (row.name, row.threads, *(_figure(row.timing.percentile(percent)) for percent in (50, 90, 99)))
        + (_figure(row.timing.per_second), len(row.timing.milliseconds))
        for row in report.rows
    ]
    if rows:
        console.print(make_table(columns, rows))
    if report.fresh:
        fresh = [
            (row.scenario, row.event, row.threads, f"{row.milliseconds:,.0f}", megabytes(row.peak_bytes), row.processes)
            for row in report.fresh
        ]
        head = ("fresh process", "has done", ">threads", ">ms since start", ">peak memory", ">processes")
        console.print(make_table(head, fresh))
    for note in report.notes:
        console.print(f"note: {plain(note)}")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
