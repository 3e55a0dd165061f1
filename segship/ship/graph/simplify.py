# SPDX-License-Identifier: Apache-2.0
"""Fold constants and remove redundant nodes of a graph with onnxslim; its contract stays as it was."""

from __future__ import annotations

import onnx

from segship.errors import ExportError, way
from segship.ship.graph.trace import strip_metadata

_WITHOUT = way("simplify=False", "--no-simplify")


def simplify_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a smaller graph with the same inputs and outputs; the one that is given may be changed on the way.

    Raises
    ------
    ExportError
        When onnxslim fails, or changes the names of inputs or outputs.
    """
    import onnxslim

    interface = _interface(model)
    try:
        slimmed = onnxslim.slim(model)
    except Exception as error:
        # Third-party graph surgery fails in many ways; the graph as traced is still there for `--no-simplify`.
        raise ExportError(f"onnxslim could not simplify the graph: {error}; export without it: {_WITHOUT}") from error
    if not isinstance(slimmed, onnx.ModelProto) or _interface(slimmed) != interface:
        raise ExportError(f"onnxslim changed the inputs or outputs of the graph; export without it: {_WITHOUT}")
    strip_metadata(slimmed)
    return slimmed


def _interface(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output]
