# SPDX-License-Identifier: Apache-2.0
"""Run graphs in MNN on the CPU, in float32: what phones and embedded boards run, and a file format for them.

Habits of MNN (3.6) that are kept from the user: its converter says that it succeeded whatever happens, prints, and by
default approximates GELU, so it runs in a process of its own, without that, and what counts is the file. The package's
own wrappers of the converter install packages and send events, so nothing of ``MNN.tools`` is ever imported. MNN prints
to standard output when it is imported and loads (`quiet`), takes the CPU where another device was asked for, ignores
precisions that it does not have, and ends the process on arrays that do not fit: all of that is refused before.

Only graphs of the row in `segship.backends.BACKENDS` are run: others were found to answer wrongly once the number of
objects grew. Sessions (``Interpreter``) rather than modules: as fast, and calls do not hold Python's lock.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.backends.compiled import CompiledName, find_compiled, graph_digest, remove_compiled, store_compiled
from segship.backends.session import IDENTITY, Graph, RunOptions, closed, refuse_options, thread_count
from segship.backends.session import Session as BaseSession
from segship.errors import BackendUnavailable, BundleError, OutputError
from segship.files import write_file
from segship.spec import GraphSpec, check_arrays

EXACT_FLAGS = ("--useGeluApproximation", "0")
"""Of the converter; with its defaults the masks of tiny miss the bar of fp32."""

PROBE = IDENTITY

# How far 3 x 3 convolutions may be shortened (Winograd), of 0 to 3: a mode of hints and its value. With MNN's own 3
# single values of an embedding are wrong by 5e-4 to 1.4e-3 of its scale; with 1 by 1e-6, for a tenth more time.
_WINOGRAD_HINT = (3, 1)

_LEAST_FREE = 1 << 16

_STANDARD_OUTPUT = 1
_STANDARD_OUTPUT_LOCK = Lock()

# Its whole argument list is one argument, the program's name included.
_CONVERT = """
import sys
import _tools
if not hasattr(_tools, "mnnconvert"):
    sys.exit(f"{_tools.__file__} is not the converter of MNN")
_tools.mnnconvert(["mnnconvert", *sys.argv[1:]])
"""


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what MNN prints from C out of standard output, which may be a pipe with a document of ours."""
    with _STANDARD_OUTPUT_LOCK:
        try:
            kept = os.dup(_STANDARD_OUTPUT)
        except OSError:
            # A service without standard output.
            yield
            return
        _flush_c()
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), _STANDARD_OUTPUT)
        try:
            yield
        finally:
            _flush_c()
            os.dup2(kept, _STANDARD_OUTPUT)
            os.close(kept)


