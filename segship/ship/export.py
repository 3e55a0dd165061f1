# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a checked bundle: the steps, a comparison after each, a folder whole or not at all.

Nothing here knows a family or a task: their modules `family`, `graphs` and `task` have the verbs. Needs torch and onnx.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from segship.bundle import Bundle, write_bundle
from segship.bundle.artifacts import Option
from segship.bundle.evidence import EXACT, Check, Evidence, Row, require_passed
from segship.bundle.folder import refuse_stranger, refuse_taken
from segship.bundle.manifest import task_module
from segship.errors import ExportError
from segship.ship.graph.cut import NOTHING, CutGraph, cut_graph
from segship.ship.graph.fill import fill_graph
from segship.ship.graph.lower import lower_opset
from segship.ship.graph.simplify import simplify_graph
from segship.ship.graph.trace import LOWEST_TRACED_OPSET, names_in, tensors_of, trace_graph
from segship.ship.loading import LoadedModel, load_model
from segship.ship.options import ExportOptions
from segship.ship.verify import open_graph, torch_sessions
from segship.spec import GraphSpec
from segship.tune import Known, TuneOptions, candidates, tune_bundle

Report = Callable[[str, Sequence[Row]], None]
"""Called after every step with its name and the rows of its comparison."""
Progress = Callable[[str, float], None]
"""Called before every part with its name and the share of the whole export, 0 to 1, that is done; parts are weighted by
the time that they take of a vit_b on a CPU."""
GraphChange = Callable[[nn.Module, GraphSpec, CutGraph], CutGraph]
"""Makes the next graph of a module from its contract and from the last one."""
TRACED = "traced"
CASES_OF_A_STEP = 1


