# SPDX-License-Identifier: Apache-2.0
"""Run graphs in ONNX Runtime: the default backend.

Settings follow what the project promises: the same bundle, version, processor and thread count give the same bytes.
So execution is sequential, nothing is tuned by timing, and on CUDA float32 is not shortened to TF32. Only the provider
that was asked for is used; where ONNX Runtime would quietly take the CPU instead, this is an error. Custom operators
are never registered.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from segship.backends.profiles import PROFILES, profiles_of, shapes_of
from segship.backends.session import IDENTITY, Graph, RunOptions, closed, first_line, refuse_options, thread_count
from segship.backends.session import Session as BaseSession
from segship.errors import BackendUnavailable, BundleError
from segship.files import cache_folder
from segship.spec import GraphSpec, TensorSpec, check_arrays, check_interface

# The arena keeps freed memory for the next call: faster, and the process stays as large as its largest call.
_ENABLE_CPU_MEM_ARENA = True
# A memory pattern plans one block for a whole run; without it vit_b peaks 0.4 GB lower and runs as fast.
_ENABLE_MEM_PATTERN = False
_LOG_ERRORS, _LOG_FATAL = 3, 4
_CUDA = "CUDAExecutionProvider"
_CANN = "CANNExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_PROVIDERS = {"cuda": _CUDA, "npu": _CANN, "tensorrt": _TENSORRT}
_SETTINGS = {
    # TF32 would miss the bar of fp32; EXHAUSTIVE, the default search, picks convolutions by timing them.
    _CUDA: {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
    # By itself CANN computes in float16.
    _CANN: {"precision_mode": "must_keep_origin_dtype"},
    # Precision is the graph's. Engines take minutes to build and are kept; see `_tensorrt_settings`.
    _TENSORRT: {"trt_fp16_enable": "0", "trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"},
}
_INSTEAD = {
    "cuda": "an NVIDIA driver run: pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
    "npu": "CANN run: pip uninstall -y onnxruntime && pip install onnxruntime-cann",
    "tensorrt": "an NVIDIA driver run: pip uninstall -y onnxruntime && pip install onnxruntime-gpu tensorrt",
}

# What CANN's build says, with the source file before it, where it has no driver.
_NO_PROVIDER = re.compile(r"create \w+ ?ExecutionProvider fail")
_ELEMENT_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}


PROBE = IDENTITY


def version() -> str:
    """Return the version of ONNX Runtime."""
    return str(onnxruntime.__version__)


def devices() -> dict[str, str]:
    """Return the devices that this build has a provider for."""
    here = providers()
    return {"cpu": "", **{device: "" for device, provider in _PROVIDERS.items() if provider in here}}


def providers() -> tuple[str, ...]:
    """Return what this build has; not all of it need start here."""
    return tuple(onnxruntime.get_available_providers())


def precisions() -> tuple[str, ...]:
    """Return the one that may be asked for: the arithmetic itself is the graph's."""
    return ("fp32",)


def beside(precision: str) -> str:
    """Return how float32 parts of a graph in a lower precision are run: as they are."""
    return "fp32"


def compile(graph: Graph, spec: GraphSpec, run: RunOptions) -> bytes | Path:
    """Return the graph as it is: ONNX Runtime loads ONNX files. Bytes that were checked stay checked."""
    return graph.read()