def _flush_c() -> None:
    """Write out what C's own buffer holds, which Python does not know."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None if os.name == "posix" else "ucrtbase").fflush(None)


with quiet():
    import MNN


def version() -> str:
    """Return the version of MNN."""
    return str(MNN.version())


def devices() -> dict[str, str]:
    """Return the one device: where another is asked for, MNN takes the CPU all the same."""
    return {"cpu": ""}


def precisions() -> tuple[str, ...]:
    """Return the one that MNN computes in on this kind of chip, whatever it is told."""
    return ("fp32",)


def beside(precision: str) -> str:
    """Refuse artifacts in lower precisions, which were never compared in MNN."""
    message = f"precision {precision!r} was asked for, and the mnn backend runs float32 graphs alone; ask for fp32"
    raise BackendUnavailable(message, code="precision_unavailable")


def compile(graph: Graph, spec: GraphSpec, run: RunOptions) -> Any:
    """Take a graph that was converted before from the cache, or convert it and put it there.

    Raises
    ------
    BackendUnavailable
        When the device, precision or number of streams cannot be had.
    BundleError
        ``graph_rejected`` when MNN does not convert or load the graph.
    """
    _settings(run)
    if any(tensor.dtype != "float32" for tensor in (*spec.inputs, *spec.outputs)):
        raise _rejected(spec.name, "it runs graphs of float32 tensors alone")
    source = graph.read()
    settings = {"mnn": version(), "flags": " ".join(EXACT_FLAGS), "weights": "fp32"}
    name = CompiledName(graph.digest or graph_digest(source), "mnn-fp32", settings)
    kept = find_compiled(name)
    if kept is not None:
        try:
            return load_file(kept, spec.name)
        except BundleError:
            # Damaged since it was loaded for the first time.
            remove_compiled(kept)
    with TemporaryDirectory(prefix="segship-mnn-") as folder:
        made = Path(folder) / "graph.mnn"
        convert_graph(source, made, spec.name)
        loaded = load_file(made, spec.name)
        with open(made, "rb") as stream:
            store_compiled(name, lambda target: shutil.copyfileobj(stream, target))
    return loaded


def convert_graph(graph: bytes | Path, target: Path, name: str, flags: Sequence[str] = ()) -> None:
    """Convert an ONNX graph into a file that is not there yet, in a process of its own.

    Parameters
    ----------
    graph
        The bytes of a graph that holds its own weights, or the path of any graph.
    target
        The file to write.
    name
        What errors call the graph.
    flags
        Of the converter, besides `EXACT_FLAGS`.

    Raises
    ------
    BundleError
        ``graph_rejected`` when there is no file afterwards; the message has the converter's last words.
    OutputError
        ``disk_full``.
    """
    with TemporaryDirectory(prefix="segship-mnn-") as folder:
        source = Path(folder) / "graph.onnx" if isinstance(graph, bytes) else graph
        if isinstance(graph, bytes):
            write_file(source, graph)
        files = ("-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target), "--bizCode", "segship")
        done = subprocess.run(
            # -P: a file _tools.py in the current folder is no converter.
            [sys.executable, "-P", "-c", _CONVERT, *files, *EXACT_FLAGS, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    # Whatever happened, the converter says True and ends well; a file that found no room is cut short.
    if shutil.disk_usage(target.parent).free < _LEAST_FREE:
        raise OutputError(f"cannot write {target}: no space is left on the device; free some space", code="disk_full")
    if not target.is_file():
        said = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
        raise _rejected(name, f"its converter wrote no file and ended with: {said[:300]}")


def load_file(path: Path, name: str) -> Any:
    """Return the network in a file of MNN's, of which sessions are made; ``name`` is what errors call it."""
    try:
        with quiet():
            return MNN.Interpreter(str(path))
    # MNN raises this very class.
    except Exception as error:
        raise _rejected(name, "the file is damaged, or of another version") from error


