# SPDX-License-Identifier: Apache-2.0
"""Run graphs in OpenVINO on the CPU, in float32, bfloat16 or float16 where the chip has them.

Three habits of OpenVINO are kept from the user. Importing it sends an event to its makers, so its sender is kept out
(`import_openvino`). It takes bfloat16 where nobody asked for it, and bfloat16 for float16 on chips without the latter,
so the precision is always set, and read back from what was compiled. It pins its threads to the first cores, so that
two processes share one core and leave another idle; here they are not pinned.

A graph is compiled once and kept in the cache folder (`segship.backends.compiled`); what runs is always the
mapped file, so that the float32 weights in it can leave memory once they are packed. int8 needs nothing here: it stands
in the graph, as quantize and dequantize nodes.
"""

from __future__ import annotations

import io
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segship.backends.compiled import (
    CompiledName,
    MappedFile,
    find_compiled,
    graph_digest,
    remove_compiled,
    store_compiled,
)
from segship.backends.session import (
    IDENTITY,
    Graph,
    RunOptions,
    Sizes,
    closed,
    first_line,
    refuse_options,
    thread_count,
)
from segship.backends.session import Session as BaseSession
from segship.errors import BackendUnavailable, BundleError
from segship.machine import describe_machine
from segship.spec import GraphSpec, TensorSpec, check_arrays, check_interface

PRECISIONS: dict[str, tuple[str, str]] = {"fp32": ("f32", "FP32"), "bf16": ("bf16", "BF16"), "fp16": ("f16", "FP16")}
"""What may be asked for: OpenVINO's name of it as a hint, and as what a chip can do."""

BATCH_AXIS = "batch"
"""A first axis of items that know nothing of each other. Graphs are compiled for one of them, which is faster (fixed
shapes are fused and planned: 17 % less time for vit_t's encoder) and smaller; longer batches run item by item."""

PROBE = IDENTITY

_TELEMETRY = "openvino_telemetry"


def import_openvino() -> Any:
    """Import OpenVINO without the package that tells its makers about it.

    ``import openvino`` imports its model converter, which sends an event at once if ``openvino_telemetry`` can be
    imported, and uses a stub of its own otherwise.
    """
    if "openvino" in sys.modules or _TELEMETRY in sys.modules:
        return import_module("openvino")
    # None makes the import of that name fail as if it were not installed.
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return import_module("openvino")
    finally:
        del sys.modules[_TELEMETRY]


openvino = import_openvino()


def version() -> str:
    """Return the version without the build's number."""
    return str(openvino.__version__).split("-", 1)[0]


@cache
def _core() -> Any:
    return openvino.Core()


def devices() -> dict[str, str]:
    """Return the one device that graphs are compiled for here."""
    return {"cpu": ""}


