# SPDX-License-Identifier: Apache-2.0
"""Run torch modules behind the session interface, on CPU or CUDA, in float32 or bfloat16.

This backend has no artifact of its own: `segship.ship.loading.open_checkpoint` gives it the modules of a checkpoint.

Nothing of the CUDA half, and so of ``compile``, has been run: it was written without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from segship.backends.session import RunOptions, closed, refuse_options, thread_count
from segship.backends.session import Session as BaseSession
from segship.errors import BackendUnavailable, way
from segship.spec import GraphSpec, check_arrays

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


PROBE = nn.Identity()


def version() -> str:
    """Return the version of torch."""
    return str(torch.__version__)


def devices() -> dict[str, str]:
    """Return the CPU and the CUDA devices; ``cuda`` where this build is for CUDA and sees none."""
    cuda = {f"cuda:{index}": torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return {"cpu": "", **(cuda or ({} if torch.version.cuda is None else {"cuda": ""}))}


def precisions() -> tuple[str, ...]:
    """Return the precisions that may be asked for."""
    return tuple(PRECISIONS)


def compile(graph: nn.Module, spec: GraphSpec, run: RunOptions) -> nn.Module:
    """Put a module on its device and, if that was asked for, compile it there; all but the encoder as CUDA graphs.

    A decoder is a hundred kernels of a few microseconds, and launching them takes longer than running them; recorded
    as one graph they are launched once. The encoder's kernels are large, and its buffers better not held twice.

    Raises
    ------
    BackendUnavailable
        When the device or an option cannot be had.
    """
    device = device_of(run.device)
    check_precision(run.precision, device)
    refuse_options(run, "torch", compile=device.type == "cuda")
    module = graph.eval().to(device=device)
    if run.compile:
        module.compile(mode="default" if spec.name == "image_encoder" else "reduce-overhead")
    return module


class Session(BaseSession):
    """A module as a session.

    Parameters
    ----------
    module
        Takes the inputs of ``spec`` in order and returns its outputs in order; on the device that is asked for.
    spec
        The contract.
    run
        ``threads`` are one setting for the whole process, so this changes them for all.
    """

    def __init__(self, module: nn.Module, spec: GraphSpec, run: RunOptions | None = None) -> None:
        run = run or RunOptions()
        self.spec = spec
        self._device = device_of(run.device)
        self._dtype = check_precision(run.precision, self._device)
        self.on_gpu = self._device.type == "cuda"
        if run.threads is not None:
            torch.set_num_threads(thread_count(run))
        self._module: nn.Module | None = module.eval()
        # A recorded CUDA graph has one set of buffers, which two calls at once would share.
        self._one_at_a_time: AbstractContextManager[Any] = Lock() if run.compile else nullcontext()
        compiled = ", compiled" if run.compile else ""
        threads = f"{torch.get_num_threads()} threads"
        self.description = f"torch {version()} {self._device}, {run.precision}, {threads}{compiled}"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the module once; numbers go in and out as float32 whatever the precision inside."""
        module = self._module
        if module is None:
            raise closed()
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        tensors = [torch.from_numpy(_readable(inputs[tensor.name])) for tensor in self.spec.inputs]
        with self._one_at_a_time, torch.inference_mode(), self._full_precision_scope(), self._precision_scope():
            answer = module(*(tensor.to(self._device) for tensor in tensors))
            outputs: Sequence[torch.Tensor] = answer if isinstance(answer, tuple) else (answer,)
            arrays = [(output.float() if output.is_floating_point() else output).cpu().numpy() for output in outputs]
        return {tensor.name: array for tensor, array in zip(self.spec.outputs, arrays, strict=True)}

    def close(self) -> None:
        """Release the module and its weights."""
        self._module = None

    def _precision_scope(self) -> torch.autocast:
        # Autocast keeps norms, softmax and the position code in float32; casting the whole module does not, errs half
        # as much again (vit_t: 2.2 against 1.5 % of the embedding's RMS) and was no faster.
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32)

    def _full_precision_scope(self) -> AbstractContextManager[Any]:
        # cuDNN shortens float32 convolutions to TF32 unless told otherwise, which misses the bar of fp32.
        if self._device.type != "cuda":
            return nullcontext()
        scope: AbstractContextManager[Any] = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        return scope


def _readable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that torch can look into: contiguous, and not marked as read-only."""
    whole = np.ascontiguousarray(array)
    return whole if whole.flags.writeable else whole.copy()


def device_of(name: str) -> torch.device:
    """Return a device by its name, which is here; others are refused as `BackendUnavailable`."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BackendUnavailable(
            f"device {name!r} is unknown to torch; accepted are cpu, cuda, cuda:0", code="unknown_device"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        driver = "check the NVIDIA driver with nvidia-smi"
        build = "install a CUDA build of torch on a machine with an NVIDIA driver"
        cpu = way("device='cpu'", "--device cpu")
        raise BackendUnavailable(
            f"device {name!r} was asked for and torch {version()} sees no CUDA device; "
            f"use {cpu}, or {driver if torch.version.cuda else build}",
            code="device_unavailable",
        )
    if device.type not in ("cpu", "cuda"):
        raise BackendUnavailable(
            f"device {name!r} is not supported by the torch backend; accepted are cpu and cuda", code="unknown_device"
        )
    return device


def check_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the type of a precision, which the device has; others are refused as `BackendUnavailable`."""
    if name == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        message = f"precision 'bf16' was asked for and {torch.cuda.get_device_name(device)} does not have it; use fp32"
        raise BackendUnavailable(message, code="precision_unavailable")
    if name in PRECISIONS:
        return PRECISIONS[name]
    raise BackendUnavailable(
        f"precision {name!r} is not supported by the torch backend; accepted are {', '.join(PRECISIONS)}",
        code="precision_unavailable",
    )
