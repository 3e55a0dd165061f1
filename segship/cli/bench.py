# SPDX-License-Identifier: Apache-2.0
"""The command that measures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segship.bench.benchmark import benchmark
from segship.bench.options import ArrayFormat, BenchmarkOptions
from segship.bench.report import BenchmarkReport, draw_chart
from segship.cli.look import Json
from segship.cli.output import errors_console, make_table, megabytes, plain, print_json, results_console
from segship.errors import InputError
from segship.files import write_file

_DEFAULTS = BenchmarkOptions()
_OBJECTS = ",".join(map(str, _DEFAULTS.objects))


def bench(
    target: str,
    /,
    *,
    backend: str = _DEFAULTS.backend,
    device: str = _DEFAULTS.device,
    precision: str = _DEFAULTS.precision,
    streams: int = _DEFAULTS.streams,
    compile: bool = _DEFAULTS.compile,
    threads: str = "",
    stage: tuple[str, ...] = (),
    image: Path | None = None,
    objects: str = _OBJECTS,
    points: int = _DEFAULTS.points,
    batch: str = "1",
    points_per_side: int = _DEFAULTS.points_per_side,
    warm_up: int = _DEFAULTS.warm_up,
    repeats: Annotated[int, Parameter(name=("--repeats", "--loop"))] = _DEFAULTS.repeats,
    seconds: float = _DEFAULTS.seconds,
    fresh: Annotated[bool, Parameter(negative="--no-fresh")] = _DEFAULTS.fresh,
    fresh_repeats: int = _DEFAULTS.fresh_repeats,
    shape: tuple[str, ...] = (),
    size: tuple[str, ...] = (),
    input: Path | None = None,
    output: Path | None = None,
    output_format: ArrayFormat = _DEFAULTS.output_format,
    machine_name: str | None = None,
    plot: Path | None = None,
    overwrite: bool = False,
    json: Json = False,
) -> None:
    """Measure how fast a model is here, stage by stage, or the pure loop of one ONNX graph.

    Numbers come only with the machine, the versions, the precision and the threads that they were measured with.

    Parameters
    ----------
    target
        A model as `segment` takes it, or an .onnx file of any program.
    backend
        onnxruntime, openvino or torch; auto takes what load would take.
    device
        cpu or cuda.
    precision
        fp32, or what the backend has besides.
    streams
        Calls that the backend works on side by side; each has its part of the threads.
    compile
        Let torch compile the modules on CUDA.
    threads
        Threads of the runtime, several comma-separated to compare them; all usable cores when left out.
    stage
        Only stages that begin so: decode image, preprocess, encode, decode, everything, graph; of a semantic model
        decode image, preprocess, segment, graph; may be repeated.
    image
        Picture to measure on; a photograph of 1800 x 1200 when left out.
    objects
        Numbers of objects that are decoded together, comma-separated.
    points
        Points of each object.
    batch
        Images that the graph of an encoder or of a semantic model takes at once, comma-separated.
    points_per_side
        Points along one side of the grid of everything.
    warm_up
        Calls of each row that do not count.
    repeats
        Calls of each row that count.
    seconds
        Begin no further call of a row after this time.
    fresh
        Also start fresh processes, for cold start and peak memory.
    fresh_repeats
        Fresh processes of each kind; medians count.
    shape
        For a graph: shapes of one row or gear, as in "point_coords:1,4,2;point_labels:1,4"; may be repeated.
    size
        For a graph: sizes of a named dynamic axis, as in objects=1,8,64 or height=512; may be repeated.
    input
        For a graph: folder of .npy or .bin files to run through it; one folder for each input if it has several.
    output
        Folder for what comes out of those files.
    output_format
        npy, bin or txt.
    machine_name
        Name of the processor, where the system does not say it.
    plot
        Draw the rows into this .svg file.
    overwrite
        Replace the .svg file if it is there.
    """
    options = BenchmarkOptions(
        backend=backend,
        device=device,
        precision=precision,
        streams=streams,
        compile=compile,
        threads=parse_numbers("--threads", threads),
        stages=stage,
        image=image,
        objects=parse_numbers("--objects", objects),
        points=points,
        batch_sizes=parse_numbers("--batch", batch),
        points_per_side=points_per_side,
        warm_up=warm_up,
        repeats=repeats,
        seconds=seconds,
        fresh=fresh,
        fresh_repeats=fresh_repeats,
        shapes=tuple(parse_shapes(text) for text in shape),
        sizes=dict(parse_size(text) for text in size),
        inputs=input,
        outputs=output,
        output_format=output_format,
        machine_name=machine_name,
    )
    report = benchmark(target, options, progress=lambda what: errors_console().print(plain(what), style="dim"))
    if plot is not None:
        write_file(plot, draw_chart(report).encode(), overwrite=overwrite)
    if json:
        print_json(report.to_dict())
        return
    _print_report(report)
    if plot is not None:
        results_console().print(f"drawn into {plain(str(plot))}")


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
