# SPDX-License-Identifier: Apache-2.0
"""The steps by which every graph is made: trace, simplify, lower, store, with a comparison after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import onnx
from torch import nn

from segship.bundle.agreement import require_passed
from segship.bundle.measured import AnyStep
from segship.errors import ExportError, OutputError
from segship.ship.graph.lower import LOWEST_OPSET, lower_opset
from segship.ship.graph.simplify import simplify_graph
from segship.ship.graph.store import halve_exact_weights
from segship.ship.graph.trace import LOWEST_TRACED_OPSET, trace_graph
from segship.spec import GraphSpec

HIGHEST_OPSET = 24


class GraphOptions(Protocol):
    """What options of any family say about the steps."""

    @property
    def simplify(self) -> bool:
        """Whether there is a step for onnxslim."""

    @property
    def graph_opset(self) -> int:
        """The opset that graphs will have."""


GraphChange = Callable[[nn.Module, GraphSpec, Path], onnx.ModelProto]
"""Makes the next graph of a module from its contract and from the file of the last one."""

Row = TypeVar("Row", bound=AnyStep)


def graph_steps(
    options: GraphOptions,
    *,
    half_weights: bool = False,
    largest_sizes: Mapping[str, int] | None = None,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
) -> list[tuple[str, GraphChange]]:
    """Return the steps that make a graph, in order: the name of each, and what makes the next graph from the last.

    Parameters
    ----------
    options
        Which steps there are.
    half_weights
        The checkpoint was saved in half precision, so its weights are stored so again.
    largest_sizes
        Upper bounds of dynamic axes, for tracing.
    finish
        Nodes written by hand after tracing.
    """

    def trace(module: nn.Module, spec: GraphSpec, _: Path) -> onnx.ModelProto:
        model = trace_graph(module, spec, opset=options.graph_opset, largest_sizes=largest_sizes)
        return model if finish is None else finish(model)

    steps: list[tuple[str, GraphChange]] = [("traced", trace)]
    if options.simplify:
        steps.append(("simplified", lambda _module, _spec, path: simplify_graph(onnx.load(str(path)))))
    if options.graph_opset < LOWEST_TRACED_OPSET:
        lowered = f"lowered to opset {options.graph_opset}"
        steps.append((lowered, lambda _module, _spec, path: lower_opset(onnx.load(str(path)), options.graph_opset)))
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
    report: Callable[[str, Sequence[Row]], None] | None,
) -> list[Row]:
    """Take one step after the other, and stop at the first whose graph differs by more than the bar.

    Parameters
    ----------
    steps
        As of `graph_steps`.
    write_and_compare
        Writes the graphs of a step and returns the rows of its comparison.
    report
        Called after every step with its name and rows, also with those that stop the export.

    Returns
    -------
    rows
        Those of all steps.

    Raises
    ------
    ComparisonFailed
        When a row did not pass.
    """
    rows: list[Row] = []
    for step, change in steps:
        compared = write_and_compare(step, change)
        rows.extend(compared)
        if report is not None:
            report(step, compared)
        require_passed(compared)
    return rows


def check_opset(opset: int) -> None:
    """Refuse an opset that cannot be written."""
    if not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise ExportError(
            f"opset {opset} cannot be written; accepted are {LOWEST_OPSET} to {HIGHEST_OPSET}", code="bad_opset"
        )


def refuse_taken(output: Path, *, force: bool) -> None:
    """Refuse a folder that is there already, before minutes of work are spent on it."""
    if output.exists() and not force:
        raise OutputError(
            f"{output} exists; choose another folder, or replace a bundle with --force", code="output_exists"
        )
