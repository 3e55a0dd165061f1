# SPDX-License-Identifier: Apache-2.0
"""From the weights of a checkpoint to a torch model. Needs torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from segship.arrays import AnyArray
from segship.backends import torch as runtime
from segship.backends.session import RunOptions, Session
from segship.errors import BackendUnavailable
from segship.ship.families import graphs_module
from segship.ship.options import ExportOptions
from segship.ship.weights import OpenedCheckpoint, Weights, check_state, naming_unusable, read_weights

TORCH_FLOOR = (2, 10)
"""What the extras ask for; nothing older is tested."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel(Weights):
    """The weights of a checkpoint as a torch module that is ready to be exported or run."""

    module: Any

    @property
    def networks(self) -> ModuleType:
        """The module `graphs` of its family."""
        return graphs_module(self.family)


def load_model(path: Path, options: ExportOptions | None = None) -> LoadedModel:
    """Read a checkpoint, recognise its family and sizes and build the module, strictly.

    Of the options those count that belong to the model: ``image_size``, ``semantic_window``.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely, is of no known family, or its tensors do not fit.
    ExportError
        ``other_family`` when options belong to models of the other task.
    BackendUnavailable
        ``torch_too_old``.
    """
    _refuse_old_torch()
    weights = read_weights(path, options)
    with torch.device("meta"):
        module: nn.Module = graphs_module(weights.family).build(weights.config)
    with naming_unusable(weights.checkpoint):
        load_state(module, weights.state)
    return LoadedModel(
        weights.family, weights.checkpoint, weights.config, weights.state, weights.changes, module.eval()
    )


def _refuse_old_torch() -> None:
    version = str(torch.__version__)
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < TORCH_FLOOR:
        floor = ".".join(map(str, TORCH_FLOOR))
        message = f'torch {version} is too old, and {floor} or newer is needed; pip install --upgrade "segship[export]"'
        raise BackendUnavailable(message, code="torch_too_old")


def load_state(module: nn.Module, state: Mapping[str, AnyArray]) -> None:
    """Load arrays into a module, which may have been made on the ``meta`` device.

    They are copied into a module that has memory; a module on ``meta`` takes their memory itself, so that large
    weights exist once. Integer buffers are taken as they are; counters of batches that are missing become 0.

    Raises
    ------
    CheckpointError
        When a key is missing, unexpected, or of another shape or kind of number; the message lists the first ten of
        each. The module is unchanged then.
    """
    expected = module.state_dict()
    shapes = {name: (tensor.is_floating_point(), tuple(tensor.shape)) for name, tensor in expected.items()}
    tensors = {name: torch.from_numpy(array) for name, array in check_state(shapes, state).items()}
    on_meta = any(tensor.is_meta for tensor in expected.values())
    module.load_state_dict(tensors, strict=True, assign=on_meta)


def open_checkpoint(path: Path, run: RunOptions) -> OpenedCheckpoint:
    """Open a checkpoint of any family as sessions that a predictor runs.

    A semantic one gives logits and takes pictures of any size, as many at once as wanted. The networks compute by the
    variant of the device: tiles that stay in the cache on CPUs, torch's fused attention on CUDA.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely or does not fit.
    BackendUnavailable
        When the device or precision is not here.
    """
    device = runtime.device_of(run.device)
    runtime.check_precision(run.precision, device)
    model, on_gpu = load_model(path), device.type == "cuda"
    wanted = ExportOptions(target="torch-cuda" if on_gpu else "torch", output="logits")
    parts = model.networks.graphs(model, wanted, known_sizes=on_gpu)
    sessions: dict[str, Session] = {
        name: runtime.Session(runtime.compile(module, spec, run), spec, run) for name, (module, spec) in parts.items()
    }
    return OpenedCheckpoint(model.verbs.manifest(model, wanted), sessions, model.checkpoint.sha256)
