# SPDX-License-Identifier: Apache-2.0
"""Write a graph to disk, inline or with exactly one sidecar whose name we fix."""

from __future__ import annotations

from pathlib import Path

import onnx

# Protobuf stops at 2 GiB; some room is left for the nodes.
LARGEST_INLINE_BYTES = 1_900_000_000
SMALLEST_EXTERNAL_TENSOR_BYTES = 1024


def save_graph(model: onnx.ModelProto, path: Path, *, largest_inline_bytes: int = LARGEST_INLINE_BYTES) -> None:
    """Write ``path``, and ``path`` + ``.data`` beside it when the weights are larger than the limit."""
    # onnx appends to a sidecar that is already there.
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights <= largest_inline_bytes:
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
