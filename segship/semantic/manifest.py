# SPDX-License-Identifier: Apache-2.0
"""The manifest of a semantic model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
from segship.bundle.measured import SemanticCheck, SemanticComparison
from segship.datasets.classes import MOST_CLASSES, OWN_CLASSES, ClassTable
from segship.semantic.preprocessing import ScaleLimits, SemanticPreprocessing
from segship.spec import GraphSpec, SemanticOutput, semantic_spec

Byte = Annotated[int, Field(ge=0, le=255)]
ClassName = Annotated[str, Field(min_length=1, max_length=128)]
Classes = Annotated[list[ClassName], Field(min_length=1, max_length=MOST_CLASSES)]
Palette = Annotated[list[tuple[Byte, Byte, Byte]], Field(min_length=1, max_length=MOST_CLASSES)]
DataSet = Literal["cityscapes", "ade20k", "cocostuff"]


class SemanticPreprocessingEntry(Entry):
    """How pixels become the graph's input, for readers in any language; mean and std on the scale of 0 to 255.

    Graphs of a fixed size need the padding, behind the resized and normalised picture.
    """

    color_order: Literal["RGB"] = "RGB"
    resize: Literal["opencv_bilinear_keep_ratio"] = "opencv_bilinear_keep_ratio"
    size_rounding: Literal["floor(side * scale + 0.5)"] = "floor(side * scale + 0.5)"
    padding: Literal["none", "right_bottom_zero_after_normalize"]
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[Positive, Positive, Positive]


class SemanticManifest(Entry):
    """The whole of ``manifest.json`` of a semantic model.

    ``semantic_window`` names the stages whose semantic layer works in windows, which no tensor of a checkpoint shows.
    ``scale`` is the test scale: the longest that the longer and the shorter side of a picture become. ``size`` is the
    one (height, width) that the graph takes, or null if it takes any.
    """

    format_version: Literal[1] = FORMAT_VERSION
    family: Literal["semantic"] = "semantic"
    architecture: Architecture
    task: Literal["semantic"] = "semantic"
    data_set: DataSet | None
    classes: Classes
    palette: Palette
    semantic_classes: Size
    semantic_window: Literal["all", "first-two"]
    window_size: Size
    scale: tuple[Size, Size]
    size: tuple[Size, Size] | None
    output: SemanticOutput
    preprocessing: SemanticPreprocessingEntry
    graphs: dict[GraphName, GraphEntry]
    precision: Precision
    opset: Opset
    checkpoint: CheckpointEntry
    changes: Changes
    tools: Tools
    comparison: SemanticComparison | None
    backends: Annotated[list[SemanticCheck], Field(max_length=64)] = []
    created: Created
    manifest_sha256: Sha256 = NO_DIGEST

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        if len(self.classes) != len(self.palette):
            raise ValueError(f"there are {len(self.classes)} classes and {len(self.palette)} colours")
        for entry in self.graphs.values():
            stated = tuple(entry.inputs[0].shape[2:])
            if self.size is None and not all(isinstance(side, str) for side in stated):
                raise ValueError(f"size is null, and the graph takes {stated}")
        return self

    @property
    def table(self) -> ClassTable:
        """Names and colours of the classes."""
        return ClassTable(self.data_set or OWN_CLASSES, tuple(self.classes), tuple(self.palette))

    @property
    def settings(self) -> SemanticPreprocessing:
        """What is done to a picture before the graph."""
        entry = self.preprocessing
        return SemanticPreprocessing(ScaleLimits(*self.scale), entry.pixel_mean, entry.pixel_std)

    @property
    def contracts(self) -> dict[str, GraphSpec]:
        """The contract of the only graph of this family."""
        return {"semantic": semantic_spec(len(self.classes), self.output, self.size)}

    @property
    def required_graphs(self) -> tuple[str, ...]:
        """The graphs without which a bundle of this family is none."""
        return ("semantic",)

    @property
    def optional_graphs(self) -> tuple[tuple[str, ...], ...]:
        """Sets of graphs, of which a bundle has one or none; this family knows no such set."""
        return ()

    def graph_spec(self, graph: str) -> GraphSpec:
        """Return the contract of one graph as this bundle has it: with its fixed sizes, if it has any."""
        return stated_spec(self.graphs, graph)

    def to_json(self) -> bytes:
        """Return the bytes of ``manifest.json``: UTF-8, indented, keys in the order of the schema, the digest last."""
        return signed_json(self)
