# SPDX-License-Identifier: Apache-2.0
"""Run graphs in TensorRT, or in TensorRT for RTX, on an NVIDIA GPU; the first of the two that is installed.

A graph becomes a plan for one GPU and one version of TensorRT, kept in the cache folder (`segship.backends.compiled`).
Networks are strongly typed: precision is what stands in the graph, so that a plan of TensorRT 10, of 11 and of RTX
computes alike. Free axes are planned in ranges, which the parser does not hold against each other: here an axis has one
range for all tensors that it is of (`segship.backends.profiles`). RTX builds plans where no GPU is. The session was
never run on one: it is tested on doubles of both interfaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segship.backends import BACKENDS, is_installed
from segship.backends.compiled import CompiledName, find_compiled, graph_digest, remove_compiled, store_compiled
from segship.backends.profiles import Profile, profiles_of, shapes_of
from segship.backends.session import IDENTITY, Graph, RunOptions, closed, first_line, refuse_options, thread_count
from segship.backends.session import Session as BaseSession
from segship.errors import BackendUnavailable, BundleError
from segship.files import read_bytes
from segship.spec import GraphSpec, TensorSpec, check_arrays, check_interface

PROBE = IDENTITY
_MOST_PLAN_BYTES = 1 << 34
_PACKAGE = next(filter(is_installed, BACKENDS["tensorrt"].packages), BACKENDS["tensorrt"].packages[0])
trt = import_module(_PACKAGE)


def version() -> str:
    """Return the version of TensorRT."""
    return str(trt.__version__)


@cache
def _cuda() -> Any:
    """Return CUDA's runtime, as the package cuda-python wraps it."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        message = 'the tensorrt backend needs the package cuda-python to run; run: pip install "segship[tensorrt]"'
        raise BackendUnavailable(message, code="backend_missing") from error


def _call(function: str, *arguments: Any) -> Any:
    """Call CUDA and return its answer; what fails is told in CUDA's words."""
    cuda = _cuda()
    code, *found = getattr(cuda, function)(*arguments)
    if int(code):
        message = f"{function} failed: {getattr(code, 'name', code)}; `segship doctor` says what runs here"
        raise BackendUnavailable(message, code="run_failed")
    return found[0] if found else None


def devices() -> dict[str, str]:
    """Return the GPUs that CUDA's driver lists."""
    try:
        count = int(_call("cudaGetDeviceCount"))
    except BackendUnavailable:
        return {}
    return {"cuda" if index == 0 else f"cuda:{index}": _gpu_name(index) for index in range(count)}


def _gpu_name(index: int) -> str:
    return bytes(_call("cudaGetDeviceProperties", index).name).split(b"\0", 1)[0].decode()


def precisions() -> tuple[str, ...]:
    """Return the one that may be asked for: the arithmetic itself is the graph's."""
    return ("fp32",)


def beside(precision: str) -> str:
    """Return how float32 parts of a graph in a lower precision are run: as they are."""
    return "fp32"


class Compiled(NamedTuple):
    """A plan, and the ranges that it was made for."""

    plan: bytes
    profiles: tuple[Profile, ...]
    name: CompiledName


def compile(graph: Graph, spec: GraphSpec, run: RunOptions) -> Compiled:
    """Take a plan that was built before from the cache, or build it and put it there.

    Raises
    ------
    BackendUnavailable
        When the device cannot be had.
    BundleError
        ``graph_rejected`` with the node that TensorRT does not take.
    """
    device = _device(run)
    source, profiles = graph.read(), profiles_of(spec)
    settings = {_PACKAGE: version(), "gpu": _gpu_name(device), "profiles": str(profiles)}
    name = CompiledName(graph.digest or graph_digest(source), "tensorrt", settings)
    kept = find_compiled(name)
    if kept is not None:
        return Compiled(read_bytes(kept, limit=_MOST_PLAN_BYTES), profiles, name)
    plan = build_plan(source, spec, profiles)

    def fill(stream: BinaryIO) -> None:
        stream.write(plan)

    store_compiled(name, fill)
    return Compiled(plan, profiles, name)


