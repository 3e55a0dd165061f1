# SPDX-License-Identifier: Apache-2.0
"""A graph as a file: its weights inside or in one file beside it, as float16 where that holds them exactly.

A checkpoint that was saved in half precision becomes float32 when it is read, and would be written at twice its size.
Each such tensor goes back to float16 in the file, followed by a Cast that runtimes fold away when they load the graph.
No value changes, so there is nothing to lose; the arithmetic stays float32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segship.ship.options import LARGEST_INLINE_BYTES

SMALLEST_HALVED_ELEMENTS = 256
SMALLEST_EXTERNAL_TENSOR_BYTES = 1024


def halve_exact_weights(model: onnx.ModelProto) -> int:
    """Rewrite a graph in place and return how many tensors are stored as float16 now."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < SMALLEST_HALVED_ELEMENTS or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return len(casts)


def save_graph(model: onnx.ModelProto, path: Path, *, largest_bytes: int = LARGEST_INLINE_BYTES) -> None:
    """Write ``path``, and ``path`` + ``.data`` beside it when the weights are larger than the limit."""
    # onnx appends to a sidecar that is already there.
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights <= largest_bytes:
        onnx.save_model(model, str(path))
        return
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=SMALLEST_EXTERNAL_TENSOR_BYTES,
    )
