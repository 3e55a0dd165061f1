# SPDX-License-Identifier: Apache-2.0
"""The manifest of a semantic model: besides what all have, its classes and its preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from segship.bundle.manifest import Manifest
from segship.datasets.classes import OWN_CLASSES, ClassTable
from segship.datasets.known import TABLES
from segship.semantic.preprocessing import SemanticPreprocessing
from segship.spec import GraphSpec, SemanticOutput, Side, semantic_spec

SemanticWindow = Literal["all", "first-two"]
"""Stages whose semantic layer works in windows; those of the other stages look at the whole grid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticManifest(Manifest):
    """What ``manifest.json`` says of a semantic model.

    Attributes
    ----------
    table
        Names and colors of the classes, in the order of the logits.
    preprocessing
        How pixels become the graph's input; its ``frame`` is the one size that the graph takes, if there is one.
    output
        What the graph gives.
    semantic_classes
        Classes of the semantic layers.
    semantic_window
        Stages whose semantic layer works in windows, which no tensor of a checkpoint shows.
    window_size
        Side of the windows of attention, in places.
    names_assumed
        Whether the checkpoint names no classes, and those of the data set with as many were taken.
    """

    task: Literal["semantic"] = "semantic"
    table: ClassTable
    preprocessing: SemanticPreprocessing
    output: SemanticOutput
    semantic_classes: Side
    semantic_window: SemanticWindow
    window_size: Side
    names_assumed: bool = False

    def __post_init__(self) -> None:
        classes, colors = len(self.table.classes), len(self.table.palette)
        if classes != colors:
            raise ValueError(f"there are {classes} classes and {colors} colors")
        if self.table.name not in (*TABLES, OWN_CLASSES):
            known = ", ".join((*TABLES, OWN_CLASSES))
            raise ValueError(f"the classes are of {self.table.name!r}; known are {known}")
        for spec in self.graphs:
            if self.preprocessing.frame is None and not all(isinstance(side, str) for side in spec.inputs[0].shape[2:]):
                raise ValueError(f"frame is null, and the graph takes {spec.inputs[0].shape[2:]}")

    @property
    def contracts(self) -> dict[str, GraphSpec]:
        """The contract of the only graph of this task."""
        return {"semantic": semantic_spec(len(self.table.classes), self.output, self.preprocessing.frame)}

    @property
    def graph_sets(self) -> tuple[frozenset[str], ...]:
        """The only set of graphs."""
        return (frozenset({"semantic"}),)

    @property
    def batch(self) -> int | None:
        """How many pictures the graph takes at once; None for any number."""
        sizes = [spec.inputs[0].shape[0] for spec in self.graphs]
        return sizes[0] if sizes and isinstance(sizes[0], int) else None

    @property
    def first_graph(self) -> str:
        """The only graph."""
        return "semantic"