class _Listener(trt.ILogger):  # type: ignore[misc,name-defined]  # The package has no types.
    """Keeps what TensorRT complains of, which it would print."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)


def build_plan(
    graph: bytes | Path, spec: GraphSpec, profiles: Sequence[Profile], capabilities: Sequence[str] = ()
) -> bytes:
    """Build a plan of a typed graph; needs no GPU with TensorRT for RTX.

    Parameters
    ----------
    graph
        The bytes of a graph that holds its own weights, or the path of any graph.
    spec, profiles
        Its contract and the ranges of its free axes, see `profiles_of`.
    capabilities
        Of the GPUs that it is for, such as ``SM86``, RTX alone; 8.0 and later when left out.

    Raises
    ------
    BundleError
        ``graph_rejected`` with the node that TensorRT does not take, or why it builds nothing.
    """
    listener = _Listener()
    builder = trt.Builder(listener)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(graph, spec, network, listener)
    config = builder.create_builder_config()
    # Ten bits of a product's mantissa would miss the bar of fp32.
    config.clear_flag(trt.BuilderFlag.TF32)
    for profile in profiles:
        planned = builder.create_optimization_profile()
        for name, shapes in shapes_of(spec, profile).items():
            planned.set_shape(name, *shapes)
        config.add_optimization_profile(planned)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for place, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, capability), place)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _rejected(spec, "; ".join(listener.errors[-2:]) or "it builds no plan and does not say why")
    return bytes(plan)


def _parse(graph: bytes | Path, spec: GraphSpec, network: Any, listener: _Listener) -> None:
    parser = trt.OnnxParser(network, listener)
    if not (parser.parse(graph) if isinstance(graph, bytes) else parser.parse_from_file(str(graph))):
        told = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"node {one.node_name()!r} ({one.node_operator()}): {one.desc()}" for one in told[:3]]
        raise _rejected(spec, "; ".join(reasons) or "; ".join(listener.errors[-2:]))
    check_interface(_tensors(network, "input"), _tensors(network, "output"), spec)


def _tensors(network: Any, kind: str) -> list[TensorSpec]:
    """Return what a network declares, its free axes named by their places."""
    count = getattr(network, f"num_{kind}s")
    found = [getattr(network, f"get_{kind}")(index) for index in range(count)]
    names = {trt.float32: "float32", trt.uint8: "uint8", trt.int64: "int64"}
    return [
        TensorSpec(
            tensor.name,
            names.get(tensor.dtype, str(tensor.dtype)),
            tuple(f"axis {place}" if size < 0 else int(size) for place, size in enumerate(tensor.shape)),
        )
        for tensor in found
    ]


class Session(BaseSession):
    """A plan with one execution context; callers wait for each other.

    Raises
    ------
    BackendUnavailable
        When the device cannot be had, or the plan is not of this GPU.
    """

    on_gpu = True

    def __init__(self, compiled: Compiled, spec: GraphSpec, run: RunOptions | None = None) -> None:
        self._device = _device(run or RunOptions(device="cuda"))
        self.spec = spec
        self._profiles = compiled.profiles
        _call("cudaSetDevice", self._device)
        self._listener = _Listener()
        self._runtime = trt.Runtime(self._listener)
        self._engine = self._runtime.deserialize_cuda_engine(compiled.plan)
        if self._engine is None:
            kept = find_compiled(compiled.name)
            if kept is not None:
                remove_compiled(kept)
            message = f"the plan of graph {spec.name!r} does not load here: {'; '.join(self._listener.errors[-2:])}"
            raise BackendUnavailable(f"{message}; it is built anew the next time", code="run_failed")
        self._context: Any = self._engine.create_execution_context()
        self._stream = _call("cudaStreamCreate")
        self._profile = 0
        self._memory: dict[str, tuple[int, int]] = {}
        self._lock = Lock()
        self.description = f"{_PACKAGE} {version()} on {_gpu_name(self._device)}"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `segship.backends.session.Session.run`."""
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        profile = self._find_profile(inputs)
        with self._lock:
            if self._context is None:
                raise closed()
            _call("cudaSetDevice", self._device)
            if profile != self._profile:
                self._context.set_optimization_profile_async(profile, self._stream)
                self._profile = profile
            # They must live until the stream has copied them.
            held = {tensor.name: np.ascontiguousarray(inputs[tensor.name]) for tensor in self.spec.inputs}
            for name, array in held.items():
                self._context.set_input_shape(name, array.shape)
                self._copy(name, array, "cudaMemcpyHostToDevice")
            answers = {tensor.name: self._answer(tensor) for tensor in self.spec.outputs}
            if not self._context.execute_async_v3(int(self._stream)):
                message = f"graph {self.spec.name!r} failed in {self.description}: "
                raise BackendUnavailable(message + "; ".join(self._listener.errors[-2:]), code="run_failed")
            for name, array in answers.items():
                self._copy(name, array, "cudaMemcpyDeviceToHost")
            _call("cudaStreamSynchronize", self._stream)
        return answers

    def close(self) -> None:
        """Release the plan and its memory, once a call that another thread is in has ended."""
        with self._lock:
            if self._context is None:
                return
            self._context = self._engine = None
            for address, _ in self._memory.values():
                _call("cudaFree", address)
            self._memory.clear()
            _call("cudaStreamDestroy", self._stream)

    def _find_profile(self, inputs: Mapping[str, NDArray[Any]]) -> int:
        """Return the first profile whose ranges hold the sizes of a call."""
        sizes = {
            axis: size
            for tensor in self.spec.inputs
            for axis, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
            if isinstance(axis, str)
        }
        for place, profile in enumerate(self._profiles):
            if all(profile[axis][0] <= size <= profile[axis][2] for axis, size in sizes.items()):
                return place
        found = ", ".join(f"{size} {axis}" for axis, size in sizes.items())
        ranges = " or ".join(
            ", ".join(f"{axis} {least} to {most}" for axis, (least, _, most) in profile.items())
            for profile in self._profiles
        )
        message = f"graph {self.spec.name!r} was planned for {ranges}, and the call has {found}; split the call"
        raise BackendUnavailable(message, code="no_profile")

    def _answer(self, tensor: TensorSpec) -> NDArray[Any]:
        shape = tuple(self._context.get_tensor_shape(tensor.name))
        array = np.empty(shape, tensor.dtype)
        self._context.set_tensor_address(tensor.name, self._reserve(tensor.name, array.nbytes))
        return array

    def _copy(self, name: str, array: NDArray[Any], how: str) -> None:
        address = self._reserve(name, array.nbytes)
        pair = (address, array.ctypes.data) if how.endswith("ToDevice") else (array.ctypes.data, address)
        self._context.set_tensor_address(name, address)
        _call("cudaMemcpyAsync", *pair, array.nbytes, getattr(_cuda().cudaMemcpyKind, how), self._stream)

    def _reserve(self, name: str, count: int) -> int:
        """Return the address of a tensor's memory on the GPU, which grows and stays."""
        address, size = self._memory.get(name, (0, 0))
        if count > size or not address:
            if address:
                _call("cudaFree", address)
            address, size = int(_call("cudaMalloc", max(count, 1))), count
            self._memory[name] = (address, size)
        return address


def _device(run: RunOptions) -> int:
    """Return the number of the GPU that is asked for; what cannot be had is refused."""
    thread_count(run)
    refuse_options(run, "tensorrt")
    name, _, index = run.device.partition(":")
    if name != "cuda" or (index and not index.isdecimal()):
        message = f"device {run.device!r} is unknown to the tensorrt backend; accepted are cuda and cuda:N"
        raise BackendUnavailable(message, code="unknown_device")
    if run.precision != "fp32":
        message = f"precision {run.precision!r} was asked for, and tensorrt computes as the graph says: quantize it"
        raise BackendUnavailable(message, code="precision_unavailable")
    here = devices()
    if run.device not in here and f"{name}:{index or 0}" != "cuda:0" or not here:
        found = f"{', '.join(here)}" if here else "CUDA lists no GPU"
        message = f"device {run.device!r} was asked for, and it is not here ({found}); take another backend"
        raise BackendUnavailable(message, code="device_unavailable")
    return int(index or 0)


def _rejected(spec: GraphSpec, reason: str) -> BundleError:
    message = f"TensorRT {version()} does not load graph {spec.name!r}: {first_line(Exception(reason))}"
    return BundleError(message, code="graph_rejected")
