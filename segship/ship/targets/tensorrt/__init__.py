# SPDX-License-Identifier: Apache-2.0
"""Plans of TensorRT for RTX, built here and without a GPU, and the kit with which TensorRT 10 and 11 build theirs.

Both start from typed graphs: float32, or the float16 ones with islands of float32 that `segship quantize` makes, since
TensorRT 11 has no switches of precision any more. The kit holds the graphs, ranges of their sizes, scripts, and cases
with the answers of ONNX Runtime in float32; ``run.py accept`` holds plans against them where a GPU is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segship.backends import is_installed, load_backend
from segship.backends.opening import open_graph
from segship.backends.profiles import Profile, profiles_of, shapes_of
from segship.backends.session import Call, Recorder, RunOptions
from segship.bundle import Bundle
from segship.bundle.artifacts import Artifact
from segship.bundle.evidence import EXACT
from segship.bundle.manifest import task_module
from segship.errors import BackendUnavailable, BundleError
from segship.files import read_bytes, write_file
from segship.ship.targets import ConvertOptions, Report
from segship.ship.weights import tool_versions
from segship.spec import GraphSpec

GRAPHS = ("image_encoder", "mask_decoder", "semantic")
"""Those that TensorRT takes: outputs of the others have sizes that values decide, or are of use to them alone."""
CASES = 6
"""Of a graph in the kit, evenly chosen; more repeat themselves."""
BARS = {EXACT: {"cosine": 0.9999, "mask_iou": 0.99}, "fp16": {"cosine": 0.999, "mask_iou": 0.97}}
"""Precision -> the least that ``run.py accept`` takes: of a tensor with the float32 answer, of masks in the mean."""
_SCRIPTS = ("build.py", "run.py")
_MOST_SCRIPT = 1 << 20


class _Part(NamedTuple):
    """A graph, its contract and the ranges that plans of it are made for."""

    artifact: Artifact
    spec: GraphSpec
    profiles: tuple[Profile, ...]


def write(source: Bundle, folder: Path, options: ConvertOptions, report: Report) -> dict[str, Any]:
    """Write plans or the kit; see `segship.ship.targets`.

    Raises
    ------
    BundleError
        ``no_profile`` when pictures may have any size; ``precision_unavailable`` when there are no graphs of the
        precision; ``graph_rejected`` with the node that TensorRT for RTX does not take.
    """
    parts = {part.spec.name: part for part in _parts(source, options)}
    plans = options.target == "tensorrt-rtx"
    written = _plans(source, folder, parts, options, report) if plans else _kit(source, folder, parts, options, report)
    return {
        "precision": options.precision or EXACT,
        "graphs": {name: asdict(part.spec) for name, part in parts.items()},
        "profiles": {name: [dict(profile) for profile in part.profiles] for name, part in parts.items()},
        "tools": tool_versions(),
        **written,
    }


def _parts(source: Bundle, options: ConvertOptions) -> Iterator[_Part]:
    manifest, precision = source.manifest, options.precision or EXACT
    if precision not in {artifact.precision for artifact in manifest.artifacts}:
        message = f"{source.path} holds no graphs in {precision}; make them: `segship quantize BUNDLE --precision fp16`"
        raise BundleError(message, code="precision_unavailable")
    for spec in manifest.graphs:
        if spec.name in GRAPHS:
            yield _Part(manifest.artifact(spec.name, precision), spec, profiles_of(spec, _ranges(spec, options)))


def _ranges(spec: GraphSpec, options: ConvertOptions) -> tuple[Profile, ...]:
    """Return the ranges that the options ask for, where they ask for some."""
    if spec.name != "mask_decoder" or (options.objects is None and options.places is None):
        return ()
    clicks, everything = profiles_of(spec)
    most = {"objects": options.objects or clicks["objects"][2], "points": options.places or clicks["points"][2]}
    usual = {"objects": 1, "points": min(2, most["points"])}
    return ({axis: (1, usual[axis], most[axis]) for axis in most}, everything)


def _plans(
    source: Bundle, folder: Path, parts: Mapping[str, _Part], options: ConvertOptions, report: Report
) -> dict[str, Any]:
    """Build a plan of every graph; it is not run, which takes a GPU."""
    if not _is_rtx():
        message = (
            "target 'tensorrt-rtx' builds with TensorRT for RTX, and TensorRT itself is installed beside it, which"
        )
        raise BackendUnavailable(f"{message} goes first; use an environment without it", code="target_missing")
    tensorrt = load_backend("tensorrt")
    capabilities = options.capability or ()
    for name, part in parts.items():
        plan = tensorrt.build_plan(source.verified(part.artifact), part.spec, part.profiles, capabilities)
        write_file(folder / f"{name}.plan", plan)
        report(f"{name}: built a plan of {len(plan) / 1e6:.1f} MB", ())
    return {"engine": {"name": "tensorrt-rtx", "version": tensorrt.version()}}


def _kit(
    source: Bundle, folder: Path, parts: Mapping[str, _Part], options: ConvertOptions, report: Report
) -> dict[str, Any]:
    """Write graphs, ranges, scripts and cases."""
    checked: dict[str, Any] = {}
    for name, part in parts.items():
        file = _copy_graph(source, part, folder / "graphs")
        checked[name] = {"file": f"graphs/{file}", "shapes": [shapes_of(part.spec, one) for one in part.profiles]}
    checker = _check(source, parts, report)
    document = {"precision": options.precision or EXACT, "bar": BARS[options.precision or EXACT], "graphs": checked}
    write_file(folder / "kit.json", (json.dumps(document, indent=2) + "\n").encode())
    for name, calls in _recorded(source, parts).items():
        _write_cases(folder / "acceptance", name, calls)
    for script in _SCRIPTS:
        write_file(folder / script, read_bytes(Path(__file__).parent / script, limit=_MOST_SCRIPT))
    write_file(folder / "trtexec.sh", _trtexec(document).encode())
    write_file(folder / "README.md", _readme(source, document).encode())
    return {"checked_with": checker}


def _check(source: Bundle, parts: Mapping[str, _Part], report: Report) -> str:
    """Let TensorRT for RTX read and build the graphs, where it is installed; return what was done."""
    if not _is_rtx():
        return "nothing: TensorRT for RTX, which would read the graphs without a GPU, is not what is installed"
    tensorrt = load_backend("tensorrt")
    for name, part in parts.items():
        tensorrt.build_plan(source.verified(part.artifact), part.spec, part.profiles)
        report(f"{name}: TensorRT for RTX {tensorrt.version()} builds it", ())
    return f"plans built by TensorRT for RTX {tensorrt.version()}"


def _is_rtx() -> bool:
    """Return whether the backend's TensorRT is the one for RTX; where both are installed it is not."""
    return is_installed("tensorrt_rtx") and not is_installed("tensorrt")


