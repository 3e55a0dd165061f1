# SPDX-License-Identifier: Apache-2.0
"""What ``manifest.json`` of a bundle says: what the model is, where it came from, and the digest of every file.

The models are strict: unknown keys, wrong types and numbers that are not finite are refused. The JSON schema stands in
``docs/manifest.schema.json``. A manifest without graphs describes a model that runs straight from its checkpoint.

The last field, ``manifest_sha256``, is the SHA-256 of the file itself with 64 zeros in the digest's place, so that no
changed byte goes unseen. It guards against damage, not against somebody who computes it anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segship.bundle.measured import BackendCheck
from segship.bundle.measured import Comparison as Comparison
from segship.bundle.measured import ComparisonBar as ComparisonBar
from segship.bundle.measured import ComparisonStep as ComparisonStep
from segship.errors import BundleError
from segship.spec import (
    GraphSpec,
    SamGeometry,
    TensorSpec,
    image_encoder_spec,
    image_side_spec,
    mask_decoder_spec,
    shared_decoder_spec,
)

FORMAT_VERSION: Literal[1] = 1
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
_NO_DIGEST = "0" * 64
_DIGEST_AT_THE_END = re.compile(rb'"manifest_sha256": "([0-9a-f]{64})"\n}\n\Z')

GraphName = Literal["image_encoder", "mask_decoder", "image_side", "shared_decoder"]

GRAPH_FILES: dict[GraphName, str] = {
    "image_encoder": "image_encoder.onnx",
    "mask_decoder": "mask_decoder.onnx",
    "image_side": "image_side.onnx",
    "shared_decoder": "shared_decoder.onnx",
}
"""Graph -> its file in the bundle; nothing else is ever looked up there."""

_MAX_SIZE = 1 << 16
_MAX_TEXT = 4096

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileBytes = Annotated[int, Field(ge=1, le=1 << 40)]
Size = Annotated[int, Field(ge=1, le=_MAX_SIZE)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/ -]{1,128}$")]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(max_length=_MAX_TEXT)]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Dtype = Literal["float32", "float16", "int64", "int32", "uint8", "int8", "bool"]


def sidecar_of(file: str) -> str:
    """Return the only name that the file of a graph's external weights may have."""
    return f"{file}.data"


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TensorEntry(_Entry):
    """One input or output of a graph; a string in the shape names an axis that may differ from call to call."""

    name: Name
    dtype: Dtype
    shape: Annotated[list[Size | Name], Field(max_length=8)]

    @property
    def spec(self) -> TensorSpec:
        """The same as a contract."""
        return TensorSpec(self.name, self.dtype, tuple(self.shape))


class ExternalData(_Entry):
    """The file beside a graph that holds its large weights."""

    file: Name
    bytes: FileBytes
    sha256: Sha256


class GraphEntry(_Entry):
    """One graph of the bundle; ``variant`` says which of the equal ways of computing it was chosen for its target."""

    file: Name
    # Protobuf's own limit; larger weights lie in a sidecar.
    bytes: Annotated[int, Field(ge=1, lt=1 << 31)]
    sha256: Sha256
    external_data: ExternalData | None = None
    variant: Name = "plain"
    inputs: Annotated[list[TensorEntry], Field(min_length=1, max_length=16)]
    outputs: Annotated[list[TensorEntry], Field(min_length=1, max_length=16)]


class PreprocessingEntry(_Entry):
    """How pixels become the encoder's input, for readers in any language; mean and std on the scale of 0 to 255."""

    color_order: Literal["RGB"] = "RGB"
    resize: Literal["longest_side_antialiased_bilinear"] = "longest_side_antialiased_bilinear"
    size_rounding: Literal["floor(side * scale + 0.5)"] = "floor(side * scale + 0.5)"
    padding: Literal["right_bottom_zero_after_normalize"] = "right_bottom_zero_after_normalize"
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[Positive, Positive, Positive]


class PromptRulesEntry(_Entry):
    """Rules of this family for turning prompts into tensors."""

    padding_point: Literal["without_box", "always", "never"]


class MaskCleanUpEntry(_Entry):
    """How prompted masks are cleaned; the fields are those of `segship.masks.cleanup.MaskCleanUp`."""

    keep_clicked_piece: bool
    smallest_piece: Annotated[float, Field(ge=0, le=1)]
    smallest_hole: Annotated[float, Field(ge=0, le=1)]
    box_margin: Annotated[float, Field(ge=0, le=1)] | None


class AmgDefaultsEntry(_Entry):
    """Thresholds of everything mode that suit the scale of this model's scores; SAM's own where there is no entry."""

    pred_iou_thresh: Annotated[float, Field(ge=0, le=1)]
    stability_score_thresh: Annotated[float, Field(ge=0, le=1)]


