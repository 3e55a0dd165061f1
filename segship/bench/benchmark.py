# SPDX-License-Identifier: Apache-2.0
"""Measure a model by its stages and graphs, or one graph alone."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import segship
from segship.backends import DEFAULT_BACKEND, installed_version
from segship.backends.choice import AUTO
from segship.backends.opening import open_graph, open_session
from segship.backends.session import RunOptions, Session
from segship.bench.fresh import run_fresh
from segship.bench.graphs import Shapes, batches, find_samples, graph_spec, make_inputs, shape_sets, write_outputs
from segship.bench.options import BenchmarkOptions
from segship.bench.report import BenchmarkReport, BenchmarkRow, FreshRow, Timing, measure
from segship.bench.stages import FRESH_SCENARIOS, photo_bytes, scenario_parameters, stages_of
from segship.bundle import Bundle
from segship.catalog import find_model
from segship.files import real_path
from segship.loading import open_model
from segship.machine import describe_machine, usable_cores
from segship.semantic.manifest import SemanticManifest
from segship.spec import PLACES, GraphSpec

GRAPH_SUFFIX = ".onnx"
GRAPH_STAGE = "graph"
"""What the rows of a bundle's graphs are chosen by, among the names of stages."""

_PACKAGES = ("numpy", "Pillow", "opencv-python-headless")

Progress = Callable[[str], None]
"""Is told what is measured next."""


def benchmark(
    target: str | Path, options: BenchmarkOptions | None = None, *, progress: Progress | None = None
) -> BenchmarkReport:
    """Measure how fast something is here.

    Parameters
    ----------
    target
        What `segship.load` takes; or the path of an ``.onnx`` graph, of any program, for a pure loop of it.
    options
        See `BenchmarkOptions`; its defaults when left out.
    progress
        See `Progress`.

    Raises
    ------
    InputError
        When options do not fit the model or graph, or the machine does not say what a number must stand beside.
    BundleError, BackendUnavailable
        As `segship.load`.

    Examples
    --------
    >>> options = BenchmarkOptions(stages=("decode 1",), repeats=2, fresh=False)
    >>> [row.name for row in benchmark("tiny", options).rows]
    ['decode 1 object']
    """
    options = options or BenchmarkOptions()
    context = _Context(str(target), options, progress or (lambda what: None))
    if Path(target).suffix == GRAPH_SUFFIX:
        return _measure_graph(Path(target), context)
    return _measure_model(context)


@dataclass(frozen=True, slots=True)
class _Context:
    """What one call measures."""

    target: str
    options: BenchmarkOptions
    tell: Progress

    @property
    def runs(self) -> tuple[tuple[int, RunOptions], ...]:
        """Each number of threads, and what runs it."""
        counts = self.options.threads or (usable_cores(),)
        return tuple((threads, replace(self.options.run, threads=threads)) for threads in counts)

    def time(self, call: Callable[[], object], items: int = 1) -> Timing:
        options = self.options
        return measure(call, warm_up=options.warm_up, repeats=options.repeats, seconds=options.seconds, items=items)

    def wants(self, stage: str) -> bool:
        return not self.options.stages or any(stage.startswith(wanted) for wanted in self.options.stages)


def _measure_model(context: _Context) -> BenchmarkReport:
    options, data = context.options, photo_bytes(context.options.image)
    rows: list[BenchmarkRow] = []
    fresh: list[FreshRow] = []
    for threads, run in context.runs:
        context.tell(f"load {context.target}, {threads} threads")
        with open_model(context.target, run) as predictor:
            ran, task = _Ran(predictor.description, predictor.backend, predictor.precision), predictor.manifest.task
            stages = tuple(name for name in options.stages if name != GRAPH_STAGE)
            chosen = replace(options, stages=stages, threads=(threads,))
            if chosen.stages or not options.stages:
                for stage in stages_of(predictor, data, chosen):
                    context.tell(f"{stage.name}, {threads} threads")
                    timing = context.time(stage.work, stage.items)
                    rows.append(BenchmarkRow(stage.name, "stage", threads, timing, stage.detail))
        path = find_model(context.target)
        if path.is_dir() and context.wants(GRAPH_STAGE):
            taken = replace(run, backend=ran.backend, precision=ran.precision)
            rows += _bundle_graphs(Bundle.open(path), taken, threads, context)
        if options.fresh:
            fresh += _fresh_model(context, FRESH_SCENARIOS[task], run, threads, data)
    return _report(context, "model", rows, fresh, ran)


def _bundle_graphs(bundle: Bundle, run: RunOptions, threads: int, context: _Context) -> Iterator[BenchmarkRow]:
    """Yield the pure loops of every graph of a bundle, at the sizes of its dynamic axes that were asked for."""
    options = context.options
    points = (options.points + 1,)
    asked = {"batch": options.batch_sizes, "objects": options.objects, "points": points, PLACES: points}
    if isinstance(bundle.manifest, SemanticManifest):
        long_side, short_side = astuple(bundle.manifest.preprocessing.scale)
        asked |= {"height": (short_side,), "width": (long_side,)}
    asked |= options.sizes
    for spec in bundle.manifest.graphs:
        with open_graph(bundle, spec, run) as session:
            axes = {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)}
            sizes = {axis: values for axis, values in asked.items() if axis in axes}
            yield from _loops(session, replace(options, sizes=sizes, shapes=()), threads, context)


