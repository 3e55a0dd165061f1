# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's graphs on an Ascend NPU, as the compiled models of a kit that `segship convert --target ascend` wrote.

A graph is compiled on the device's own machine (`docs/ascend.md`), so nothing is compiled here: ``SEGSHIP_ASCEND_KIT``
names the kit's folder, and of it those models are taken that were made from the very graph that is asked for, by its
digest. They take fixed sizes, which `segship.backends.fixed` fills up. Only ``ais_bench`` is called, whose package
``aclruntime`` holds the device. There was never an NPU here: this module is tested with a double of ``InferSession``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segship.backends import BACKENDS, installed_version
from segship.backends.compiled import graph_digest
from segship.backends.fixed import Call, Form, run_fixed
from segship.backends.session import IDENTITY, Graph, RunOptions, closed, first_line, refuse_options, thread_count
from segship.backends.session import Session as BaseSession
from segship.errors import BackendUnavailable, BundleError
from segship.spec import GraphSpec, check_arrays

KIT_VARIABLE = "SEGSHIP_ASCEND_KIT"
"""Names the folder of the kit whose compiled models are run."""
PROBE = IDENTITY


def version() -> str:
    """Return the version of ais_bench."""
    return installed_version("ascend") or "unknown"


def devices() -> dict[str, str]:
    """Return what may be asked for; whether an NPU starts shows only with a compiled model."""
    return {"npu": ""}


def precisions() -> tuple[str, ...]:
    """Return those that models are compiled in: float16 arithmetic, and integers where they were calibrated."""
    return ("fp16", "int8")


def beside(precision: str) -> str:
    """Return the precision itself, so that what no model is compiled in is refused and not taken for another."""
    return precision


class Kit(NamedTuple):
    """What a kit holds of one graph: of each file's name, what ``kit.json`` says of it."""

    folder: Path
    soc: str
    entries: dict[str, Mapping[str, Any]]


class Model(NamedTuple):
    """A compiled model: its file, the forms of its calls, and how ``InferSession`` is told them."""

    path: Path
    forms: tuple[Form, ...]
    mode: str


class Compiled(NamedTuple):
    """What a kit holds of a graph."""

    models: tuple[Model, ...]
    soc: str


def compile(graph: Graph, spec: GraphSpec, run: RunOptions) -> Compiled:
    """Find the compiled models of a graph in the kit.

    Raises
    ------
    BackendUnavailable
        ``backend_missing`` without ais_bench or aclruntime; ``kit_missing`` when no kit is named or it is of another
        graph; ``kit_not_compiled`` when it was not compiled; what cannot be had of ``run``.
    """
    _infer_session()
    _device_id(run.device)
    thread_count(run)
    refuse_options(run, "ascend")
    if run.precision not in precisions():
        message = f"precision {run.precision!r} was asked for, and models for Ascend are compiled in"
        raise BackendUnavailable(f"{message} {' or '.join(precisions())}; ask for one of them", code=_NO_PRECISION)
    kit = open_kit(graph, spec)
    models = tuple(_model(kit.folder, name, entry, run.precision) for name, entry in kit.entries.items())
    return Compiled(models, kit.soc)


_NO_PRECISION = "precision_unavailable"


