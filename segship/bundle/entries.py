# SPDX-License-Identifier: Apache-2.0
"""What manifests of all families are put together from: tensors, graphs, files, digests.

Entries are strict: unknown keys, wrong types and numbers that are not finite are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from segship.spec import GraphSpec, TensorSpec

FORMAT_VERSION: Literal[1] = 1
NO_DIGEST = "0" * 64

GraphName = Literal["image_encoder", "mask_decoder", "image_side", "shared_decoder", "selective_decoder", "semantic"]

GRAPH_FILES: dict[GraphName, str] = {
    "image_encoder": "image_encoder.onnx",
    "mask_decoder": "mask_decoder.onnx",
    "image_side": "image_side.onnx",
    "shared_decoder": "shared_decoder.onnx",
    "selective_decoder": "selective_decoder.onnx",
    "semantic": "semantic.onnx",
}
"""Graph -> its file in the bundle; nothing else is ever looked up there."""

_MAX_SIZE = 1 << 16
_MAX_TEXT = 4096

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileBytes = Annotated[int, Field(ge=1, le=1 << 40)]
Size = Annotated[int, Field(ge=1, le=_MAX_SIZE)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/ -]{1,128}$")]
Architecture = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(max_length=_MAX_TEXT)]
Opset = Annotated[int, Field(ge=0, le=99)]
Changes = Annotated[list[Text], Field(max_length=1000)]
Tools = Annotated[dict[Name, Text], Field(max_length=100)]
Created = Annotated[str, Field(max_length=64)]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Dtype = Literal["float32", "float16", "int64", "int32", "uint8", "int8", "bool"]


def sidecar_of(file: str) -> str:
    """Return the only name that the file of a graph's external weights may have."""
    return f"{file}.data"


class Entry(BaseModel):
    """A part of a manifest."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TensorEntry(Entry):
    """One input or output of a graph; a string in the shape names an axis that may differ from call to call."""

    name: Name
    dtype: Dtype
    shape: Annotated[list[Size | Name], Field(max_length=8)]

    @property
    def spec(self) -> TensorSpec:
        """The same as a contract."""
        return TensorSpec(self.name, self.dtype, tuple(self.shape))


class ExternalData(Entry):
    """The file beside a graph that holds its large weights."""

    file: Name
    bytes: FileBytes
    sha256: Sha256


class GraphEntry(Entry):
    """One graph of the bundle; ``variant`` says which of the equal ways of computing it was chosen for its target."""

    file: Name
    # Protobuf's own limit; larger weights lie in a sidecar.
    bytes: Annotated[int, Field(ge=1, lt=1 << 31)]
    sha256: Sha256
    external_data: ExternalData | None = None
    variant: Name = "plain"
    inputs: Annotated[list[TensorEntry], Field(min_length=1, max_length=16)]
    outputs: Annotated[list[TensorEntry], Field(min_length=1, max_length=16)]


class CheckpointEntry(Entry):
    """The weight file that the graphs were made from; ``known`` if its digest is that of a published one."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    bytes: FileBytes
    sha256: Sha256
    licence: Text
    known: bool


def stated_spec(graphs: Mapping[GraphName, GraphEntry], graph: str) -> GraphSpec:
    """Return the contract of one graph as a bundle has it: with its fixed sizes, if it has any."""
    entry = graphs[cast(GraphName, graph)]
    inputs, outputs = (tuple(tensor.spec for tensor in part) for part in (entry.inputs, entry.outputs))
    return GraphSpec(graph, inputs, outputs)


def signed_json(manifest: Entry) -> bytes:
    """Return a manifest as UTF-8, indented, keys in the order of the schema, the digest last and filled in."""
    empty = manifest.model_copy(update={"manifest_sha256": NO_DIGEST})
    data = (empty.model_dump_json(indent=2) + "\n").encode()
    return with_digest(data, hashlib.sha256(data).hexdigest())


def with_digest(data: bytes, digest: str) -> bytes:
    """Put a digest in the place of the one at the end: 64 digits, a quote, a line end, a brace, a line end."""
    return data[:-68] + digest.encode() + data[-4:]
