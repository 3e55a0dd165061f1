# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of MindSpore under MindFormers' names, byte for byte as MindSpore writes it, and without MindSpore."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from segship.arrays import AnyArray
from segship.errors import ExportError, InputError, shown
from segship.ship.checkpoints.ckpt import CKPT_DTYPES, mindformers_name, published_name
from segship.ship.graph.wire import field
from segship.ship.targets import ConvertOptions, Report
from segship.ship.weights import read_weights

LARGEST_PIECE = 512 << 20
"""Bytes of a tensor that one entry holds; the rest follows in further ones of its name."""
_ENTRY, _NAME, _TENSOR = 1, 1, 2
_SIZE, _DTYPE, _DATA = 1, 2, 3
_THEIRS = {ours: theirs for theirs, ours in CKPT_DTYPES.items()}


def write(source: Path, stream: BinaryIO, options: ConvertOptions, report: Report) -> dict[str, Any]:
    """Write the weights of a promptable model of any size, in float32.

    Raises
    ------
    CheckpointError
        When the checkpoint cannot be read, or is of no known family.
    InputError
        ``other_task`` for a semantic model.
    """
    weights = read_weights(source)
    if weights.task != "promptable":
        message = f"{source} is a {weights.task} model, and MindFormers has names for promptable ones; give such a one"
        raise InputError(message, code="other_task")
    for entry in entries({_renamed(name): array for name, array in weights.state.items()}):
        stream.write(entry)
    for change in weights.changes:
        report(change, ())
    report(f"{len(weights.state)} tensors under the names of MindFormers", ())
    return {
        "architecture": weights.config.architecture,
        "tensors": len(weights.state),
        "changes": list(weights.changes),
    }


def _renamed(name: str) -> str:
    theirs = mindformers_name(name)
    if published_name(theirs) != name:
        message = f"the tensor '{shown(name)}' would be read back as '{shown(published_name(theirs))}'; report this"
        raise ExportError(message, code="bad_tensor_name")
    return theirs


def entries(tensors: Mapping[str, AnyArray]) -> Iterator[bytes]:
    """Yield the parts of the file that holds tensors by their name there; those without elements have none."""
    for name, array in tensors.items():
        if array.dtype.name not in _THEIRS:
            message = f"the tensor '{shown(name)}' is {array.dtype.name}, and such files hold {', '.join(_THEIRS)}"
            raise ExportError(f"{message}; leave it out", code="unsupported_dtype")
        data = array.tobytes()
        sizes = b"".join(field(_SIZE, size) for size in array.shape)
        about = sizes + field(_DTYPE, _THEIRS[array.dtype.name].encode())
        for start in range(0, len(data), LARGEST_PIECE):
            tensor = about + field(_DATA, data[start : start + LARGEST_PIECE])
            yield field(_ENTRY, field(_NAME, name.encode()) + field(_TENSOR, tensor))
