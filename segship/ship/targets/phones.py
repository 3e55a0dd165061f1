# SPDX-License-Identifier: Apache-2.0
"""Files for phones and small boards: ExecuTorch, LiteRT, ncnn and Core ML, made of the network itself.

Their converters start from torch modules, and their engines want every size fixed: one picture, so many objects, so
many places of an object, of which empty ones have the label -2. Each file is run here by its engine and held against
the module; Core ML's is only looked at, since it runs on a Mac alone.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segship.arrays import AnyArray
from segship.backends.fixed import Form, fixed_spec, run_fixed
from segship.backends.session import Session
from segship.bundle.evidence import EXACT, Row, require_passed
from segship.bundle.manifest import task_module
from segship.errors import ExportError, SegshipError, way
from segship.files import make_directory, write_file
from segship.ship.loading import LoadedModel, load_model
from segship.ship.options import ExportOptions
from segship.ship.targets import ConvertOptions, Report, require_options_of
from segship.ship.verify import torch_sessions
from segship.spec import GraphSpec

PLACES = 10
"""Of an object where nobody says it; as the kit for Ascend."""
SEMANTIC_SIZE = (512, 1024)
"""Height and width of a semantic model's pictures where nobody says it."""
GRAPHS = ("image_encoder", "mask_decoder", "semantic")
CLOSE = {"max_abs": 1e-4}
"""What answers may be off, as a part of the largest; besides the bar that every export is held to."""

Run = Callable[[Sequence[AnyArray]], Sequence[AnyArray]]
"""Arrays in the order of the inputs -> arrays in the order of the outputs."""


@dataclass(frozen=True, slots=True)
class _Engine:
    """How files of a target are written, and run.

    Attributes
    ----------
    ending
        Of its files.
    distribution
        What pip calls it, for its version.
    make
        Writes a file, or files of this stem, of a module and examples of its inputs.
    open
        Makes what runs the file; None where it runs on other machines alone.
    one_object
        It takes no batches.
    """

    ending: str
    distribution: str
    make: Callable[[nn.Module, tuple[torch.Tensor, ...], Path], None]
    open: Callable[[Path, GraphSpec], Run] | None
    one_object: bool = False


def write(source: Path, folder: Path, options: ConvertOptions, report: Report) -> dict[str, Any]:
    """Write a file for every graph, and compare; see `segship.ship.targets`.

    Raises
    ------
    ExportError
        ``not_converted`` when the target's converter does not take a graph; the message has its words.
    ComparisonFailed
        When the engine answers otherwise than the module.
    """
    engine = ENGINES[str(options.target)]
    model = load_model(source)
    require_options_of(model.task, options)
    wanted = _wanted(model, options)
    form = {"batch": 1, "objects": options.objects or 1, "points": options.places or PLACES}
    if engine.one_object and form["objects"] != 1:
        message = f"{way('objects', '--objects')} is {form['objects']}, and {options.target} takes one; call it again"
        raise ExportError(f"{message} for each object", code="bad_option")
    parts = {name: part for name, part in model.networks.graphs(model, wanted).items() if name in GRAPHS}
    files = {}
    for name, (module, spec) in parts.items():
        files[name] = folder / f"{name}{engine.ending}"
        _make(engine, module.eval(), spec, form, files[name])
        report(f"{name}: converted", ())
    rows = [] if engine.open is None else _compare(engine, model, wanted, parts, form, files, report)
    return {
        "engine": {"name": options.target, "version": metadata.version(engine.distribution)},
        "architecture": model.config.architecture,
        "graphs": {name: asdict(fixed_spec(spec, form)) for name, (_, spec) in parts.items()},
        "changes": list(model.changes),
        "comparison": [asdict(row) for row in rows],
        **(
            {"ran": {"engine": f"{options.target} {metadata.version(engine.distribution)}", "own": True}}
            if rows
            else {}
        ),
    }


def _wanted(model: LoadedModel, options: ConvertOptions) -> ExportOptions:
    if model.task == "promptable":
        # As the published code computes: what is written for an engine suits that one alone.
        return ExportOptions(target="plain")
    return ExportOptions(size=options.size or SEMANTIC_SIZE, batch=1)


def _make(engine: _Engine, module: nn.Module, spec: GraphSpec, form: Form, path: Path) -> None:
    shapes = [[int(size) for size in tensor.shape] for tensor in fixed_spec(spec, form).inputs]
    examples = tuple(torch.zeros(shape, dtype=torch.float32) for shape in shapes)
    try:
        # Converters print, and warn of what is theirs to mend; standard output is ours.
        with torch.no_grad(), redirect_stdout(None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine.make(module, examples, path)
    except SegshipError:
        raise
    # Converters raise whatever their passes raise.
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"graph {spec.name!r} was not converted: {said[0][:300]}", code="not_converted") from error
    if not path.exists():
        raise ExportError(f"graph {spec.name!r} was not converted: there is no file", code="not_converted")


