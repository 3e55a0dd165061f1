# SPDX-License-Identifier: Apache-2.0
"""Fold constants and remove redundant nodes of a graph with onnxslim; its contract stays as it was."""

from __future__ import annotations

import onnx

from segship.errors import ExportError
from segship.graph.trace import strip_metadata


def simplify_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a smaller graph with the same inputs and outputs.

    Raises
    ------
    ExportError
        When onnxslim fails, or changes the names of inputs or outputs.
    """
    import onnxslim

    try:
        slimmed = onnxslim.slim(model)
    except Exception as error:
        # Third-party graph surgery fails in many ways; the graph as traced is still there for `--no-simplify`.
        raise ExportError(
            f"onnxslim could not simplify the graph: {error}. Export without it: --no-simplify"
        ) from error
    if not isinstance(slimmed, onnx.ModelProto) or _interface(slimmed) != _interface(model):
        raise ExportError("onnxslim changed the inputs or outputs of the graph. Export without it: --no-simplify")
    strip_metadata(slimmed)
    return slimmed


def _interface(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    return [value.name for value in model.graph.input], [value.name for value in model.graph.output]