class CheckpointEntry(_Entry):
    """The weight file that the graphs were made from; ``known`` if its digest is that of a published one."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    bytes: FileBytes
    sha256: Sha256
    licence: Text
    known: bool


class Manifest(_Entry):
    """The whole of ``manifest.json``."""

    format_version: Literal[1] = FORMAT_VERSION
    family: Literal["sam"] = "sam"
    architecture: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
    task: Literal["promptable"] = "promptable"
    image_size: Size
    embedding_channels: Size
    embedding_size: Size
    preprocessing: PreprocessingEntry
    prompt_rules: PromptRulesEntry
    mask_clean_up: MaskCleanUpEntry | None = None
    amg_defaults: AmgDefaultsEntry | None = None
    graphs: dict[GraphName, GraphEntry]
    precision: Precision
    opset: Annotated[int, Field(ge=0, le=99)]
    checkpoint: CheckpointEntry
    changes: Annotated[list[Text], Field(max_length=1000)]
    tools: Annotated[dict[Name, Text], Field(max_length=100)]
    comparison: Comparison | None
    backends: Annotated[list[BackendCheck], Field(max_length=64)] = []
    created: Annotated[str, Field(max_length=64)]
    manifest_sha256: Sha256 = _NO_DIGEST

    @property
    def geometry(self) -> SamGeometry:
        """The sizes that the graph contracts depend on."""
        return SamGeometry(self.image_size, self.embedding_channels, self.embedding_size)

    @property
    def contracts(self) -> dict[str, GraphSpec]:
        """The contract of every graph that a bundle of this family may have."""
        return {
            "image_encoder": image_encoder_spec(self.geometry),
            "mask_decoder": mask_decoder_spec(self.geometry),
            "image_side": image_side_spec(self.geometry),
            "shared_decoder": shared_decoder_spec(self.geometry),
        }

    @property
    def required_graphs(self) -> tuple[str, ...]:
        """The graphs without which a bundle of this family is none."""
        return ("image_encoder", "mask_decoder")

    @property
    def optional_graphs(self) -> tuple[str, ...]:
        """The graphs that a bundle has all of or none of; they make it faster and change no mask."""
        return ("image_side", "shared_decoder")

    def graph_spec(self, graph: str) -> GraphSpec:
        """Return the contract of one graph as this bundle has it: with its fixed sizes, if it has any."""
        entry = self.graphs[cast(GraphName, graph)]
        inputs, outputs = (tuple(tensor.spec for tensor in part) for part in (entry.inputs, entry.outputs))
        return GraphSpec(graph, inputs, outputs)

    def to_json(self) -> bytes:
        """Return the bytes of ``manifest.json``: UTF-8, indented, keys in the order of the schema, the digest last."""
        empty = self.model_copy(update={"manifest_sha256": _NO_DIGEST})
        data = (empty.model_dump_json(indent=2) + "\n").encode()
        return _with_digest(data, hashlib.sha256(data).hexdigest())


def _with_digest(data: bytes, digest: str) -> bytes:
    # 64 digits, a quote, a line end, a brace, a line end.
    return data[:-68] + digest.encode() + data[-4:]


def manifest_schema() -> dict[str, Any]:
    """Return the JSON schema of ``manifest.json``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest that stands in the bytes of ``manifest.json``.

    Raises
    ------
    BundleError
        ``bad_manifest``; ``unknown_format_version`` when a newer segship wrote it; ``changed_file`` when a byte of it
        was changed since it was written.
    """
    document = _parse_json(data)
    if not isinstance(document, dict):
        raise _bad("it is no JSON object")
    version = document.get("format_version")
    # True equals 1 in Python, and is no version.
    if type(version) is not int or version != FORMAT_VERSION:
        message = (
            f"{MANIFEST_FILE} has format_version {str(version)[:40]}, and this segship reads {FORMAT_VERSION}; "
            "update segship, or export the bundle again"
        )
        raise BundleError(message, code="unknown_format_version")
    _check_digest(data)
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise _bad(_first_problems(error)) from error


def _check_digest(data: bytes) -> None:
    stated = _DIGEST_AT_THE_END.search(data)
    if stated is None or hashlib.sha256(_with_digest(data, _NO_DIGEST)).hexdigest().encode() != stated[1]:
        message = f"{MANIFEST_FILE} was changed after it was written; export the bundle again or fetch it anew"
        raise BundleError(message, code="changed_file")


def _parse_json(data: bytes) -> object:
    """Parse strictly: UTF-8, no key twice, no NaN or Infinity, no bottomless nesting."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise _bad(f"it has {len(data)} bytes, and at most {MAX_MANIFEST_BYTES} are read")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _bad(f"it is not strict JSON ({error})") from error


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)[:64]!r} stands twice")
    return document


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _first_problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{'.'.join(str(part)[:64] for part in problem['loc']) or 'document'}: {problem['msg']}" for problem in problems
    ]
    more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
    return "; ".join(lines[:3]) + more


def _bad(problem: str) -> BundleError:
    message = f"{MANIFEST_FILE} cannot be used: {problem}; export the bundle again or fetch it anew"
    return BundleError(message, code="bad_manifest")
