# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's graphs in MindSpore Lite on the CPU, in float32, as the models that its converter makes of a kit.

The graphs of the kit for Ascend have fixed sizes, which is how Lite takes a decoder: with free axes it converts one and
does not run it. ``converter_lite`` makes ``mindir/NAME.mindir`` of ``graphs/NAME.onnx`` (`docs/targets.md`), and
``SEGSHIP_ASCEND_KIT`` names the kit here as for `segship.backends.ascend`.

Habits of Lite (2.0) that are kept from the user: a tensor points to the memory of the array that it is given, whatever
its order, and answers point to memory of the next call. Nothing is converted here: a process that converted and ran
crashes when it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import mindspore_lite
import numpy as np
from numpy.typing import NDArray

from segship.backends.ascend import open_kit
from segship.backends.fixed import Call, Form, fixed_spec, run_fixed
from segship.backends.session import IDENTITY, Graph, RunOptions, closed, first_line, refuse_options, thread_count
from segship.backends.session import Session as BaseSession
from segship.errors import BackendUnavailable, BundleError
from segship.spec import GraphSpec, check_arrays

PROBE = IDENTITY


def version() -> str:
    """Return the version of MindSpore Lite."""
    return str(mindspore_lite.__version__)


def devices() -> dict[str, str]:
    """Return the one device that was tried."""
    return {"cpu": ""}


def precisions() -> tuple[str, ...]:
    """Return the one that models of a kit compute in on a CPU."""
    return ("fp32",)


def beside(precision: str) -> str:
    """Return the precision itself, so that it is refused and not taken for another."""
    return precision


class Model(NamedTuple):
    """A converted model and the one form of its calls."""

    path: Path
    form: Form


def compile(graph: Graph, spec: GraphSpec, run: RunOptions) -> tuple[Model, ...]:
    """Find the converted models of a graph in the kit.

    Raises
    ------
    BackendUnavailable
        ``kit_missing`` as `segship.backends.ascend.open_kit`; ``kit_not_compiled`` when it was not converted, or has
        gears; what cannot be had of ``run``.
    """
    thread_count(run)
    refuse_options(run, "mindspore_lite")
    if run.device != "cpu":
        message = f"device {run.device!r} was asked for, and the mindspore_lite backend was tried on cpu alone"
        raise BackendUnavailable(f"{message}; accepted is cpu", code="unknown_device")
    if run.precision != "fp32":
        message = f"precision {run.precision!r} is not supported by the mindspore_lite backend; accepted is fp32"
        raise BackendUnavailable(message, code="precision_unavailable")
    kit = open_kit(graph, spec)
    return tuple(_model(kit.folder, name, entry["forms"]) for name, entry in kit.entries.items())


def _model(kit: Path, name: str, forms: list[Form]) -> Model:
    if len(forms) > 1:
        message = f"{name} of the kit {kit} has gears, and MindSpore Lite takes one size; convert it with places"
        raise BackendUnavailable(message, code="kit_not_compiled")
    path = kit / "mindir" / f"{name}.mindir"
    if not path.is_file():
        flags = f"--fmk=ONNX --saveType=MINDIR --modelFile=graphs/{name}.onnx --outputFile=mindir/{name}"
        message = (
            f"{path} is not there: the kit was not converted for MindSpore Lite; run in it: converter_lite {flags}"
        )
        raise BackendUnavailable(message, code="kit_not_compiled")
    return Model(path, forms[0])


class Session(BaseSession):
    """The converted models of a graph, one ``Model`` of Lite each; callers wait for each other.

    Raises
    ------
    BundleError
        ``graph_rejected`` when Lite does not load a model; ``graph_interface`` when its inputs are not those of
        ``spec``.
    """

    def __init__(self, compiled: tuple[Model, ...], spec: GraphSpec, run: RunOptions | None = None) -> None:
        threads = thread_count(run or RunOptions())
        self.spec = spec
        self._lock = Lock()
        self._models = [(model.form, _open(model, spec, threads)) for model in compiled]
        # What the tensors of a model point to has to outlive its call.
        self._lent: dict[str, NDArray[Any]] = {}
        self.description = f"mindspore_lite {version()} cpu, fp32, {threads} threads"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph in as many calls as its forms need; see `segship.backends.session.Session.run`."""
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        with self._lock:
            if not self._models:
                raise closed()
            return run_fixed(inputs, self.spec, [form for form, _ in self._models], self._answer)

    def close(self) -> None:
        """Release the models, once a call that another thread is in has ended."""
        with self._lock:
            self._models, self._lent = [], {}

    def _answer(self, call: Call) -> list[NDArray[Any]]:
        engine = next(engine for form, engine in self._models if form == call.form)
        tensors = engine.get_inputs()
        for tensor in tensors:
            tensor.set_data_from_numpy(call.inputs[tensor.name])
        self._lent = call.inputs
        try:
            answers = {answer.name: answer.get_data_to_numpy() for answer in engine.predict(tensors)}
        except RuntimeError as error:
            message = f"graph {self.spec.name!r} failed in {self.description}: {first_line(error)}"
            raise BackendUnavailable(message, code="run_failed") from error
        return [np.array(answers[tensor.name], tensor.dtype) for tensor in self.spec.outputs]


def _open(model: Model, spec: GraphSpec, threads: int) -> Any:
    context = mindspore_lite.Context()
    context.target = ["cpu"]
    context.cpu.thread_num = threads
    engine = mindspore_lite.Model()
    try:
        engine.build_from_file(str(model.path), mindspore_lite.ModelType.MINDIR, context)
    except RuntimeError as error:
        message = f"MindSpore Lite {version()} does not load {model.path}: {first_line(error)}; convert it again"
        raise BundleError(f"{message}, by the converter of this version", code="graph_rejected") from error
    found = {tensor.name: (tensor.dtype.name.lower(), tuple(tensor.shape)) for tensor in engine.get_inputs()}
    wanted = {tensor.name: (tensor.dtype, tensor.shape) for tensor in fixed_spec(spec, model.form).inputs}
    if found != wanted:
        message = f"the inputs of {model.path.name} are {found}; expected {wanted}; convert the kit again"
        raise BundleError(message, code="graph_interface")
    return engine
