# SPDX-License-Identifier: Apache-2.0
"""Run torch modules behind the session interface, on CPU or CUDA, in float32 or bfloat16.

This backend has no artifact of its own: it runs the model straight from the checkpoint, which is why it stands on the
ship road and is imported only when somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segship.backends.session import Session as BaseSession
from segship.backends.session import SessionOptions, check_arrays
from segship.bundle.manifest import Manifest, Precision
from segship.errors import BackendUnavailable
from segship.loading import LoadedModel, describe_model, load_model
from segship.models.sam import ImageEncoderGraph, MaskDecoderGraph
from segship.spec import GraphSpec, image_encoder_spec, mask_decoder_spec

PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Session(BaseSession):
    """A module as a session.

    Parameters
    ----------
    module
        Takes the inputs of ``spec`` in order and returns its outputs in order.
    spec
        The contract.
    options
        ``threads`` (torch's are one setting for the whole process, so this changes it for all), ``device`` such as
        ``cpu`` or ``cuda:0``, ``precision`` ``fp32`` or ``bf16``.
    """

    def __init__(self, module: nn.Module, spec: GraphSpec, options: SessionOptions | None = None) -> None:
        options = options or SessionOptions()
        self.spec = spec
        self._device = _device(options.device)
        self._dtype = PRECISIONS[_precision(options.precision)]
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._module: nn.Module | None = module.eval().to(device=self._device)
        self.description = (
            f"torch {torch.__version__} {self._device}, {options.precision}, {torch.get_num_threads()} threads"
        )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the module once; inputs and outputs are float32 arrays whatever the precision inside."""
        if self._module is None:
            raise BackendUnavailable("the session is closed; open another one", code="session_closed")
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[tensor.name])) for tensor in self.spec.inputs]
        with torch.inference_mode(), self._precision_scope():
            answer = self._module(*(tensor.to(self._device) for tensor in tensors))
        outputs: Sequence[torch.Tensor] = answer if isinstance(answer, tuple) else (answer,)
        return {
            tensor.name: output.float().cpu().numpy() for tensor, output in zip(self.spec.outputs, outputs, strict=True)
        }

    def close(self) -> None:
        """Release the module and its weights."""
        self._module = None

    def _precision_scope(self) -> torch.autocast:
        # Autocast keeps norms, softmax and the position code in float32; casting the whole module does not.
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)


class OpenedCheckpoint(NamedTuple):
    """A checkpoint as two sessions."""

    manifest: Manifest
    """What a bundle's manifest would say, without graphs."""
    encoder: Session
    """Contract ``image_encoder``."""
    decoder: Session
    """Contract ``mask_decoder``."""
    encoder_sha256: str
    """The digest that ties embeddings to this encoder."""


def open_checkpoint(path: Path, options: SessionOptions | None = None) -> OpenedCheckpoint:
    """Open a checkpoint as sessions that a predictor runs.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely or does not fit.
    BackendUnavailable
        When the device is not here.
    """
    options = options or SessionOptions()
    _device(options.device)
    model: LoadedModel = load_model(path)
    geometry = model.config.geometry
    manifest = describe_model(model, opset=0, comparison=None, precision=_precision(options.precision))
    encoder = Session(ImageEncoderGraph(model.sam), image_encoder_spec(geometry), options)
    decoder = Session(MaskDecoderGraph(model.sam), mask_decoder_spec(geometry), options)
    return OpenedCheckpoint(manifest, encoder, decoder, model.checkpoint.sha256)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendUnavailable(
            f"device {name!r} is unknown to torch; accepted are cpu, cuda, cuda:0", code="unknown_device"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"device {name!r} was asked for and torch {torch.__version__} sees no CUDA device; "
            "use --device cpu, or install a CUDA build of torch on a machine with an NVIDIA driver",
            code="device_unavailable",
        )
    if device.type not in ("cpu", "cuda"):
        raise BackendUnavailable(
            f"device {name!r} is not supported by the torch backend; accepted are cpu and cuda", code="unknown_device"
        )
    return device


def _precision(name: str) -> Precision:
    for known in PRECISIONS:
        if name == known:
            return known
    raise BackendUnavailable(
        f"precision {name!r} is not supported by the torch backend; accepted are {', '.join(PRECISIONS)}",
        code="precision_unavailable",
    )