class Session(BaseSession):
    """The compiled models of a graph, one ``InferSession`` each.

    Raises
    ------
    BackendUnavailable
        ``device_unavailable`` when the NPU or the model does not start.
    BundleError
        ``graph_interface`` when the inputs of a model are not those of ``spec``.
    """

    def __init__(self, compiled: Compiled, spec: GraphSpec, run: RunOptions | None = None) -> None:
        run = run or RunOptions(device="npu", precision="fp16")
        self.spec = spec
        self._lock = Lock()
        self._forms = [form for model in compiled.models for form in model.forms]
        self._sessions = [(model, _open(model, _device_id(run.device), spec)) for model in compiled.models]
        self.description = f"ais_bench {version()} {run.device}, {compiled.soc}, {run.precision}"

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph in as many calls as its forms need; see `segship.backends.session.Session.run`."""
        if not self._sessions:
            raise closed()
        check_arrays(inputs, self.spec.inputs, self.spec.name)
        # A session of ais_bench holds the buffers of its one call.
        with self._lock:
            return run_fixed(inputs, self.spec, self._forms, self._answer)

    def close(self) -> None:
        """Give the models back to the device."""
        with self._lock:
            for _, session in self._sessions:
                session.free_resource()
            self._sessions = []

    def _answer(self, call: Call) -> list[NDArray[Any]]:
        model, session = next(entry for entry in self._sessions if call.form in entry[0].forms)
        feeds = [call.inputs[tensor.name] for tensor in self.spec.inputs]
        try:
            answers = session.infer(feeds, mode=model.mode)
        # aclruntime raises RuntimeError, and ais_bench whatever it meets.
        except Exception as error:
            message = f"graph {self.spec.name!r} failed in {self.description}: {first_line(error)}"
            raise BackendUnavailable(message, code="run_failed") from error
        # Their names are the compiler's own, so they are taken in order; their memory is the session's.
        return [np.array(array, tensor.dtype) for array, tensor in zip(answers, self.spec.outputs, strict=True)]


def _infer_session() -> Any:
    """Return the class of ais_bench, whose makers' wheels no registry has; so the module itself needs none of them."""
    try:
        from ais_bench.infer.interface import InferSession
    except ImportError as error:
        message = (
            f"backend 'ascend' needs the packages ais_bench and aclruntime ({error}); get the wheels of Ascend/tools"
        )
        command = BACKENDS["ascend"].command
        raise BackendUnavailable(f"{message} for this CANN, then run: {command}", code="backend_missing") from error
    return InferSession


def _device_id(device: str) -> int:
    found = re.fullmatch(r"npu(?::(\d{1,3}))?", device, re.ASCII)
    if found is None:
        message = f"device {device!r} is unknown to the ascend backend; accepted are npu, npu:N"
        raise BackendUnavailable(message, code="unknown_device")
    return int(found[1] or 0)


def open_kit(graph: Graph, spec: GraphSpec) -> Kit:
    """Read the kit that ``SEGSHIP_ASCEND_KIT`` names, as far as it was made from a graph.

    Raises
    ------
    BackendUnavailable
        ``kit_missing`` when none is named, it cannot be read or is of other graphs.
    """
    folder, document = _read_kit()
    digest = graph.digest or graph_digest(graph.source)
    found = {name: entry for name, entry in document["graphs"].items() if entry["made_from"] == digest}
    if not found:
        message = f"the kit {folder} was made of other graphs than {spec.name!r}, whose digest is {digest}"
        raise BackendUnavailable(
            f"{message}; convert this bundle, or name its kit in {KIT_VARIABLE}", code="kit_missing"
        )
    return Kit(folder, document["soc"], found)


def _read_kit() -> tuple[Path, dict[str, Any]]:
    named = os.environ.get(KIT_VARIABLE)
    if not named:
        message = f"{KIT_VARIABLE} names no kit; write one with `segship convert`, target ascend, compile it on the"
        raise BackendUnavailable(f"{message} device and set {KIT_VARIABLE} to its folder", code="kit_missing")
    path = Path(named) / "kit.json"
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        return Path(named), {"soc": document["soc"], "graphs": document["graphs"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path} cannot be read as a kit ({type(error).__name__}: {error}); set {KIT_VARIABLE} to the folder"
        raise BackendUnavailable(f"{message} that `segship convert` wrote", code="kit_missing") from error


def _model(kit: Path, name: str, entry: Mapping[str, Any], precision: str) -> Model:
    path = kit / "om" / f"{name}_{precision}.om"
    if not path.is_file():
        message = f"{path} is not there: the kit was not compiled in {precision}; run scripts/20_compile.sh in the kit"
        raise BackendUnavailable(f"{message}, on the device", code="kit_not_compiled")
    return Model(path, tuple(entry["forms"]), "dymdims" if len(entry["forms"]) > 1 else "static")


def _open(model: Model, device_id: int, spec: GraphSpec) -> Any:
    try:
        session = _infer_session()(device_id, str(model.path))
    except Exception as error:
        message = f"{model.path.name} does not start on npu:{device_id}: {first_line(error)}; run scripts/00_check.sh"
        raise BackendUnavailable(f"{message} in the kit", code="device_unavailable") from error
    found = [str(port.name) for port in session.get_inputs()]
    wanted = [tensor.name for tensor in spec.inputs]
    if found != wanted:
        message = (
            f"the inputs of {model.path.name} are {found}; expected {wanted}, in this order; compile the kit again"
        )
        raise BundleError(message, code="graph_interface")
    return session