def _copy_graph(source: Bundle, part: _Part, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    verified = source.verified(part.artifact)
    graph = verified if isinstance(verified, bytes) else verified.read_bytes()
    write_file(folder / part.artifact.file, graph)
    if part.artifact.weights is not None:
        weights = part.artifact.weights.file
        write_file(folder / weights, (source.path / weights).read_bytes())
    return part.artifact.file


def _recorded(source: Bundle, parts: Mapping[str, _Part]) -> dict[str, list[Call]]:
    """Return calls of the float32 graphs in ONNX Runtime that the plans' ranges hold."""
    task = task_module(source.manifest.task)
    with ExitStack() as stack:
        run = RunOptions(backend="onnxruntime")
        recorders = {
            name: Recorder(stack.enter_context(open_graph(source, part.spec, run))) for name, part in parts.items()
        }
        task.answer(task.cases(source.manifest), recorders)
        calls = {name: recorder.take() for name, recorder in recorders.items()}
    held = {
        name: [call for call in found if any(_holds(one, parts[name].spec, call) for one in parts[name].profiles)]
        for name, found in calls.items()
    }
    return {name: found[:: max(1, -(-len(found) // CASES))] for name, found in held.items()}


def _holds(profile: Profile, spec: GraphSpec, call: Call) -> bool:
    return all(
        profile[axis][0] <= size <= profile[axis][2]
        for tensor in spec.inputs
        for axis, size in zip(tensor.shape, call[0][tensor.name].shape, strict=True)
        if isinstance(axis, str)
    )


def _write_cases(folder: Path, name: str, calls: list[Call]) -> None:
    folder.mkdir(exist_ok=True)
    for index, (inputs, outputs) in enumerate(calls):
        arrays = {
            f"{kind}.{key}": value for kind, held in (("in", inputs), ("out", outputs)) for key, value in held.items()
        }
        with open(folder / f"{name}.{index}.npz", "wb") as stream:
            np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]  # Its other keyword is none of ours.


def _trtexec(document: Mapping[str, Any]) -> str:
    """Return the lines that build the plans with TensorRT's own program; one profile each, which is all it takes."""
    lines = ["#!/usr/bin/env bash", "set -eu", 'cd "$(dirname "$0")"', "mkdir -p plans"]
    for name, graph in document["graphs"].items():
        for place, shapes in enumerate(graph["shapes"]):
            given = " \\\n    ".join(
                f"--{word}Shapes="
                + ",".join(f"{tensor}:{'x'.join(map(str, kinds[index]))}" for tensor, kinds in shapes.items())
                for index, word in enumerate(("min", "opt", "max"))
            )
            lines.append(
                f"trtexec --onnx={graph['file']} --stronglyTyped --noTF32 \\\n    {given} \\\n"
                f"    --saveEngine=plans/{name}.{place}.plan"
            )
    return "\n".join(lines) + "\n"


_README = """# {architecture} for TensorRT 10 and 11, {precision}

On the machine with the GPU, in this folder; a plan belongs to one kind of GPU and one version of TensorRT.

    python build.py          # graphs/ to plans/; needs tensorrt alone
    bash trtexec.sh          # or with TensorRT's own program, a plan for each range of sizes
    python run.py accept     # holds plans/ against the float32 answers in acceptance/; needs cuda-python and numpy too

| graph | input | least | usual | most |
|---|---|---|---|---|
{rows}

What `run.py accept` takes at least: {bars}; it writes report.json. `Plan` in run.py is all that a
program of your own needs to run a plan. Precision is what stands in the graphs (networks are strongly typed);
inputs and outputs are float32.

No GPU was at hand when this was written: the scripts ran on doubles of TensorRT's and CUDA's Python interfaces.
The report of your machine is the proof.
"""


def _readme(source: Bundle, document: Mapping[str, Any]) -> str:
    """Return the text of ``README.md`` for what ``kit.json`` says."""
    rows = [
        f"| {name} | {tensor} | {' | '.join('x'.join(map(str, sizes)) for sizes in three)} |"
        for name, graph in document["graphs"].items()
        for shapes in graph["shapes"]
        for tensor, three in shapes.items()
    ]
    bars = ", ".join(f"{figure} {least}" for figure, least in document["bar"].items())
    words = {"architecture": source.manifest.architecture, "precision": document["precision"]}
    return _README.format(**words, rows="\n".join(rows), bars=bars)
