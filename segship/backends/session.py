# SPDX-License-Identifier: Apache-2.0
"""What every backend offers: one loaded graph that turns named arrays into named arrays.

A session knows names, dtypes and shapes, and nothing of images, prompts or models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from segship.backends import BACKENDS
from segship.errors import BackendUnavailable
from segship.machine import usable_cores
from segship.options import check_types
from segship.spec import GraphSpec, TensorSpec


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What runs a model.

    Attributes
    ----------
    backend
        ``onnxruntime``, ``openvino``, ``mnn``, ``tensorrt``, ``ascend`` and ``mindspore_lite`` run bundles, ``torch``
        and ``mindspore`` run checkpoints; ``auto`` takes the fastest that the bundle has found right.
    device
        ``cpu``, ``cuda`` or ``cuda:1``, ``npu`` or ``npu:1``; one that is not there is an error, never a silent
        fallback.
    precision
        ``fp32``; ``bf16`` and ``fp16`` where the backend and the chip have them; ``auto`` takes another than ``fp32``
        only where it was measured on this processor, is faster and passed its bar.
    threads
        Threads that work on one call; one for each usable core when left out.
    streams
        Calls that are worked on side by side, for programs with several callers; only ``openvino`` has more than one.
    compile
        Compile the model with torch on CUDA, and run the decoder as CUDA graphs.
    accept_accuracy
        Run what the bundle's certificate says fails its bar.
    """

    backend: str = "auto"
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    streams: int = 1
    compile: bool = False
    accept_accuracy: bool = False

    def __post_init__(self) -> None:
        check_types(self)


class RunSettings(TypedDict, total=False):
    """The fields of `RunOptions` as keywords, for functions that take them as ``**run``."""

    backend: str
    device: str
    precision: str
    threads: int | None
    streams: int
    compile: bool
    accept_accuracy: bool


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A graph as a backend gets it.

    Attributes
    ----------
    source
        The bytes of a graph that holds its own weights, or the path of any graph; weights in a sidecar are found
        beside the path.
    digest
        SHA-256 of the graph and its sidecar, where it is known.
    verify
        Checks every byte and returns what may be loaded: bytes that were checked stay checked.
    """

    source: bytes | Path
    digest: str | None = None
    verify: Callable[[], bytes | Path] | None = None

    def read(self) -> bytes | Path:
        """Check the graph, if there is something to check it against, and return what a runtime loads."""
        return self.source if self.verify is None else self.verify()


Sizes = Mapping[str, int | tuple[int, int]]
"""Axis of a contract -> its one size, or its least and its largest."""

Call = tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]
"""Inputs and outputs."""


class Session(ABC):
    """One graph loaded in one backend; several threads may call `run` at once.

    Attributes
    ----------
    spec
        The contract that inputs are checked against.
    description
        What really runs: runtime, version, device, threads.
    on_gpu
        Calls are launched on a GPU, where many objects in one call cost little more than one.
    """

    spec: GraphSpec
    description: str
    on_gpu: bool = False

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once.

        Parameters
        ----------
        inputs
            One array for every input of ``spec``, by name, of exactly its dtype, rank and fixed sizes.

        Returns
        -------
        dict
            One array for every output of ``spec``, by name.

        Raises
        ------
        InputError
            ``bad_tensor`` when the arrays do not fit the contract.
        """

    def fixed(self, sizes: Sizes) -> Session:
        """Return a session for calls in which some axes of the contract have known sizes, for callers with many such.

        It is this very session where the runtime gains nothing from that. Another one is made at the first call, may
        round otherwise, and closes with this one.
        """
        return self

    # Not abstract on purpose: what cannot be stopped goes on to its end.
    def stop(self, thread: int) -> None:  # noqa: B027
        """End the run that a thread, by `threading.get_ident`, is at, where the runtime can: it raises ``stopped``.

        Raised is a `segship.errors.BackendUnavailable`. A thread that is at none is left alone.
        """

    # Not abstract on purpose: a session that holds nothing has nothing to release.
    def close(self) -> None:  # noqa: B027
        """Release what the session holds; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Recorder(Session):
    """Another session, and what it was asked and answered since `take` was last called.

    Examples
    --------
    >>> import numpy as np
    >>> from segship.backends import fake
    >>> recorder = Recorder(fake.Session(PROBE_SPEC, lambda inputs: {"y": 2 * inputs["x"]}))
    >>> _ = recorder.run({"x": np.ones(1, np.float32)})
    >>> recorder.take()
    [({'x': array([1.], dtype=float32)}, {'y': array([2.], dtype=float32)})]
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._calls: list[Call] = []
        self.spec, self.description, self.on_gpu = session.spec, session.description, session.on_gpu

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the other session."""
        # Copies: callers use memory again, and so do engines.
        asked = {name: np.array(array) for name, array in inputs.items()}
        answered = self._session.run(inputs)
        self._calls.append((asked, {name: np.array(array) for name, array in answered.items()}))
        return answered

    def take(self) -> list[Call]:
        """Return the inputs and the outputs of every call, and forget them."""
        calls, self._calls = self._calls, []
        return calls


IDENTITY = Graph(
    bytes.fromhex(
        "080812003a3b0a100a017812017922084964656e74697479120570726f6265"
        "5a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a001011"
    )
)
"""y = Identity(x), one float32, opset 17: the smallest graph that shows that a device runs."""
PROBE_SPEC = GraphSpec("probe", (TensorSpec("x", "float32", (1,)),), (TensorSpec("y", "float32", (1,)),))


MOST_THREADS = 4096
"""Of threads and of streams; there is no machine with so many cores, and runtimes fail in their own ways beyond."""


def thread_count(run: RunOptions) -> int:
    """Return how many threads work on one call; fewer than one, or absurdly many, are refused as ``bad_threads``."""
    threads = usable_cores() if run.threads is None else run.threads
    if not 1 <= threads <= MOST_THREADS:
        message = f"threads is {threads}; it must be 1 or more, and at most {MOST_THREADS}"
        raise BackendUnavailable(message, code="bad_threads")
    return threads


def refuse_options(run: RunOptions, backend: str, *, compile: bool = False) -> None:
    """Refuse streams where a backend's row has none, and compiling unless ``compile`` says that it has it here.

    Codes are ``streams_unavailable``, ``bad_streams`` and ``compile_unavailable``.
    """
    if not 1 <= run.streams <= MOST_THREADS:
        message = f"streams is {run.streams}; it must be 1 or more, and at most {MOST_THREADS}"
        raise BackendUnavailable(message, code="bad_streams")
    if run.streams > 1 and not BACKENDS[backend].streams:
        others = " or ".join(name for name, row in BACKENDS.items() if row.streams)
        message = (
            f"{run.streams} streams were asked for, and the {backend} backend has none: its calls share the "
            f"threads; leave the option out, or use the backend {others}"
        )
        raise BackendUnavailable(message, code="streams_unavailable")
    if run.compile and not compile:
        message = f"compile is an option of the torch backend on CUDA, and {backend} on {run.device} has none"
        raise BackendUnavailable(message, code="compile_unavailable")


def closed() -> BackendUnavailable:
    """Return the error for a session that was closed."""
    return BackendUnavailable("the session is closed; open another one", code="session_closed")


def first_line(error: Exception) -> str:
    """Return what a runtime says was wrong, in one line."""
    return str(error).strip().split("\n", 1)[0][:500]