Answer = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def open_module(path: Path, spec: GraphSpec) -> Answer:
    """Open a file as a module, for graphs whose sizes depend on numbers, of which no session can be made.

    The answer to inputs by name are outputs by name, both checked against ``spec``; callers wait for each other.

    Raises
    ------
    BundleError
        ``graph_rejected`` when the file is damaged, or has other tensors.
    """
    names = ([tensor.name for tensor in part] for part in (spec.inputs, spec.outputs))
    try:
        with quiet():
            runtime = MNN.nn.create_runtime_manager((_settings(RunOptions()),))
            module = MNN.nn.load_module_from_file(str(path), *names, runtime_manager=runtime)
    except SystemError as error:
        raise _rejected(spec.name, "the file is damaged, or has other tensors") from error

    def answer(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        check_arrays(arrays, spec.inputs, spec.name)
        given = [_variable(arrays[tensor.name]) for tensor in spec.inputs]
        found = [np.array(MNN.expr.convert(one, MNN.expr.NCHW).read()) for one in module.onForward(given)]
        answers = dict(zip((tensor.name for tensor in spec.outputs), found, strict=False))
        check_arrays(answers, spec.outputs, spec.name)
        return answers

    return answer


class Session(BaseSession):
    """A network in MNN; callers wait for each other.

    Without ``exact`` convolutions are shortened as far as MNN does by itself.

    Raises
    ------
    BackendUnavailable
        When the device or precision cannot be had.
    BundleError
        ``graph_interface`` when its inputs and outputs are not those of ``spec``.
    """

    def __init__(self, compiled: Any, spec: GraphSpec, run: RunOptions | None = None, *, exact: bool = True) -> None:
        settings = _settings(run or RunOptions())
        self.spec = spec
        self._network = compiled
        try:
            with quiet():
                if exact:
                    compiled.setSessionHint(*_WINOGRAD_HINT)
                self._session = compiled.createSession(settings)
        # MNN raises this very class.
        except Exception as error:
            raise _rejected(spec.name, "no session can be made of it") from error
        self._inputs = set(compiled.getSessionInputAll(self._session))
        found = (self._inputs, set(compiled.getSessionOutputAll(self._session)))
        wanted = ({tensor.name for tensor in spec.inputs}, {tensor.name for tensor in spec.outputs})
        # The converter leaves out inputs that nothing in a graph uses.
        if not found[0] <= wanted[0] or found[1] != wanted[1]:
            names = f"takes {sorted(found[0])} and gives {sorted(found[1])}"
            message = f"graph {spec.name!r} in MNN {names}; expected {sorted(wanted[0])} and {sorted(wanted[1])}"
            raise BundleError(message, code="graph_interface")
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._lock = Lock()
        self.description = f"mnn {version()} CPU, fp32, {settings['numThread']} threads"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see `segship.backends.session.Session.run`."""
        # Everything that MNN would end the process on, or answer with other shapes.
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        with self._lock:
            if self._network is None:
                raise closed()
            used = {name: np.ascontiguousarray(inputs[name]) for name in self._inputs}
            self._plan({name: array.shape for name, array in used.items()})
            for name, array in used.items():
                self._network.getSessionInput(self._session, name).copyFrom(_tensor(array))
            code = self._network.runSession(self._session)
            answers = {} if code else {tensor.name: self._answer(tensor.name) for tensor in self.spec.outputs}
        if code:
            message = f"graph {self.spec.name!r} failed in {self.description}: code {code}"
            raise BackendUnavailable(message, code="run_failed")
        check_arrays(answers, self.spec.outputs, self.spec.name)
        return answers

    def close(self) -> None:
        """Release the graph and its weights, once a call that another thread is in has ended."""
        with self._lock:
            self._network = self._session = None

    def _plan(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Lay out the memory of a call, where its shapes are not those of the one before."""
        if shapes == self._shapes:
            return
        self._shapes = {}
        for name, shape in shapes.items():
            self._network.resizeTensor(self._network.getSessionInput(self._session, name), shape)
        self._network.resizeSession(self._session)
        self._shapes = shapes

    def _answer(self, name: str) -> NDArray[Any]:
        tensor = self._network.getSessionOutput(self._session, name)
        array = np.empty(tensor.getShape(), np.float32)
        held = _tensor(array)
        tensor.copyToHostTensor(held)
        return np.array(held.getNumpyData()).reshape(array.shape)


def _tensor(array: NDArray[Any]) -> Any:
    """Return a tensor of MNN's with the numbers of an array, which has to live as long."""
    return MNN.Tensor(array.shape, MNN.Halide_Type_Float, array, MNN.Tensor_DimensionType_Caffe)


def _variable(array: NDArray[Any]) -> Any:
    """Return numbers as a module takes them, copied."""
    return MNN.expr.const(array, list(array.shape), MNN.expr.NCHW, MNN.expr.float)


def _settings(run: RunOptions) -> dict[str, Any]:
    """Return a session's settings for some options, which are refused where they cannot be had."""
    threads = thread_count(run)
    refuse_options(run, "mnn")
    if run.device != "cpu":
        message = f"device {run.device!r} is unknown to the mnn backend; accepted is cpu"
        raise BackendUnavailable(message, code="unknown_device")
    if run.precision != "fp32":
        beside(run.precision)
    return {"backend": "CPU", "precision": "high", "memory": "normal", "power": "normal", "numThread": threads}


def _rejected(graph: str, reason: str) -> BundleError:
    return BundleError(f"MNN {version()} does not load graph {graph!r}: {reason}", code="graph_rejected")