def precisions() -> tuple[str, ...]:
    """Return the precisions that this chip has."""
    found = set(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return tuple(name for name, (_, capability) in PRECISIONS.items() if capability in found)


def beside(precision: str) -> str:
    """Return how float32 parts of a graph in a lower precision are run: between integers in bfloat16, if it is here."""
    return "bf16" if precision == "int8" and "bf16" in precisions() else "fp32"


class Compiled(NamedTuple):
    """A compiled graph, ready to run."""

    model: Any
    file: MappedFile | None
    """The memory of its weights; None where there is no cache to keep them in."""
    graph: Graph
    """What it was compiled of."""


def compile(graph: Graph, spec: GraphSpec, run: RunOptions, sizes: Sizes | None = None) -> Compiled:
    """Take a graph that was compiled before from the cache, or compile it and put it there.

    A path costs less memory the first time. A graph whose digest is known, or that was compiled before, is not read
    but for its check. Of axes whose ``sizes`` are known the plugin plans memory and products when it compiles.

    Raises
    ------
    BackendUnavailable
        When the device, precision or number of streams cannot be had.
    BundleError
        When OpenVINO does not load the graph, or its inputs and outputs are not those of ``spec``.
    """
    settings = _settings(run)
    # What was read for the check is gone before OpenVINO needs as many bytes.
    graph.read()
    name = _compiled_name(graph.digest or graph_digest(graph.source), run.precision, sizes or {})
    path = find_compiled(name)
    if path is not None:
        try:
            return _import(path, settings, graph)
        except RuntimeError:
            # Damaged, or made by a build that calls itself by the same version.
            remove_compiled(path)
    compiled = _compile(_read(graph.source, spec), settings, spec, sizes or {})
    path = _store(name, compiled)
    if path is None:
        return Compiled(compiled, None, graph)
    # The one that was compiled holds its float32 weights in memory that only its end gives back.
    del compiled
    return _import(path, settings, graph)


class Session(BaseSession):
    """A compiled graph with one request for each of its streams.

    Raises
    ------
    BackendUnavailable
        When OpenVINO compiled for another precision than was asked for.
    BundleError
        When its inputs and outputs are not those of ``spec``.
    """

    def __init__(self, compiled: Compiled, spec: GraphSpec, run: RunOptions | None = None) -> None:
        self._run = run = run or RunOptions()
        self.spec = spec
        self._compiled, self._file, self._graph = compiled
        self._fixed: dict[tuple[object, ...], Session] = {}
        self._fixing = Lock()
        _check_precision(self._compiled, run.precision)
        _check_ports(self._compiled, _for_one(spec))
        self._inputs = _places(self._compiled.inputs, spec.inputs)
        self._outputs = _places(self._compiled.outputs, spec.outputs)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(run.streams):
            self._requests.put(self._compiled.create_infer_request())
        streams = f", {run.streams} streams" if run.streams > 1 else ""
        self.description = f"openvino {version()} CPU, {run.precision}, {thread_count(run)} threads{streams}"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once, or once for each item of a batch; see `segship.backends.session.Session.run`."""
        # Taken before looking whether the session is closed: closing puts another, empty queue in its place.
        requests, file = self._requests, self._file
        if self._compiled is None:
            raise closed()
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        items = _batch_size(inputs, self.spec)
        if items == 1:
            return self._run_one(inputs, requests, file)
        batched = {tensor.name for tensor in self.spec.inputs if tensor.shape[:1] == (BATCH_AXIS,)}
        answers = [
            self._run_one(
                {name: array[[item]] if name in batched else array for name, array in inputs.items()}, requests, file
            )
            for item in range(items)
        ]
        return {
            tensor.name: np.concatenate([answer[tensor.name] for answer in answers])
            if tensor.shape[:1] == (BATCH_AXIS,)
            else answers[0][tensor.name]
            for tensor in self.spec.outputs
        }

    def fixed(self, sizes: Sizes) -> Session:
        """Return a session that was compiled for some sizes; see `segship.backends.session.Session.fixed`."""
        with self._fixing:
            if self._compiled is None:
                raise closed()
            key = tuple(sorted(sizes.items()))
            if key not in self._fixed:
                compiled = compile(self._graph, self.spec, self._run, sizes)
                self._fixed[key] = Session(compiled, _with_sizes(self.spec, sizes), self._run)
            return self._fixed[key]

    def close(self) -> None:
        """Release the graph and its weights, once calls that other threads are in have ended."""
        with self._fixing:
            for session in self._fixed.values():
                session.close()
            self._compiled = None
        self._requests = SimpleQueue()
        self._file = None

    def _run_one(
        self, inputs: Mapping[str, NDArray[Any]], requests: SimpleQueue[Any], _file: MappedFile | None
    ) -> dict[str, NDArray[Any]]:
        """Run once; ``_file`` is the memory of the weights, which must outlive the call."""
        # A caller waits here while all streams are at work.
        request = requests.get()
        try:
            arrays = {place: _readable(inputs[name]) for name, place in self._inputs.items()}
            answers = request.infer(arrays, share_inputs=True, share_outputs=True)
            # Copied, since the next call writes over them.
            return {name: np.array(answers[place]) for name, place in self._outputs.items()}
        except RuntimeError as error:
            message = f"graph {self.spec.name!r} failed in {self.description}: {first_line(error)}"
            raise BackendUnavailable(message, code="run_failed") from error
        finally:
            requests.put(request)


def _store(name: CompiledName, compiled: Any) -> Path | None:
    return store_compiled(name, lambda stream: compiled.export_model(_ExportStream(stream)))


def _import(path: Path, settings: dict[str, str], graph: Graph) -> Compiled:
    file = MappedFile(path)
    compiled = _core().import_model(openvino.Tensor(file.array, shared_memory=True), "CPU", settings)
    file.forget()
    return Compiled(compiled, file, graph)


class _ExportStream(io.BytesIO):
    """Passes pieces of a compiled graph on to a file; OpenVINO asks for this very type, which would hold them all."""

    def __init__(self, target: BinaryIO) -> None:
        super().__init__()
        self._target = target

    def write(self, data: Any) -> int:
        return self._target.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        # OpenVINO asks where it is, and comes back to fill in the header.
        return self._target.seek(offset, whence)

    def flush(self) -> None:
        self._target.flush()


def _settings(run: RunOptions) -> dict[str, str]:
    """Return the plugin's settings for some options, which are refused where they cannot be had."""
    threads = thread_count(run)
    refuse_options(run, "openvino")
    if run.device != "cpu":
        message = f"device {run.device!r} is unknown to the openvino backend; accepted is cpu"
        raise BackendUnavailable(message, code="unknown_device")
    if run.streams > threads:
        message = f"{run.streams} streams cannot share {threads} threads; ask for as many threads or more"
        raise BackendUnavailable(message, code="bad_streams")
    here = precisions()
    if run.precision not in here:
        known = "this chip does not have it" if run.precision in PRECISIONS else "openvino does not know it"
        message = f"precision {run.precision!r} was asked for and {known}; it has {', '.join(here)}"
        raise BackendUnavailable(message, code="precision_unavailable")
    return {
        "INFERENCE_PRECISION_HINT": PRECISIONS[run.precision][0],
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": str(run.streams),
        "ENABLE_CPU_PINNING": "NO",
        # Activations are never quantized behind the caller's back.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }


def _compiled_name(digest: str, precision: str, sizes: Sizes) -> CompiledName:
    # Threads and streams are not part of it: a compiled graph answers the same bytes under any.
    machine = describe_machine()
    settings = {
        "openvino": str(openvino.__version__),
        "machine": f"{platform.machine()} {machine.cpu} {machine.cpu_family} {machine.cpu_model}",
        "features": " ".join(machine.features),
        "batch": "1",
    }
    if not sizes:
        return CompiledName(digest, f"openvino-{precision}", settings)
    # A kind of its own, so that both files of a graph are kept.
    return CompiledName(digest, f"openvino-{precision}-fixed", {**settings, "sizes": str(sorted(sizes.items()))})


def _read(graph: bytes | Path, spec: GraphSpec) -> Any:
    source: Any = io.BytesIO(graph) if isinstance(graph, bytes) else str(graph)
    try:
        model = _core().read_model(source)
    except RuntimeError as error:
        raise _rejected(spec, error) from error
    _check_ports(model, spec)
    return model


def _compile(model: Any, settings: dict[str, str], spec: GraphSpec, sizes: Sizes) -> Any:
    known = {BATCH_AXIS: 1, **sizes}

    def dimension(size: int | str) -> Any:
        found = known.get(size, -1) if isinstance(size, str) else size
        return openvino.Dimension(*found) if isinstance(found, tuple) else found

    shapes = {tensor.name: openvino.PartialShape([dimension(size) for size in tensor.shape]) for tensor in spec.inputs}
    try:
        model.reshape({name: shapes[name] for name in _places(model.inputs, spec.inputs)})
        return _core().compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise _rejected(spec, error) from error


def _rejected(spec: GraphSpec, error: RuntimeError) -> BundleError:
    message = f"OpenVINO {version()} does not load graph {spec.name!r}: {first_line(error)}"
    return BundleError(message, code="graph_rejected")


def _check_ports(model: Any, spec: GraphSpec) -> None:
    """Check inputs and outputs against a contract; OpenVINO leaves out inputs that nothing in a graph uses."""
    inputs, outputs = _tensors(model.inputs, spec.inputs), _tensors(model.outputs, spec.outputs)
    found = {tensor.name for tensor in inputs}
    known = found <= {tensor.name for tensor in spec.inputs}
    wanted = tuple(tensor for tensor in spec.inputs if tensor.name in found) if known else spec.inputs
    check_interface(inputs, outputs, GraphSpec(spec.name, wanted, spec.outputs))


def _check_precision(compiled: Any, precision: str) -> None:
    found = compiled.get_property("INFERENCE_PRECISION_HINT")
    if found != getattr(openvino.Type, PRECISIONS[precision][0]):
        message = f"precision {precision!r} was asked for and OpenVINO compiled for {found}; ask for another"
        raise BackendUnavailable(message, code="precision_unavailable")


def _for_one(spec: GraphSpec) -> GraphSpec:
    """Return the contract with one item in a batch, as graphs are compiled."""
    return _with_sizes(spec, {BATCH_AXIS: 1})


def _with_sizes(spec: GraphSpec, sizes: Sizes) -> GraphSpec:
    """Return the contract with the axes that have one size."""
    known = {axis: size for axis, size in sizes.items() if isinstance(size, int)}
    inputs, outputs = (
        tuple(
            TensorSpec(
                tensor.name,
                tensor.dtype,
                tuple(known.get(size, size) if isinstance(size, str) else size for size in tensor.shape),
            )
            for tensor in part
        )
        for part in (spec.inputs, spec.outputs)
    )
    return GraphSpec(spec.name, inputs, outputs)


def _batch_size(inputs: Mapping[str, NDArray[Any]], spec: GraphSpec) -> int:
    for tensor in spec.inputs:
        if tensor.shape[:1] == (BATCH_AXIS,):
            return len(inputs[tensor.name])
    return 1


def _readable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array whose memory OpenVINO takes: contiguous, and not marked as read-only."""
    whole = np.ascontiguousarray(array)
    return whole if whole.flags.writeable else whole.copy()


def _tensors(ports: Sequence[Any], wanted: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(_port_name(port, wanted), _dtype(port), _sizes(port.get_partial_shape())) for port in ports)


def _port_name(port: Any, wanted: Sequence[TensorSpec]) -> str:
    """Return the contract's name for a port; tensors that optimising made one have several."""
    names = sorted(port.get_names())
    known = {tensor.name for tensor in wanted}
    return next((name for name in names if name in known), names[0] if names else "?")


def _places(ports: Sequence[Any], wanted: Sequence[TensorSpec]) -> dict[str, int]:
    return {_port_name(port, wanted): place for place, port in enumerate(ports)}


def _dtype(port: Any) -> str:
    return str(port.get_element_type().to_dtype().name)


def _sizes(shape: Any) -> tuple[int | str, ...]:
    return tuple(size.get_length() if size.is_static else "?" for size in shape)