class Session(BaseSession):
    """A graph in ONNX Runtime.

    Parameters
    ----------
    graph
        The bytes of a graph that holds its own weights, or the path of any graph, which ONNX Runtime reads itself.
    spec
        The contract; what the graph declares is checked against it.
    run
        ``device`` ``cpu``, ``cuda``, ``npu`` or ``tensorrt``, the last three also with a number, such as ``cuda:1``;
        ``precision`` only ``fp32``.
    once
        For a run or two: weights are not laid out anew, which makes runs faster and takes their memory a second time.

    Raises
    ------
    BackendUnavailable
        When the device or precision cannot be had.
    BundleError
        When ONNX Runtime does not load the graph, or its inputs and outputs are not those of ``spec``.
    """

    def __init__(
        self,
        graph: bytes | str | os.PathLike[str],
        spec: GraphSpec,
        run: RunOptions | None = None,
        *,
        once: bool = False,
    ) -> None:
        run = run or RunOptions()
        self.spec = spec
        threads = thread_count(run)
        refuse_options(run, "onnxruntime")
        wanted = _wanted_providers(run, spec)
        provider = wanted[0][0]
        choices = _choices(threads, once=once)
        self._session: onnxruntime.InferenceSession | None = _load(graph, spec, choices, wanted, run.device)
        used = self._session.get_providers()
        # Where the first does not start, CANN's build takes the CPU and says so here alone.
        if provider != used[0]:
            raise _unavailable(run.device, f"ONNX Runtime could not start {provider} and uses {used}")
        check_interface(_tensors(self._session.get_inputs()), _tensors(self._session.get_outputs()), spec)
        self._outputs = [tensor.name for tensor in spec.outputs]
        # What TensorRT does not take, another computes; that is said.
        told = f"{provider}, else {', '.join(used[1:])}" if provider == _TENSORRT else provider
        self.description = f"onnxruntime {version()} {told}, {threads} threads"
        self.on_gpu = provider in (_CUDA, _TENSORRT)
        self._runs: dict[int, onnxruntime.RunOptions] = {}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `segship.backends.session.Session.run`."""
        if self._session is None:
            raise closed()
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        settings, thread = _quiet(), threading.get_ident()
        self._runs[thread] = settings
        try:
            answers = self._session.run(self._outputs, dict(inputs), settings)
        # The runtime's exceptions share no narrower base.
        except Exception as error:
            if settings.terminate:
                raise BackendUnavailable(f"graph {self.spec.name!r} was stopped", code="stopped") from None
            message = f"graph {self.spec.name!r} failed in {self.description}: {first_line(error)}"
            raise BackendUnavailable(message, code="run_failed") from error
        finally:
            del self._runs[thread]
        return dict(zip(self._outputs, answers, strict=True))

    def stop(self, thread: int) -> None:
        """End the run that a thread is at, between two operators; see `segship.backends.session.Session.stop`."""
        if (settings := self._runs.get(thread)) is not None:
            settings.terminate = True

    def close(self) -> None:
        """Release the graph and its weights."""
        self._session = None


def _quiet() -> onnxruntime.RunOptions:
    """Return the settings of a run: what fails is raised, and need not be printed as well."""
    settings = onnxruntime.RunOptions()
    settings.log_severity_level = _LOG_FATAL
    return settings


def _choices(threads: int, *, once: bool) -> onnxruntime.SessionOptions:
    choices = onnxruntime.SessionOptions()
    choices.intra_op_num_threads = threads
    choices.inter_op_num_threads = 1
    choices.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    choices.log_severity_level = _LOG_ERRORS
    choices.enable_cpu_mem_arena = _ENABLE_CPU_MEM_ARENA
    choices.enable_mem_pattern = _ENABLE_MEM_PATTERN
    choices.use_deterministic_compute = True
    # Idle threads spin for a while after a run, and would take the cores from the next graph of the same model.
    choices.add_session_config_entry("session.force_spinning_stop", "1")
    choices.add_session_config_entry("session.disable_prepacking", "1" if once else "0")
    return choices


def _load(
    graph: bytes | str | os.PathLike[str],
    spec: GraphSpec,
    choices: onnxruntime.SessionOptions,
    wanted: list[tuple[str, dict[str, str]]],
    device: str,
) -> onnxruntime.InferenceSession:
    source = graph if isinstance(graph, bytes) else os.fspath(graph)
    try:
        session = onnxruntime.InferenceSession(source, sess_options=choices, providers=wanted, enable_fallback=0)
    # The runtime's exceptions share no narrower base.
    except Exception as error:
        if _NO_PROVIDER.search(str(error)):
            raise _unavailable(device, f"ONNX Runtime could not start {wanted[0][0]}: {first_line(error)}") from error
        message = f"ONNX Runtime {version()} does not load graph {spec.name!r}: {first_line(error)}"
        raise BundleError(message, code="graph_rejected") from error
    session.disable_fallback()
    # The wrapper keeps the bytes for the fallback that was just disabled: 0.36 GB of them with vit_b.
    session._model_bytes = None
    return session


def _wanted_providers(run: RunOptions, spec: GraphSpec) -> list[tuple[str, dict[str, str]]]:
    """Return the execution provider for a device and its settings, and of TensorRT who takes what it leaves."""
    if run.precision not in precisions():
        message = (
            f"precision {run.precision!r} was asked for, and onnxruntime computes in the precision of the graph; "
            "use fp32, or the backend openvino, which has others on many chips"
        )
        raise BackendUnavailable(message, code="precision_unavailable")
    if run.device == "cpu":
        return [("CPUExecutionProvider", {})]
    named = re.fullmatch(r"(cuda|npu|tensorrt)(?::(\d{1,3}))?", run.device, re.ASCII)
    if named is None:
        accepted = "cpu, cuda, cuda:N, npu, npu:N, tensorrt, tensorrt:N"
        message = f"device {run.device!r} is unknown to the onnxruntime backend; accepted are {accepted}"
        raise BackendUnavailable(message, code="unknown_device")
    provider, number = _PROVIDERS[named[1]], named[2] or "0"
    if provider not in providers():
        raise _unavailable(run.device, f"this ONNX Runtime has no {provider}")
    found = [(provider, {"device_id": number, **_SETTINGS[provider]})]
    if provider == _TENSORRT:
        found[0][1].update(_tensorrt_settings(spec))
        found.append((_CUDA, {"device_id": number, **_SETTINGS[_CUDA]}))
    return found


def _tensorrt_settings(spec: GraphSpec) -> dict[str, str]:
    """Return where engines are kept, and the ranges that one is built for: the widest of `PROFILES` in each axis."""
    settings = {"trt_engine_cache_path": str(cache_folder() / "compiled" / "tensorrt")}
    if spec.name not in PROFILES:
        return settings
    profiles = profiles_of(spec)
    widest = {
        axis: (
            min(profile[axis][0] for profile in profiles),
            profiles[0][axis][1],
            max(profile[axis][2] for profile in profiles),
        )
        for axis in profiles[0]
    }
    for place, which in enumerate(("min", "opt", "max")):
        shapes = {name: three[place] for name, three in shapes_of(spec, widest).items()}
        settings[f"trt_profile_{which}_shapes"] = ",".join(
            f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items()
        )
    return settings


def _unavailable(device: str, reason: str) -> BackendUnavailable:
    message = (
        f"device {device!r} cannot be had: {reason}; available here are {', '.join(providers())}; on a machine with "
        f"{_INSTEAD[device.split(':')[0]]}"
    )
    return BackendUnavailable(message, code="device_unavailable")


def _tensors(arguments: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(argument.name, _dtype(argument.type), _sizes(argument.shape)) for argument in arguments)


def _dtype(element_type: str) -> str:
    # tensor(float) and tensor(double) are C's words; all others, such as tensor(int64), are numpy's.
    return _ELEMENT_TYPES.get(element_type, element_type.removeprefix("tensor(").removesuffix(")"))


def _sizes(shape: Sequence[int | str | None]) -> tuple[int | str, ...]:
    return tuple("?" if size is None else size for size in shape)
