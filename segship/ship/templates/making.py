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

import numpy as np
import torch
from torch import Tensor, nn

from segship.bundle.evidence import Row
from segship.bundle.manifest import task_module
from segship.errors import ExportError
from segship.ship.export import Begin, Progress, graph_steps
from segship.ship.families import families, family_module, graphs_module
from segship.ship.graph.cut import NOTHING, CutGraph
from segship.ship.loading import LoadedModel, load_model
from segship.ship.options import ExportOptions
from segship.ship.templates import ArchitectureTemplate, answers_file, template_file, write_template
from segship.ship.templates.bundling import BundleOptions, bundle_checkpoint
from segship.ship.verify import torch_sessions, verify_bundle
from segship.ship.weights import tool_versions
from segship.spec import Dimension

TARGETS = {"promptable": ("onnxruntime", "openvino"), "semantic": ("onnxruntime",)}
"""Task -> the targets that templates are written for."""
_SEEDS = 1, 2
_PROVEN_SIZE = 19
"""Classes of the models that templates of free sizes are proven on; those of Cityscapes."""
# Tensors that are tables, not matrices: their values are of one size.
_TABLES: tuple[str, ...] = (
    "pos_embed",
    "_embed.weight",
    "tokens.weight",
    "iou_token.weight",
    "rel_pos_h",
    "rel_pos_w",
    "biases",
)
_TABLES += tuple(f"point_embeddings.{index}.weight" for index in range(4))
_SHAPING_TOOLS = ("torch", "onnx", "onnxscript", "onnxslim")


def template_names() -> tuple[str, ...]:
    """Return the names of all architectures that have templates."""
    return tuple(name for family in families() for name in family_module(family).template_configs())


def template_targets_of(name: str) -> tuple[str, ...]:
    """Return the targets that the templates of an architecture are written for; as `make_template` raises."""
    return TARGETS[str(family_module(_find(name)[0]).TASK)]


def make_template(name: str, target: str, progress: Progress | None = None) -> ArchitectureTemplate:
    """Trace the graphs of an architecture by seeded weights, and put them into the package.

    Raises
    ------
    ExportError
        ``unknown_architecture`` when no architecture has this name; when a graph cannot be traced.
    """
    family, config = _find(name)
    with tempfile.TemporaryDirectory(prefix="segship-template-") as folder:
        checkpoint = seeded_checkpoint(family, config, Path(folder), _SEEDS[0])
        model = load_model(checkpoint, _options(config, target).for_export())
        template = _trace(model, name, target, Begin(progress))
    write_template(template, template_file(name, target))
    return template


def prove_template(name: str, target: str) -> list[Row]:
    """Make a bundle of other seeded weights by the template in the package, and hold it against their torch model."""
    family, config = _find(name)
    free = family_module(family).FREE_SIZES.values()
    config = replace(config, **dict.fromkeys(free, _PROVEN_SIZE)) if free else config
    with tempfile.TemporaryDirectory(prefix="segship-template-") as folder:
        checkpoint = seeded_checkpoint(family, config, Path(folder), _SEEDS[1])
        bundle = bundle_checkpoint(checkpoint, Path(folder) / "bundle", _options(config, target))
        return verify_bundle(bundle.path, checkpoint)


def store_answers(checkpoint_path: Path) -> Path:
    """Keep what the torch model of a published checkpoint answers, for bundles that are made of it without torch.

    Raises
    ------
    ExportError
        ``not_published`` for another checkpoint: nobody else would have its digest.
    """
    model = load_model(checkpoint_path)
    if model.checkpoint.known is None:
        message = f"{checkpoint_path} is no published checkpoint ({model.checkpoint.sha256}); answers are kept of such"
        raise ExportError(message, code="not_published")
    task = task_module(model.task)
    cases = task.cases(model.verbs.manifest(model, ExportOptions()))
    answers = task.answer(task.few(cases), torch_sessions(model.networks.reference(model)))
    path = answers_file(model.checkpoint.sha256)
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **task.remember(answers))
    return path


def _find(name: str) -> tuple[str, Any]:
    """Return the family and the configuration of an architecture that has templates."""
    for family in families():
        configs = family_module(family).template_configs()
        if name in configs:
            return family, configs[name]
    message = f"no architecture is named {name!r}; known are {', '.join(template_names())}"
    raise ExportError(message, code="unknown_architecture")


def _options(config: Any, target: str) -> BundleOptions:
    window = getattr(config, "semantic_window", None)
    return BundleOptions(target=target) if window is None else BundleOptions(semantic_window=window)


def seeded_checkpoint(family: str, config: Any, folder: Path, seed: int) -> Path:
    """Write a checkpoint of a model with seeded random weights, and return its path."""
    path = folder / f"{config.architecture}.{seed}.pth"
    torch.save(seeded_weights(graphs_module(family).build(config), seed), path)
    return path


def _trace(model: LoadedModel, name: str, target: str, begin: Begin) -> ArchitectureTemplate:
    options = ExportOptions(target=target) if model.task == "promptable" else ExportOptions()
    graphs: dict[str, CutGraph] = {}
    parts = model.networks.graphs(model, options)
    steps = graph_steps(
        model.module, options, options.graph_opset(model.task), largest_sizes=model.verbs.largest_sizes(model)
    )
    begin.total = len(parts) * len(steps)
    for graph, (module, spec) in parts.items():
        cut = NOTHING
        for step, change in steps:
            begin(f"{graph}: {step}", 1)
            cut = change(module, spec, cut)
        graphs[graph] = _plain(cut, model.verbs.FREE_SIZES)
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


def _plain(cut: CutGraph, free: Mapping[int, str]) -> CutGraph:
    """Leave sizes open that checkpoints choose, and leave out what is said of other tensors."""
    for part in (cut.prepare, cut.body):
        for value in (*part.graph.input, *part.graph.output):
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


def seeded_weights(module: nn.Module, seed: int = 0, scale: float = 0.05) -> dict[str, Tensor]:
    """Return a state dict for the module with every tensor random, biases and tables included.

    The published initialisation leaves position tables and biases at zero, where a mistake in them would not show.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    # Sorted, so that modules that hold the same tensors in another order get the same weights.
    for name, tensor in sorted(module.state_dict().items()):
        if not tensor.is_floating_point():
            state[name] = tensor.clone()
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            state[name] = 1.0 + 0.1 * noise.abs()
        elif name.endswith("gaussian_matrix"):
            state[name] = noise
        elif tensor.ndim == 1 and name.endswith("weight"):
            state[name] = 1.0 + scale * noise
        elif tensor.ndim == 1:
            state[name] = scale * noise
        elif name.endswith(_TABLES):
            state[name] = 0.5 * noise
        else:
            # Unit gain, so that activations neither die out nor saturate the softmaxes.
            state[name] = noise * tensor[0].numel() ** -0.5
    return state
