# SPDX-License-Identifier: Apache-2.0
"""The network of the family semask as a graph: SeMask-FPN. Needs torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segship.ship.families.semask.family import DEFAULT_OUTPUT, specs
from segship.ship.families.semask.model import SemanticGraph, build_semask
from segship.ship.loading import LoadedModel
from segship.ship.options import ExportOptions
from segship.ship.variants import PLAIN, EncoderVariant, apply_variant
from segship.spec import GraphSpec, semantic_spec

Graphs = dict[str, tuple[nn.Module, GraphSpec]]
build = build_semask
FOLDED = EncoderVariant("folded", fold_batch_norms=True)


class _PictureByPicture(nn.Module):
    """Logits of each picture by itself, so that a comparison sees where pictures of one run meet."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([self.graph(picture[None]) for picture in image])


def reference(model: LoadedModel) -> Graphs:
    """Return the graph whose answers all others are held against: logits, picture by picture."""
    apply_variant(model.module, PLAIN)
    graph = _PictureByPicture(SemanticGraph(model.module, "logits"))
    return {"semantic": (graph, semantic_spec(model.config.classes, "logits"))}


def graphs(model: LoadedModel, options: ExportOptions, *, known_sizes: bool = False) -> Graphs:
    """Return the only graph with its contract."""
    # Folded once when a graph is filled; torch itself would fold in every run.
    apply_variant(model.module, FOLDED if options.target is None else PLAIN)
    module = SemanticGraph(model.module, options.output or DEFAULT_OUTPUT)
    return {name: (module, spec) for name, spec in specs(model, options, known_sizes=known_sizes).items()}
