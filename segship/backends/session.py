# SPDX-License-Identifier: Apache-2.0
"""What every backend offers: one loaded graph that turns named arrays into named arrays.

A session knows names, dtypes and shapes, and nothing of images, prompts or models. Each backend is one file beside
this one with ``compile()`` and a subclass of `Session`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segship.backends import usable_cores
from segship.errors import BackendUnavailable, BundleError, InputError
from segship.spec import Dimension, GraphSpec, TensorSpec


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a graph is run.

    Attributes
    ----------
    threads
        Threads that work on one call; None means one for each usable core.
    device
        ``cpu``, ``cuda`` or ``cuda:1``. A device that cannot be had is an error, never a fallback.
    precision
        What the arithmetic is asked to be: ``fp32``, ``bf16`` or ``fp16``; a backend or a chip without it refuses.
    streams
        Calls that are worked on side by side, each with its part of the threads; for programs with several callers.
        A backend without streams refuses more than one.
    compile
        Let torch compile the modules on CUDA, with CUDA graphs for the decoder; other backends refuse.
    """

    threads: int | None = None
    device: str = "cpu"
    precision: str = "fp32"
    streams: int = 1
    compile: bool = False


class Session(ABC):
    """One graph loaded in one backend; several threads may call `run` at once.

    Attributes
    ----------
    spec
        The contract that inputs are checked against.
    description
        What really runs: runtime, version, device, threads.
    """

    spec: GraphSpec
    description: str

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

    # Not abstract on purpose: a session that holds nothing has nothing to release.
    def close(self) -> None:  # noqa: B027
        """Release what the session holds; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def thread_count(options: SessionOptions) -> int:
    """Return how many threads work on one call.

    Raises
    ------
    BackendUnavailable
        ``bad_threads`` when fewer than one was asked for.
    """
    threads = usable_cores() if options.threads is None else options.threads
    if threads < 1:
        raise BackendUnavailable(f"threads is {threads}; it must be 1 or more", code="bad_threads")
    return threads


def refuse_options(options: SessionOptions, backend: str, *, streams: bool = False, compile: bool = False) -> None:
    """Refuse options that a backend does not have; ``streams`` and ``compile`` say what it has.

    Raises
    ------
    BackendUnavailable
        ``streams_unavailable``, ``bad_streams`` or ``compile_unavailable``.
    """
    if options.streams < 1:
        raise BackendUnavailable(f"streams is {options.streams}; it must be 1 or more", code="bad_streams")
    if options.streams > 1 and not streams:
        message = (
            f"{options.streams} streams were asked for, and the {backend} backend has none: its calls share the "
            "threads; leave the option out, or use the backend openvino"
        )
        raise BackendUnavailable(message, code="streams_unavailable")
    if options.compile and not compile:
        message = f"compile is an option of the torch backend on CUDA, and {backend} on {options.device} has none"
        raise BackendUnavailable(message, code="compile_unavailable")


def closed() -> BackendUnavailable:
    """Return the error for a session that was closed."""
    return BackendUnavailable("the session is closed; open another one", code="session_closed")


def first_line(error: Exception) -> str:
    """Return what a runtime says was wrong, in one line."""
    return str(error).strip().split("\n", 1)[0][:500]


def check_arrays(arrays: Mapping[str, NDArray[Any]], tensors: Sequence[TensorSpec], graph: str) -> None:
    """Check arrays against a contract: names, dtypes, ranks, fixed sizes, and that axes of one name agree.

    Raises
    ------
    InputError
        ``bad_tensor``, with the tensor, the value found and the one expected.
    """
    expected = {tensor.name for tensor in tensors}
    if arrays.keys() != expected:
        missing, unknown = sorted(expected - arrays.keys()), sorted(arrays.keys() - expected)
        raise _bad(graph, f"missing: {missing or 'none'}; unknown: {unknown or 'none'}; it takes {sorted(expected)}")
    sizes: dict[str, tuple[int, str]] = {}
    for tensor in tensors:
        array = arrays[tensor.name]
        if not isinstance(array, np.ndarray):
            raise _bad(graph, f"{tensor.name} is a {type(array).__name__}, not a numpy array")
        if array.dtype != np.dtype(tensor.dtype):
            raise _bad(graph, f"{tensor.name} has dtype {array.dtype}; expected {tensor.dtype}, cast it first")
        if array.ndim != len(tensor.shape):
            raise _bad(graph, f"{tensor.name} has shape {array.shape}; expected {_shape(tensor.shape)}")
        for found, wanted in zip(array.shape, tensor.shape, strict=True):
            _check_size(found, wanted, tensor, array, sizes, graph)


def _check_size(
    found: int,
    wanted: Dimension,
    tensor: TensorSpec,
    array: NDArray[Any],
    sizes: dict[str, tuple[int, str]],
    graph: str,
) -> None:
    if isinstance(wanted, int):
        if found != wanted:
            raise _bad(graph, f"{tensor.name} has shape {array.shape}; expected {_shape(tensor.shape)}")
        return
    if found < 1:
        raise _bad(graph, f"{tensor.name} has shape {array.shape}; axis {wanted!r} needs at least 1")
    first, name = sizes.setdefault(wanted, (found, tensor.name))
    if found != first:
        message = f"axis {wanted!r} is {first} in {name} and {found} in {tensor.name}; they must be equal"
        raise _bad(graph, message)


def _bad(graph: str, message: str) -> InputError:
    return InputError(f"graph {graph!r}: {message}", code="bad_tensor")


def _shape(shape: Sequence[Dimension]) -> str:
    return f"({', '.join(str(size) for size in shape)})"


def check_interface(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], spec: GraphSpec) -> None:
    """Check what a graph file declares against its contract.

    A graph may be freer than the contract (a dynamic axis where a size stands). Its outputs may be narrower, its
    inputs may not. Names of dynamic axes are not compared, since exporters make up their own.

    Raises
    ------
    BundleError
        ``graph_interface``, with the first difference.
    """
    for kind, found, wanted in (("input", inputs, spec.inputs), ("output", outputs, spec.outputs)):
        by_name = {tensor.name: tensor for tensor in found}
        names = [tensor.name for tensor in wanted]
        if len(by_name) != len(found) or by_name.keys() != set(names):
            raise _differs(spec, f"its {kind}s are {[tensor.name for tensor in found]}; expected {names}")
        for tensor in wanted:
            _check_declared(by_name[tensor.name], tensor, spec, kind)


def _check_declared(found: TensorSpec, wanted: TensorSpec, spec: GraphSpec, kind: str) -> None:
    if found.dtype != wanted.dtype:
        raise _differs(spec, f"{kind} {found.name} has dtype {found.dtype}; expected {wanted.dtype}")
    fits = len(found.shape) == len(wanted.shape) and all(
        isinstance(size, str) or size == expected or (isinstance(expected, str) and kind == "output")
        for size, expected in zip(found.shape, wanted.shape, strict=True)
    )
    if not fits:
        raise _differs(spec, f"{kind} {found.name} has shape {_shape(found.shape)}; expected {_shape(wanted.shape)}")


def _differs(spec: GraphSpec, message: str) -> BundleError:
    message = f"the graph does not keep the contract {spec.name!r}: {message}; export it again"
    return BundleError(message, code="graph_interface")
