# SPDX-License-Identifier: Apache-2.0
"""Artifacts: one graph each, in one file format and precision, for a runtime or a device; listed in the manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from segship.bundle.evidence import Text

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileBytes = Annotated[int, Field(ge=1, le=1 << 40)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/ -]{1,128}$")]
GraphName = Literal["image_encoder", "mask_decoder", "image_side", "selective_decoder", "semantic"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-weights", "int4-weights", "fp16-weights"]
LowerPrecision = Literal["int8", "int8-weights", "int4-weights", "fp16-weights", "fp16"]
"""What `segship.ship.quantize` writes: integer arithmetic, weights stored in fewer bits, float16 arithmetic."""
Option = Text | bool | int | float

FORMATS: dict[str, str] = {"onnx": ".onnx"}
"""File format -> how the names of its files end."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The file beside a graph that holds its large weights."""

    file: Name
    bytes: FileBytes
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Artifact:
    """One graph as a file.

    Attributes
    ----------
    graph
        What it is, a name of the task's contracts.
    format, precision
        A key of `FORMATS`; of the weights and the arithmetic that stands in the graph.
    target
        The runtime or device that it suits best; ONNX runs in all that read it.
    file, bytes, sha256
        The file. Its name is `artifact_file`'s, so nothing in a manifest can point elsewhere.
    weights
        The file beside it that holds its large weights, if there is one; its name is `weights_file`'s.
    made_from
        SHA-256 of the checkpoint or artifact that it was made from.
    options
        What else decided its bytes, such as ``opset`` and ``variant``.
    """

    graph: GraphName
    format: Literal["onnx"]
    precision: Precision
    target: Name
    file: Name
    # Protobuf's own limit; larger weights lie in a file of their own.
    bytes: Annotated[int, Field(ge=1, lt=1 << 31)]
    sha256: Sha256
    made_from: Sha256
    weights: Weights | None = None
    options: Annotated[dict[Name, Option], Field(max_length=32)] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """Its file, and that of its weights where they are one of their own."""
        return (self.file,) if self.weights is None else (self.file, self.weights.file)

    @property
    def all_bytes(self) -> int:
        """Of the graph and its weights."""
        return self.bytes + (self.weights.bytes if self.weights is not None else 0)

    @property
    def digest(self) -> str:
        """The SHA-256 of the graph, followed by that of its weights where they are a file of their own."""
        return self.sha256 if self.weights is None else f"{self.sha256}{self.weights.sha256}"


def artifact_file(graph: str, format: str = "onnx", precision: str = "fp32") -> str:
    """Return the only name that an artifact's file may have.

    Examples
    --------
    >>> artifact_file("image_encoder"), artifact_file("image_encoder", precision="int8")
    ('image_encoder.onnx', 'image_encoder.int8.onnx')
    """
    return f"{graph}{'' if precision == 'fp32' else f'.{precision}'}{FORMATS[format]}"


def weights_file(file: str) -> str:
    """Return the only name that the file of an artifact's large weights may have."""
    return f"{file}.data"
