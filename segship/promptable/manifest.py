# SPDX-License-Identifier: Apache-2.0
"""The manifest of a promptable model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from segship.bundle.entries import (
    FORMAT_VERSION,
    NO_DIGEST,
    Architecture,
    Changes,
    CheckpointEntry,
    Created,
    Entry,
    GraphEntry,
    GraphName,
    Opset,
    Positive,
    Precision,
    Sha256,
    Size,
    Tools,
    signed_json,
    stated_spec,
)
from segship.bundle.measured import BackendCheck, Comparison
from segship.spec import (
    GraphSpec,
    SamGeometry,
    image_encoder_spec,
    image_side_spec,
    mask_decoder_spec,
    selective_decoder_spec,
    shared_decoder_spec,
)


class PreprocessingEntry(Entry):
    """How pixels become the encoder's input, for readers in any language; mean and std on the scale of 0 to 255."""

    color_order: Literal["RGB"] = "RGB"
    resize: Literal["longest_side_antialiased_bilinear"] = "longest_side_antialiased_bilinear"
    size_rounding: Literal["floor(side * scale + 0.5)"] = "floor(side * scale + 0.5)"
    padding: Literal["right_bottom_zero_after_normalize"] = "right_bottom_zero_after_normalize"
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[Positive, Positive, Positive]


class PromptRulesEntry(Entry):
    """Rules of this family for turning prompts into tensors."""

    padding_point: Literal["without_box", "always", "never"]


class MaskCleanUpEntry(Entry):
    """How prompted masks are cleaned; the fields are those of `segship.masks.cleanup.MaskCleanUp`."""

    keep_clicked_piece: bool
    smallest_piece: Annotated[float, Field(ge=0, le=1)]
    smallest_hole: Annotated[float, Field(ge=0, le=1)]
    box_margin: Annotated[float, Field(ge=0, le=1)] | None


class AmgDefaultsEntry(Entry):
    """Thresholds of everything mode that suit the scale of this model's scores; SAM's own where there is no entry."""

    pred_iou_thresh: Annotated[float, Field(ge=0, le=1)]
    stability_score_thresh: Annotated[float, Field(ge=0, le=1)]


class SamManifest(Entry):
    """The whole of ``manifest.json`` of a promptable model."""

    format_version: Literal[1] = FORMAT_VERSION
    family: Literal["sam"] = "sam"
    architecture: Architecture
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
    opset: Opset
    checkpoint: CheckpointEntry
    changes: Changes
    tools: Tools
    comparison: Comparison | None
    backends: Annotated[list[BackendCheck], Field(max_length=64)] = []
    created: Created
    manifest_sha256: Sha256 = NO_DIGEST

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
            "selective_decoder": selective_decoder_spec(self.geometry),
        }

    @property
    def required_graphs(self) -> tuple[str, ...]:
        """The graphs without which a bundle of this family is none."""
        return ("image_encoder", "mask_decoder")

    @property
    def optional_graphs(self) -> tuple[tuple[str, ...], ...]:
        """Sets of graphs, of which a bundle has one or none; they make it faster and change no mask.

        Up to version 0.3.0 segship wrote the second.
        """
        return (("image_side", "selective_decoder"), ("image_side", "shared_decoder"))

    def graph_spec(self, graph: str) -> GraphSpec:
        """Return the contract of one graph as this bundle has it: with its fixed sizes, if it has any."""
        return stated_spec(self.graphs, graph)

    def to_json(self) -> bytes:
        """Return the bytes of ``manifest.json``: UTF-8, indented, keys in the order of the schema, the digest last."""
        return signed_json(self)