def export_bundle(
    checkpoint_path: Path,
    output: Path,
    options: ExportOptions | None = None,
    report: Report | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a checkpoint of any family to a bundle.

    Every step is compared on one case, and the finished graphs on all; when those fail, the steps are taken again to
    find the one that is guilty.

    Parameters
    ----------
    checkpoint_path
        A ``.pth``, ``.pt``, ``.safetensors`` or ``.ckpt`` file.
    output
        Folder to make. Nothing is left behind when anything fails.
    options
        See `ExportOptions`; its ``contract`` must be ``segship``.
    report, progress
        See `Report` and `Progress`.

    Raises
    ------
    ExportError
        When a step fails, or options belong to another task; `ComparisonFailed` when a graph differs from the model by
        more than the bar.
    CheckpointError
        When the checkpoint cannot be used.
    OutputError
        When ``output`` exists and ``force`` is off, or cannot be written.
    """
    options = options or ExportOptions()
    _refuse_early(output, options)
    begin = Begin(progress)
    begin("reading the checkpoint", 1)
    model = load_model(checkpoint_path, options)
    family, networks, task = model.verbs, model.networks, task_module(model.task)
    bar = options.bar or task.bar(EXACT)
    manifest = family.manifest(model, options)
    cases = task.cases(replace(manifest, graphs=tuple(family.specs(model, options).values())))
    # Before the graphs are made: the modules compute by the way that they were last asked for.
    begin("asking the model for its answers", 16)
    expected = task.answer(cases, torch_sessions(networks.reference(model)))
    parts = networks.graphs(model, options)
    with tempfile.TemporaryDirectory(prefix="segship-export-") as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in parts}
        cut = dict.fromkeys(parts, NOTHING)
        found: Any = None

        def make(step: str, change: GraphChange) -> None:
            for name, (module, spec) in parts.items():
                begin(f"{name}: {step}", 32 / len(parts) if step == TRACED else 1)
                cut[name] = change(module, spec, cut[name])
                save_graph(cut[name], model.module, module, spec, files[name], options)

        def compare(step: str, count: int | None) -> Sequence[Row]:
            nonlocal found
            begin(f"comparing what was {step}", 10 if count is None else 4)
            some = replace(cases, images=cases.images[:count])
            with ExitStack() as stack:
                sessions = {
                    name: stack.enter_context(open_graph(files[name], spec)) for name, (_, spec) in parts.items()
                }
                found = task.answer(some, sessions, expected)
            compared: list[Row] = task.compare(step, some, expected[:count], found, bar)
            return compared

        steps = graph_steps(
            model.module,
            options,
            options.graph_opset(model.task),
            half_weights=model.checkpoint.half_weights,
            largest_sizes=family.largest_sizes(model),
        )
        rivals = candidates() if options.measure else ()
        begin.total = 59 + (len(parts) + 4) * (len(steps) - 1) + MEASURE_WEIGHT * len(rivals)
        rows = take_steps(steps, make, compare, report)
        manifest = replace(manifest, evidence=Evidence(dict(bar), tuple(rows)))
        chosen = _artifact_options(model, options, parts)
        bundle = write_bundle(output, manifest, files, options=chosen, force=options.force)
    return _measure(bundle, Known(cases, expected, found), begin) if options.measure else bundle


def _refuse_early(output: Path, options: ExportOptions) -> None:
    """Refuse what cannot end well before a checkpoint is read."""
    if options.contract != "segship":
        message = f"contract {options.contract!r} is no bundle; use segship.ship.contracts.export_contract"
        raise ExportError(message, code="bad_option")
    refuse_taken(output, force=options.force)
    refuse_stranger(output)


def _artifact_options(
    model: LoadedModel, options: ExportOptions, graphs: Iterable[str]
) -> dict[str, dict[str, Option]]:
    """Return what decided the bytes of each graph."""
    chosen: dict[str, dict[str, Option]] = {
        name: {"opset": options.graph_opset(model.task), "simplify": options.simplify} for name in graphs
    }
    for name, variant in model.verbs.variants(options).items():
        chosen[name] |= {"target": variant, "variant": variant}
    return chosen


def _measure(bundle: Bundle, known: Known, begin: Begin) -> Bundle:
    """Measure the backends on one image, as steps are compared: what a backend changes it changes in every image.

    `segship tune` takes all images, and more time.
    """
    begin("measuring the backends", MEASURE_WEIGHT)

    def measured(check: Check) -> None:
        begin(f"measuring the backends: {check.backend} {check.precision} done", MEASURE_WEIGHT)

    images = known.cases.images[:CASES_OF_A_STEP]
    few = (answers[:CASES_OF_A_STEP] for answers in (known.expected, known.found))
    # A second round follows, so one timed run behind a first is enough here.
    options = TuneOptions(repeats=1)
    return tune_bundle(bundle.path, options, measured, known=Known(replace(known.cases, images=images), *few))


MEASURE_WEIGHT = 14


class Begin:
    """Tells of every part that begins, with the share that those before it have of all."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._done, self.total = progress, 0.0, 100.0

    def __call__(self, what: str, weight: float) -> None:
        if self._progress is not None:
            self._progress(what, min(self._done / self.total, 1.0))
        self._done += weight


def graph_steps(
    model: nn.Module,
    options: ExportOptions,
    opset: int,
    *,
    half_weights: bool = False,
    largest_sizes: Mapping[str, int] | None = None,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
) -> list[tuple[str, GraphChange]]:
    """Return the steps that make a graph, in order: the name of each, and what makes the next graph from the last.

    Graphs are of modules that were made around ``model``, and call weights as its state dict does.
    With ``half_weights`` the checkpoint was saved in half precision, so its weights are stored so again;
    ``largest_sizes`` are those of `trace_graph`; ``finish`` adds nodes written by hand behind tracing.
    """

    def trace(module: nn.Module, spec: GraphSpec, _: CutGraph) -> CutGraph:
        traced = trace_graph(module, spec, opset=opset, largest_sizes=largest_sizes)
        graph = cut_graph(traced, spec, names_in(model, module))
        return graph if finish is None else replace(graph, body=finish(graph.body))

    def to_body(change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> GraphChange:
        return lambda _module, _spec, graph: replace(graph, body=change(graph.body))

    steps: list[tuple[str, GraphChange]] = [(TRACED, trace)]
    if options.simplify:
        steps.append(("simplified", to_body(simplify_graph)))
    if opset < LOWEST_TRACED_OPSET:
        steps.append((f"lowered to opset {opset}", to_body(lambda body: lower_opset(body, opset))))
    if half_weights:
        steps.append(("exact weights as fp16", lambda _module, _spec, graph: replace(graph, halves=True)))
    return steps


def save_graph(
    graph: CutGraph, model: nn.Module, module: nn.Module, spec: GraphSpec, path: Path, options: ExportOptions
) -> None:
    """Write a graph with the weights of the module that it was traced from, which was made around the model."""
    names = names_in(model, module)
    weights = {names.get(name, name): tensor.detach().numpy() for name, tensor in tensors_of(module).items()}
    largest = options.largest_inline_bytes
    fill_graph(graph.template(), spec, weights, path, halves=graph.halves, largest_inline_bytes=largest)


def take_steps(
    steps: Sequence[tuple[str, GraphChange]],
    make: Callable[[str, GraphChange], None],
    compare: Callable[[str, int | None], Sequence[Row]],
    report: Report | None,
) -> list[Row]:
    """Take the steps of `graph_steps` one after the other, and compare what each has made.

    A step is compared on `CASES_OF_A_STEP` cases, which a fault of the step shows in, and what the last has made on
    all. Where only all of them show one, the steps are taken again until one fails on all. ``report`` is told of the
    step that stops the export, too.

    Raises
    ------
    ComparisonFailed
        At the first step whose graph differs by more than the bar.
    """
    rows: list[Row] = []
    last = steps[-1][0]
    for step, change in steps:
        make(step, change)
        compared = compare(step, None if step == last else CASES_OF_A_STEP)
        if step == last and len(steps) > 1 and not all(row.passed for row in compared):
            step, compared = _guilty(steps, make, compare) or (step, compared)
        rows.extend(compared)
        if report is not None:
            report(step, compared)
        require_passed(compared)
    return rows


def _guilty(
    steps: Sequence[tuple[str, GraphChange]],
    make: Callable[[str, GraphChange], None],
    compare: Callable[[str, int | None], Sequence[Row]],
) -> tuple[str, Sequence[Row]] | None:
    """Return the first step before the last that fails on all cases, and its rows."""
    for step, change in steps[:-1]:
        make(step, change)
        compared = compare(step, None)
        if not all(row.passed for row in compared):
            return step, compared
    return None
