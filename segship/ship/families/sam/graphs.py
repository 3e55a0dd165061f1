# SPDX-License-Identifier: Apache-2.0
"""The networks of the family sam as graphs: SAM, MobileSAM and tiny. Needs torch."""

from __future__ import annotations

from torch import nn

from segship.ship.families.sam.family import find_target, specs
from segship.ship.families.sam.model import ImageEncoderGraph, MaskDecoderGraph, build_sam
from segship.ship.families.sam.shared_decoder import ImageSideGraph, SelectiveDecoderGraph, SharedDecoderGraph
from segship.ship.loading import LoadedModel
from segship.ship.options import ExportOptions
from segship.ship.variants import PLAIN, apply_variant
from segship.spec import GraphSpec

Graphs = dict[str, tuple[nn.Module, GraphSpec]]
MODULES = {
    "image_encoder": ImageEncoderGraph,
    "mask_decoder": MaskDecoderGraph,
    "image_side": ImageSideGraph,
    "selective_decoder": SelectiveDecoderGraph,
    "shared_decoder": SharedDecoderGraph,
}
build = build_sam


def reference(model: LoadedModel) -> Graphs:
    """Return the graphs whose answers all others are held against, computing as the published code does."""
    apply_variant(model.module, PLAIN)
    found = _graphs(model, ExportOptions())
    return {name: found[name] for name in ("image_encoder", "mask_decoder", "image_side")}


def graphs(model: LoadedModel, options: ExportOptions, *, known_sizes: bool = False) -> Graphs:
    """Return every graph with its contract, computing by the variant of the target; see `specs`."""
    apply_variant(model.module, find_target(options))
    return _graphs(model, options, known_sizes=known_sizes)


def _graphs(model: LoadedModel, options: ExportOptions, *, known_sizes: bool = False) -> Graphs:
    contracts = specs(model, options, known_sizes=known_sizes)
    return {name: (MODULES[name](model.module), spec) for name, spec in contracts.items()}