def _measure_graph(path: Path, context: _Context) -> BenchmarkReport:
    options, spec = context.options, graph_spec(path)
    rows: list[BenchmarkRow] = []
    fresh: list[FreshRow] = []
    notes: tuple[str, ...] = ()
    backend = DEFAULT_BACKEND if options.run.backend == AUTO else options.run.backend
    for threads, asked in context.runs:
        run = replace(asked, backend=backend)
        context.tell(f"load {path.name}, {threads} threads")
        with open_session(path, spec, run) as session:
            ran = _Ran(session.description, run.backend, run.precision)
            rows += _loops(session, options, threads, context)
            if options.inputs is not None:
                row, notes = _run_files(session, options, threads)
                rows.append(row)
        if options.fresh:
            first = {name: list(shape) for name, shape in next(shape_sets(spec, options)).items()}
            context.tell(f"fresh processes, {threads} threads")
            parameters = {"graph": str(real_path(path)), "shapes": first}
            fresh += run_fresh("graph", parameters, run, processes=options.fresh_repeats)
    return _report(context, "graph", rows, fresh, ran, notes)


def _loops(session: Session, options: BenchmarkOptions, threads: int, context: _Context) -> Iterator[BenchmarkRow]:
    spec = session.spec
    for shapes in shape_sets(spec, options):
        inputs = make_inputs(spec, shapes)
        name = f"graph {spec.name}{_sizes_text(spec, shapes)}"
        context.tell(f"{name}, {threads} threads")
        timing = context.time(lambda inputs=inputs: session.run(inputs), _items(spec, shapes))  # type: ignore[misc]
        detail = {"shapes": {key: list(shape) for key, shape in shapes.items()}}
        yield BenchmarkRow(name, "graph", threads, timing, detail)


def _run_files(session: Session, options: BenchmarkOptions, threads: int) -> tuple[BenchmarkRow, tuple[str, ...]]:
    """Run files through a graph, once each; only the graph is timed."""
    assert options.inputs is not None
    spec = session.spec
    samples = find_samples(options.inputs, spec)
    shapes = next(shape_sets(spec, options))
    times: list[float] = []
    found: list[list[Any]] = []
    for count, arrays in batches(samples, spec, shapes):
        started = time.perf_counter()
        answer = session.run(arrays)
        times.append(1e3 * (time.perf_counter() - started))
        # Engines may answer in memory that their next run changes.
        found += [[np.array(answer[tensor.name][row : row + 1]) for tensor in spec.outputs] for row in range(count)]
    notes: tuple[str, ...] = ()
    if options.outputs is not None:
        summary = write_outputs(options.outputs, samples, found, options.output_format)
        notes = (f"{len(samples)} samples written; see {summary}",)
    timing = Timing(tuple(times), items=_items(spec, shapes))
    detail = {"files": len(samples), "shapes": {key: list(shape) for key, shape in shapes.items()}}
    return BenchmarkRow(f"files through {spec.name}", "graph", threads, timing, detail), notes


def _items(spec: GraphSpec, shapes: Shapes) -> int:
    """Return how many images or objects a call handles: a dynamic first axis says it, else that of the first input."""
    for tensor in spec.inputs:
        if tensor.shape and isinstance(tensor.shape[0], str):
            return shapes[tensor.name][0]
    first = shapes[spec.inputs[0].name] if spec.inputs else ()
    return first[0] if first else 1


def _sizes_text(spec: GraphSpec, shapes: Shapes) -> str:
    """Return the sizes of dynamic axes for a row's name."""
    sizes = {
        axis: size
        for tensor in spec.inputs
        for axis, size in zip(tensor.shape, shapes[tensor.name], strict=True)
        if isinstance(axis, str)
    }
    return "".join(f", {axis} {size}" for axis, size in sizes.items())


def _fresh_model(
    context: _Context, scenarios: tuple[str, ...], run: RunOptions, threads: int, data: bytes
) -> Iterator[FreshRow]:
    options = context.options
    with tempfile.TemporaryDirectory(prefix="segship-bench-") as folder:
        photo = Path(folder) / "picture"
        photo.write_bytes(data)
        shared = {"model": str(find_model(context.target)), "photo": str(photo)}
        for scenario in scenarios:
            if scenario == "everything" and not context.wants("everything"):
                continue
            # A call for everything takes long enough to be steady.
            processes = 1 if scenario == "everything" else options.fresh_repeats
            for extra in scenario_parameters(scenario, options):
                context.tell(f"fresh processes: {scenario} {extra or ''}, {threads} threads")
                yield from run_fresh(scenario, {**shared, **extra}, run, processes=processes)


@dataclass(frozen=True, slots=True)
class _Ran:
    """What ran: a session's description, and the names that were chosen."""

    runs_on: str
    backend: str
    precision: str


def _report(
    context: _Context,
    kind: str,
    rows: list[BenchmarkRow],
    fresh: list[FreshRow],
    ran: _Ran,
    notes: tuple[str, ...] = (),
) -> BenchmarkReport:
    machine, name = describe_machine(), context.options.machine_name
    return BenchmarkReport(
        target=context.target,
        kind=kind,
        machine=machine if name is None else replace(machine, cpu=name),
        versions=_versions(ran.backend),
        **asdict(ran),
        rows=tuple(rows),
        fresh=tuple(fresh),
        notes=notes,
    )


def _versions(backend: str) -> dict[str, str]:
    """Return the versions of all that has a part in the numbers."""
    versions = {"segship": segship.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            # Another build may stand in for a package, such as opencv-python for its headless sister.
            continue
    return {**versions, backend: installed_version(backend) or "unknown"}
