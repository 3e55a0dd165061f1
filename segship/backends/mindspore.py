# SPDX-License-Identifier: Apache-2.0
"""Run SAM in MindSpore on the CPU, in float32: its checkpoints, as networks of `segship.ship.families.sam.cells`.

MindSpore 2.10 says that any numpy will do and was built for numpy 1: with numpy 2 its first operator ends in an error
that names neither, and later ones seem to work. So it needs an environment of its own, and that is checked here.

Ascend and GPU devices were never tried, and are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any

import mindspore
import numpy as np
from numpy.typing import NDArray

from segship.backends.session import RunOptions, closed, first_line, refuse_options, thread_count
from segship.backends.session import Session as BaseSession
from segship.errors import BackendUnavailable
from segship.spec import GraphSpec, check_arrays

if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    raise ImportError(f"it needs numpy < 2, and numpy {np.__version__} is here")

Network = Callable[..., Sequence[NDArray[Any]]]
"""Takes the inputs of a contract in order, as arrays, and gives the outputs in order."""


def _identity(x: NDArray[Any]) -> Sequence[NDArray[Any]]:
    return [mindspore.ops.add(mindspore.Tensor(x), 0).asnumpy()]


PROBE: Network = _identity


def version() -> str:
    """Return the version of MindSpore."""
    return str(mindspore.__version__)


def devices() -> dict[str, str]:
    """Return the one device that was tried."""
    return {"cpu": ""}


def precisions() -> tuple[str, ...]:
    """Return the precisions that may be asked for."""
    return ("fp32",)


def compile(graph: Network, spec: GraphSpec, run: RunOptions) -> Network:
    """Return the network, which MindSpore compiles at its first call of each shape.

    Raises
    ------
    BackendUnavailable
        When the device or an option cannot be had.
    """
    refuse_options(run, "mindspore")
    if run.device != "cpu":
        message = (
            f"device {run.device!r} was asked for, and the mindspore backend was tried on cpu alone; accepted is cpu"
        )
        raise BackendUnavailable(message, code="unknown_device")
    if run.precision != "fp32":
        message = f"precision {run.precision!r} is not supported by the mindspore backend; accepted is fp32"
        raise BackendUnavailable(message, code="precision_unavailable")
    return graph


_THREADS: list[int] = []
"""Those that the process works with, once there was a session."""


def _begin(threads: int) -> int:
    """Make MindSpore ready, where it is not, and return the threads that it works with."""
    if not _THREADS:
        mindspore.set_device("CPU")
        mindspore.device_context.cpu.op_tuning.threads_num(threads)
        _THREADS.append(threads)
    return _THREADS[0]


class Session(BaseSession):
    """A network as a session; callers wait for each other.

    Parameters
    ----------
    network
        See `Network`.
    spec
        The contract.
    run
        ``threads`` are one setting for the whole process, which MindSpore takes once: those of the first session hold
        for all, as the description says.
    """

    def __init__(self, network: Network, spec: GraphSpec, run: RunOptions | None = None) -> None:
        run = run or RunOptions()
        self.spec = spec
        threads = _begin(thread_count(run))
        self._network: Network | None = network
        self._lock = Lock()
        self.description = f"mindspore {version()} CPU, fp32, {threads} threads"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the network once; see `segship.backends.session.Session.run`."""
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        arrays = [np.ascontiguousarray(inputs[tensor.name]) for tensor in self.spec.inputs]
        with self._lock:
            if self._network is None:
                raise closed()
            try:
                answers = self._network(*arrays)
            except RuntimeError as error:
                message = f"graph {self.spec.name!r} failed in {self.description}: {first_line(error)}"
                raise BackendUnavailable(message, code="run_failed") from error
        return {tensor.name: array for tensor, array in zip(self.spec.outputs, answers, strict=True)}

    def close(self) -> None:
        """Release the network and its weights, once a call that another thread is in has ended."""
        with self._lock:
            self._network = None
