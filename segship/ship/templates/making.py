# SPDX-License-Identifier: Apache-2.0
"""Make the templates of architectures, and prove them on weights that they were not traced with. Needs torch and onnx.

Weights are seeded and random: tracing sees shapes alone, and whoever traces with other weights gets the same bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from segship.bundle.evidence import Row
from segship.errors import ExportError
from segship.ship.export import NOTHING, Begin, Progress, graph_steps
from segship.ship.families import families, family_module, graphs_module
from segship.ship.graph.cut import CutGraph
from segship.ship.graph.trace import tensors_of
from segship.ship.loading import LoadedModel, load_model
from segship.ship.options import ExportOptions
from segship.ship.templates import ArchitectureTemplate, template_file, write_template
from segship.ship.templates.bundling import bundle_checkpoint
from segship.ship.verify import verify_bundle
from segship.ship.weights import tool_versions
from segship.spec import Dimension

TARGETS = {"promptable": ("onnxruntime", "openvino"), "semantic": ("onnxruntime",)}
"""Task -> the targets that templates are written for."""
_SEEDS = 1, 2
_SHAPING_TOOLS = ("torch", "onnx", "onnxscript", "onnxslim")


def template_names() -> tuple[str, ...]:
    """Return the names of all architectures that have templates."""
    return tuple(name for family in families() for name in family_module(family).template_configs())


def make_template(name: str, target: str, progress: Progress | None = None) -> ArchitectureTemplate:
    """Trace the graphs of an architecture, by seeded weights, and put them into the package.

    Raises
    ------
    ExportError
        ``unknown_architecture`` when no architecture has this name; when a graph cannot be traced, or holds a weight
        that no checkpoint has.
    """
    begin = Begin(progress)
    with tempfile.TemporaryDirectory(prefix="segship-template-") as folder:
        model = load_model(seeded_checkpoint(name, Path(folder), _SEEDS[0]), _options(name, target))
        template = _trace(model, name, target, begin)
    write_template(template, template_file(name, target))
    return template


def prove_template(name: str, target: str) -> list[Row]:
    """Make a bundle of other seeded weights by the template in the package, and hold it against their torch model."""
    options = _options(name, target)
    with tempfile.TemporaryDirectory(prefix="segship-template-") as folder:
        checkpoint = seeded_checkpoint(name, Path(folder), _SEEDS[1])
        bundle = bundle_checkpoint(checkpoint, Path(folder) / "bundle", options)
        return verify_bundle(bundle.path, checkpoint)


def seeded_checkpoint(name: str, folder: Path, seed: int) -> Path:
    """Write a checkpoint of an architecture with seeded random weights, and return its path."""
    found = {key: family for family in families() for key in family_module(family).template_configs()}
    if name not in found:
        message = f"no architecture is named {name!r}; known are {', '.join(found)}"
        raise ExportError(message, code="unknown_architecture")
    config = family_module(found[name]).template_configs()[name]
    path = folder / f"{name}.{seed}.pth"
    torch.save(seeded_weights(graphs_module(found[name]).build(config), seed), path)
    return path


def _trace(model: LoadedModel, name: str, target: str, begin: Begin) -> ArchitectureTemplate:
    options = ExportOptions(target=target) if model.task == "promptable" else ExportOptions()
    graphs: dict[str, CutGraph] = {}
    parts = model.graphs.graphs(model, options)
    steps = graph_steps(options, options.graph_opset(model.task), largest_sizes=model.verbs.largest_sizes(model))
    begin.total = len(parts) * len(steps)
    for graph, (module, spec) in parts.items():
        cut = NOTHING
        for step, change in steps:
            begin(f"{graph}: {step}", 1)
            cut = change(module, spec, cut)
        graphs[graph] = _plain(cut, _names(module, model.module), model.verbs.FREE_SIZES)
    chosen: dict[str, dict[str, Any]] = {
        graph: {"opset": options.graph_opset(model.task), "simplify": True} for graph in parts
    }
    for graph, variant in model.verbs.variants(options).items():
        chosen[graph] |= {"target": variant, "variant": variant}
    return ArchitectureTemplate(
        name=name,
        target=target,
        graphs={graph: cut.template() for graph, cut in graphs.items()},
        tensors=_tensors(model.module, model.verbs.FREE_SIZES),
        options=chosen,
        tools={tool: number for tool, number in tool_versions().items() if tool in _SHAPING_TOOLS},
        sha256="0" * 64,
    )


def _names(module: nn.Module, model: nn.Module) -> dict[str, str]:
    """Return what the checkpoint calls each tensor of a graph's module."""
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    return {name: names[id(tensor)] for name, tensor in tensors_of(module).items() if id(tensor) in names}


def _plain(cut: CutGraph, names: Mapping[str, str], free: Mapping[int, str]) -> CutGraph:
    """Call weights as the checkpoint does, and leave sizes open that checkpoints choose."""
    for part in (cut.prepare, cut.body):
        for node in part.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
        for value in (*part.graph.input, *part.graph.output):
            value.name = names.get(value.name, value.name)
            for size in value.type.tensor_type.shape.dim:
                if size.dim_value in free:
                    size.dim_param = free[size.dim_value]
        del part.graph.value_info[:]
    return cut


def _tensors(model: nn.Module, free: Mapping[int, str]) -> dict[str, tuple[bool, tuple[Dimension, ...]]]:
    return {
        name: (tensor.is_floating_point(), tuple(free.get(size, size) for size in tensor.shape))
        for name, tensor in model.state_dict().items()
    }