class _FileSession(Session):
    """A file in its engine behind the contract of its graph, called as often as the sizes of a call ask for."""

    def __init__(self, run: Run, spec: GraphSpec, form: Form) -> None:
        self.spec, self.description = spec, "converted file"
        axes = {size for tensor in spec.inputs for size in tensor.shape if isinstance(size, str)}
        self._run, self._form = run, {axis: size for axis, size in form.items() if axis in axes}

    def run(self, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        return run_fixed(inputs, self.spec, [self._form], lambda call: self._run(list(call.inputs.values())))


def _compare(
    engine: _Engine,
    model: LoadedModel,
    wanted: ExportOptions,
    parts: Mapping[str, tuple[nn.Module, GraphSpec]],
    form: Form,
    files: Mapping[str, Path],
    report: Report,
) -> list[Row]:
    """Hold what was written against the modules, on all cases of the task."""
    assert engine.open is not None
    task = task_module(model.task)
    manifest = model.verbs.manifest(model, wanted)
    contracts = {name: spec for name, (_, spec) in parts.items()}
    cases = task.cases(replace(manifest, graphs=tuple(contracts.values())))
    expected = task.answer(cases, torch_sessions(parts))
    sessions = {name: _FileSession(engine.open(files[name], spec), spec, form) for name, spec in contracts.items()}
    found = task.answer(cases, sessions, expected)
    rows: list[Row] = task.compare("converted", cases, expected, found, {**task.bar(EXACT), **CLOSE})
    report("compared", rows)
    require_passed(rows)
    return rows


def _make_executorch(module: nn.Module, examples: tuple[torch.Tensor, ...], path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(module, examples)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    write_file(path, bytes(lowered.to_executorch().buffer))


def _open_executorch(path: Path, spec: GraphSpec) -> Run:
    with warnings.catch_warnings():
        # It says that it is experimental.
        warnings.simplefilter("ignore")
        from executorch.runtime import Runtime

        method = Runtime.get().load_program(path).load_method("forward")
    return lambda arrays: [answer.numpy().copy() for answer in method.execute(list(map(torch.from_numpy, arrays)))]


def _make_litert(module: nn.Module, examples: tuple[torch.Tensor, ...], path: Path) -> None:
    import litert_torch

    litert_torch.convert(module, examples).export(str(path))


def _open_litert(path: Path, spec: GraphSpec) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=2)
    run = interpreter.get_signature_runner()

    def call(arrays: Sequence[AnyArray]) -> list[AnyArray]:
        answers = run(**{f"args_{place}": array for place, array in enumerate(arrays)})
        return [answers[f"output_{place}"].copy() for place in range(len(spec.outputs))]

    return call


def _make_ncnn(module: nn.Module, examples: tuple[torch.Tensor, ...], path: Path) -> None:
    import pnnx

    with tempfile.TemporaryDirectory(prefix="segship-pnnx-") as folder:
        # It writes nine files beside the one that it is told, and halves by itself.
        pnnx.export(module, str(Path(folder) / "graph.pt"), inputs=examples, fp16=False)
        for ending in (".param", ".bin"):
            shutil.copyfile(Path(folder) / f"graph.ncnn{ending}", path.with_suffix(ending))


def _open_ncnn(path: Path, spec: GraphSpec) -> Run:
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = 2
    # By itself it stores halves where the processor has them.
    for switch in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, switch, False)
    network.load_param(str(path))
    network.load_model(str(path.with_suffix(".bin")))

    def call(arrays: Sequence[AnyArray]) -> list[AnyArray]:
        answers = []
        with network.create_extractor() as extractor:
            # It knows no axis of a batch.
            held = [ncnn.Mat(np.ascontiguousarray(array[0] if array.ndim > 1 else array)).clone() for array in arrays]
            for place, mat in enumerate(held):
                extractor.input(f"in{place}", mat)
            for place in range(len(spec.outputs)):
                code, mat = extractor.extract(f"out{place}")
                if code:
                    raise ExportError(f"ncnn did not run graph {spec.name!r}: code {code}", code="not_converted")
                answers.append(np.array(mat)[None])
        return answers

    return call


def _make_coreml(module: nn.Module, examples: tuple[torch.Tensor, ...], path: Path) -> None:
    import coremltools

    # It knows `or` of bools under its name alone, not as the operator that masks of shifted windows are made by.
    program = torch.export.export(module, examples).run_decompositions(
        {torch.ops.aten.__or__.Tensor: torch.logical_or, torch.ops.aten.__and__.Tensor: torch.logical_and}
    )
    precision = coremltools.precision.FLOAT32
    made = coremltools.convert(program, convert_to="mlprogram", compute_precision=precision, skip_model_load=True)
    make_directory(path.parent)
    made.save(str(path))


ENGINES = {
    "executorch": _Engine(".pte", "executorch", _make_executorch, _open_executorch),
    "litert": _Engine(".tflite", "litert-torch", _make_litert, _open_litert),
    "ncnn": _Engine(".param", "ncnn", _make_ncnn, _open_ncnn, one_object=True),
    "coreml": _Engine(".mlpackage", "coremltools", _make_coreml, None),
}
"""By target."""
