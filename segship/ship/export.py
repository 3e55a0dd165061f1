# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a checked bundle: the steps, a comparison after each, a folder whole or not at all.

Nothing here knows a family or a task: their modules `family` and `task` have the verbs. Needs torch and onnx.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import onnx
from torch import nn

from segship.bundle import Bundle, write_bundle
from segship.bundle.evidence import EXACT, Evidence, Row, require_passed
from segship.bundle.folder import refuse_stranger
from segship.bundle.manifest import task_module
from segship.errors import ExportError, OutputError
from segship.files import check_target
from segship.ship.graph.lower import lower_opset
from segship.ship.graph.simplify import simplify_graph
from segship.ship.graph.store import halve_exact_weights, save_graph
from segship.ship.graph.trace import LOWEST_TRACED_OPSET, trace_graph
from segship.ship.loading import load_model
from segship.ship.options import ExportOptions
from segship.ship.verify import open_graph, torch_sessions
from segship.spec import GraphSpec
from segship.tune import tune_bundle

Report = Callable[[str, Sequence[Row]], None]
"""Called after every step with its name and the rows of its comparison."""
GraphChange = Callable[[nn.Module, GraphSpec, Path], onnx.ModelProto]
"""Makes the next graph of a module from its contract and from the file of the last one."""


def export_bundle(
    checkpoint_path: Path, output: Path, options: ExportOptions | None = None, report: Report | None = None
) -> Bundle:
    """Export a checkpoint of any family to a bundle.

    Parameters
    ----------
    checkpoint_path
        A ``.pth``, ``.pt`` or ``.safetensors`` file.
    output
        Folder to make. Nothing is left behind when anything fails.
    options
        See `ExportOptions`; its ``contract`` must be ``segship``.
    report
        See `Report`.

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
    if options.contract != "segship":
        message = f"contract {options.contract!r} is no bundle; use segship.ship.contracts.export_contract"
        raise ExportError(message, code="bad_option")
    refuse_taken(output, force=options.force)
    refuse_stranger(output)
    model = load_model(checkpoint_path, options)
    family, task = model.verbs, task_module(model.task)
    bar = options.bar or task.bar(EXACT)
    manifest = family.manifest(model, options)
    cases = task.cases(replace(manifest, graphs=tuple(spec for _, spec in family.graphs(model, options).values())))
    # The modules compute by the way that they were last asked for: the reference has answered before the graphs are
    # made.
    expected = task.answer(cases, torch_sessions(family.reference(model)))
    parts = family.graphs(model, options)
    with tempfile.TemporaryDirectory(prefix="segship-export-") as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in parts}

        def write_and_compare(step: str, change: GraphChange) -> Sequence[Row]:
            for name, (module, spec) in parts.items():
                save_graph(change(module, spec, files[name]), files[name], largest_bytes=options.largest_inline_bytes)
            with ExitStack() as stack:
                sessions = {
                    name: stack.enter_context(open_graph(files[name], spec)) for name, (_, spec) in parts.items()
                }
                compared: list[Row] = task.compare(step, cases, expected, task.answer(cases, sessions, expected), bar)
            return compared

        steps = graph_steps(
            options,
            options.graph_opset(model.task),
            half_weights=model.checkpoint.half_weights,
            largest_sizes=family.largest_sizes(model),
        )
        rows = take_steps(steps, write_and_compare, report)
        manifest = replace(manifest, evidence=Evidence(dict(bar), tuple(rows)))
        chosen = {name: {"opset": options.graph_opset(model.task), "simplify": options.simplify} for name in parts}
        for name, variant in family.variants(options).items():
            chosen[name] |= {"target": variant, "variant": variant}
        bundle = write_bundle(output, manifest, files, options=chosen, force=options.force)
    return tune_bundle(bundle.path) if options.measure else bundle


def graph_steps(
    options: ExportOptions,
    opset: int,
    *,
    half_weights: bool = False,
    largest_sizes: Mapping[str, int] | None = None,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
) -> list[tuple[str, GraphChange]]:
    """Return the steps that make a graph, in order: the name of each, and what makes the next graph from the last.

    With ``half_weights`` the checkpoint was saved in half precision, so its weights are stored so again;
    ``largest_sizes`` are those of `trace_graph`; ``finish`` adds nodes written by hand behind tracing.
    """

    def trace(module: nn.Module, spec: GraphSpec, _: Path) -> onnx.ModelProto:
        model = trace_graph(module, spec, opset=opset, largest_sizes=largest_sizes)
        return model if finish is None else finish(model)

    steps: list[tuple[str, GraphChange]] = [("traced", trace)]
    if options.simplify:
        steps.append(("simplified", lambda _module, _spec, path: simplify_graph(onnx.load(str(path)))))
    if opset < LOWEST_TRACED_OPSET:
        lowered = f"lowered to opset {opset}"
        steps.append((lowered, lambda _module, _spec, path: lower_opset(onnx.load(str(path)), opset)))
    if half_weights:
        steps.append(("exact weights as fp16", lambda _module, _spec, path: _halved(path)))
    return steps


def _halved(path: Path) -> onnx.ModelProto:
    model = onnx.load(str(path))
    halve_exact_weights(model)
    return model


def take_steps(
    steps: Iterable[tuple[str, GraphChange]],
    write_and_compare: Callable[[str, GraphChange], Sequence[Row]],
    report: Report | None,
) -> list[Row]:
    """Take the steps of `graph_steps` one after the other; ``report`` is told of one that stops the export, too.

    Raises
    ------
    ComparisonFailed
        At the first step whose graph differs by more than the bar.
    """
    rows: list[Row] = []
    for step, change in steps:
        compared = write_and_compare(step, change)
        rows.extend(compared)
        if report is not None:
            report(step, compared)
        require_passed(compared)
    return rows


def refuse_taken(output: Path, *, force: bool) -> None:
    """Refuse a folder that is there already, before minutes of work are spent on it."""
    if os.path.lexists(output) and not force:
        raise OutputError(
            f"{output} exists; choose another folder, or replace a bundle with --force", code="output_exists"
        )
    check_target(output, overwrite=force, folder=True)
