# SPDX-License-Identifier: Apache-2.0
"""A kit for Ascend NPUs: graphs of fixed sizes, scripts for the device's own tools, a runner that proves them there.

Starts from a bundle, so it needs no torch. Everything that a script does follows from ``kit.json``; `commands` writes
the lines, `graphs` what they compile, and ``runner.py`` lies in the kit as ``run.py``. No NPU was ever at hand.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

import segship
from segship.arrays import AnyArray, Size
from segship.backends import DEFAULT_BACKEND, installed_version
from segship.backends.fixed import Call, Form, fixed_calls, fixed_spec, run_fixed
from segship.backends.onnxruntime import Session as OrtSession
from segship.backends.opening import open_graph
from segship.backends.session import Recorder, RunOptions, Session
from segship.bundle import Bundle
from segship.bundle.evidence import EXACT, Row, figures_row, require_passed
from segship.bundle.manifest import task_module
from segship.certify import KIT_FP16_BARS
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.datasets.image_list import ImageList, is_image_list, open_image_list
from segship.datasets.known import LABELS
from segship.errors import InputError, way
from segship.files import sha256_of, write_file
from segship.promptable.manifest import PromptableManifest
from segship.semantic.manifest import SemanticManifest
from segship.ship.quantize.opened import OpenGraph
from segship.ship.quantize.opened import open_graph as read_graph
from segship.ship.targets.ascend import commands, graphs
from segship.spec import GraphSpec, TensorSpec, semantic_spec

if TYPE_CHECKING:
    from segship.ship.targets import ConvertOptions, Report

Arrays = dict[str, AnyArray]

CANN = 7
"""When left out: that of the SAM guide; the SeMask guide's is 6."""
PLACES, OBJECTS = 10, 1
BATCHES = (1, 4, 8)
GUIDE_SIZE: Size = (1024, 2048)
"""Batches and (height, width) of the SeMask guide."""
_SOC = re.compile(r"Ascend[0-9A-Za-z]+(_[0-9A-Za-z]+)?")
"""Some chips have a second name behind the first, such as Ascend910_9391."""
CASE_OF_ALL_PROMPTS = "seven objects in one call"


@dataclass(slots=True, eq=False)
class _Graph:
    """One file of the kit."""

    graph: str
    spec: GraphSpec
    forms: tuple[Form, ...]
    asked: list[Arrays]
    """Calls of the acceptance, of the contract's dynamic sizes."""
    kept_apart: list[str] = field(default_factory=list)
    samples: int = 0
    cases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def gears(self) -> tuple[int, ...]:
        return tuple(form["points"] for form in self.forms) if len(self.forms) > 1 else ()

    @property
    def sizes(self) -> Form:
        """Axes that have one size."""
        first = self.forms[0]
        return {axis: size for axis, size in first.items() if not (self.gears and axis == "points")}


def write(source: Bundle, folder: Path, options: ConvertOptions, report: Report) -> dict[str, Any]:
    """Write the kit of a bundle; see `segship.ship.targets`.

    Raises
    ------
    InputError
        ``foreign_graphs`` of imported graphs, whose decoder knows no empty place; ``bad_option``.
    ExportError
        ``unsupported_operator``, ``unknown_pattern``.
    ComparisonFailed
        When a graph of the kit answers otherwise than the bundle's.
    """
    if getattr(source.manifest, "foreign", None) is not None:
        message = (
            f"{source.path} holds imported graphs, whose decoder knows no empty places; give a bundle of a checkpoint"
        )
        raise InputError(message, code="foreign_graphs")
    manifest = _manifest(source, options)
    run = RunOptions(backend=DEFAULT_BACKEND)
    with ExitStack() as stack:
        known = {spec.name: stack.enter_context(open_graph(source, spec, run)) for spec in source.manifest.graphs}
        if isinstance(manifest, SemanticManifest) and manifest.batch is None:
            known = {spec.name: _OneByOne(known[spec.name], spec) for spec in manifest.graphs}
        kit = _promptable(manifest, options) if isinstance(manifest, PromptableManifest) else _semantic(manifest)
        for name, entry in kit.items():
            rows = _write_graph(source, folder, name, entry, options)
            report(f"{name}: written", rows)
        rows = _compare(manifest, folder, kit, known)
        report("compared", rows)
        require_passed(rows)
        for name, entry in kit.items():
            entry.cases = list(_acceptance(folder, name, entry, known[entry.graph]))
        if options.int8:
            _calibrate(folder, manifest, kit, known, options)
    document = _document(source, manifest, folder, kit, options)
    _write_texts(folder, document)
    ran = {"engine": f"onnxruntime {installed_version('onnxruntime')}", "own": False}
    return {"soc": options.soc, "kit": "kit.json", "ran": ran, "comparison": [str(row) for row in rows]}


def check_options(options: ConvertOptions) -> None:
    """Refuse options that do not fit each other, before anything is read.

    Raises
    ------
    InputError
        ``bad_option``.
    """
    if options.soc is None or not _SOC.fullmatch(options.soc):
        raise _bad("soc", options.soc, "Ascend and the chip's name, which npu-smi info shows, such as Ascend310P3")
    if options.int8 and options.gears:
        message = f"{way('gears', '--gears')} and int8 exclude each other: current CANN compiles no int8 model with"
        raise InputError(
            f"{message} dynamic sizes; leave one out, places are filled up to a fixed number", code="bad_option"
        )
    if options.gears and options.places:
        message = f"{way('gears', '--gears')} and {way('places', '--places')} both say how many places there are"
        raise InputError(f"{message}; leave one out", code="bad_option")
    if options.calibration is not None and not options.int8:
        message = f"{way('calibration', '--calibration')} is of int8, which was not asked for; ask for it too"
        raise InputError(message, code="bad_option")
    gears_of(options)


def gears_of(options: ConvertOptions) -> tuple[int, ...]:
    """Return the numbers of places that ``gears`` names, such as ``2..9``; none where there are no gears."""
    if options.gears is None:
        return ()
    first, found, last = options.gears.partition("..")
    if not (found and first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise _bad("gears", options.gears, "two numbers of places, such as 2..9")
    least, most = int(first), int(last)
    # One gear is refused by the compiler (E10035), no place at all by its zero dimension, and past 100 are E10036.
    if not (1 <= least < most and most - least < 100):
        raise _bad("gears", options.gears, "2 to 100 numbers of 1 or more, such as 2..9")
    return tuple(range(least, most + 1))


def _bad(name: str, value: object, accepted: str) -> InputError:
    return InputError(f"{way(name, f'--{name}')} is {value!r}; accepted is {accepted}", code="bad_option")


def _manifest(source: Bundle, options: ConvertOptions) -> Any:
    """Return what the bundle says of its model, at the size of the kit."""
    manifest = source.manifest
    if isinstance(manifest, SemanticManifest):
        if manifest.output != "class_map":
            message = f"{source.path} gives {manifest.output}, and a kit holds class maps, as the guide's graph does"
            raise InputError(f"{message}; give a bundle of class maps", code="bad_option")
        frame = manifest.preprocessing.frame
        size = frame or options.size or GUIDE_SIZE
        if frame and options.size not in (None, frame):
            raise _bad("size", options.size, f"{frame}, the one size of this bundle")
        preprocessing = replace(manifest.preprocessing, frame=size)
        spec = semantic_spec(len(manifest.table.classes), manifest.output, size)
        return replace(manifest, preprocessing=preprocessing, graphs=(spec,))
    return manifest


def _promptable(manifest: PromptableManifest, options: ConvertOptions) -> dict[str, _Graph]:
    case = task_module(manifest.task).cases(manifest).images
    objects = options.objects or OBJECTS
    places = gears_of(options) or (options.places or PLACES,)
    forms = tuple({"objects": objects, "points": count} for count in places)
    specs = {spec.name: spec for spec in manifest.graphs}
    prompts = case[0].prompts[CASE_OF_ALL_PROMPTS]
    return {
        "image_encoder": _Graph(
            "image_encoder", specs["image_encoder"], ({"batch": 1},), [{"image": entry.image} for entry in case]
        ),
        "mask_decoder": _Graph("mask_decoder", specs["mask_decoder"], forms, [dict(prompts)]),
    }


def _semantic(manifest: SemanticManifest) -> dict[str, _Graph]:
    (spec,) = manifest.graphs
    task = task_module(manifest.task)
    assert manifest.preprocessing.frame is not None, "a kit is of one size"
    height, width = manifest.preprocessing.frame
    batches = (manifest.batch,) if manifest.batch else BATCHES
    return {
        f"semantic_bs{batch}": _Graph(
            "semantic",
            spec,
            ({"batch": batch, "height": height, "width": width},),
            [{"image": image} for image in task.make_cases(manifest.preprocessing, batch).images],
        )
        for batch in batches
    }


def _write_graph(source: Bundle, folder: Path, name: str, entry: _Graph, options: ConvertOptions) -> list[Row]:
    """Write one graph, and prove that keeping its norms apart changed no bit."""
    cann = options.cann or CANN
    artifact = source.manifest.artifact(entry.graph)
    opened = read_graph(source.path / artifact.file)
    opened.halves = False
    graph = graphs.fix_sizes(opened, entry.spec, entry.sizes)
    before = graph.copied()
    entry.kept_apart = graphs.keep_norms_apart(graph)
    # AMCT was only ever shown the opset of the guides.
    opset = graphs.TRACED_OPSET if cann >= 8 and not options.int8 else graphs.GUIDE_OPSET
    rows = [_same_bits(name, entry, before, graph)] if entry.kept_apart else []
    graph = graphs.lowered(graph, opset)
    graphs.check_operators(graph, name, cann)
    (folder / "graphs").mkdir(exist_ok=True)
    graph.write(folder / "graphs" / f"{name}.onnx", fixed_spec(entry.spec, entry.sizes))
    require_passed(rows)
    return rows


def _same_bits(name: str, entry: _Graph, before: OpenGraph, after: OpenGraph) -> Row:
    """Run both graphs on numbers of any kind, and hold them against equality."""
    rng, form = np.random.default_rng(0), entry.forms[-1]
    feed = {
        tensor.name: rng.normal(size=[form[size] if isinstance(size, str) else size for size in tensor.shape]).astype(
            tensor.dtype
        )
        for tensor in entry.spec.inputs
    }
    known, found = (graph.session().run(None, feed) for graph in (before, after))
    largest = max(float(np.abs(one - other).max()) for one, other in zip(known, found, strict=True))
    figures = {"cosine": 1.0 if largest == 0 else 0.0, "max_abs": largest, "scale": float(np.abs(known[-1]).max())}
    return figures_row("norms kept apart", name, "all outputs", 1, figures, {"max_abs": 0.0})


class _FixedSession(Session):
    """The kit's graphs in ONNX Runtime behind the bundle's contract, as the backend runs their compiled models.

    One is open at a time: a session keeps the memory of its largest call, which is gigabytes for eight street scenes.
    """

    def __init__(self, spec: GraphSpec, files: Sequence[tuple[Sequence[Form], Path, GraphSpec]]) -> None:
        self.spec, self.description = spec, "kit in onnxruntime"
        self._files = files
        self._open: tuple[Path, OrtSession] | None = None

    def run(self, inputs: Mapping[str, AnyArray]) -> Arrays:
        def answer(call: Call) -> list[AnyArray]:
            path, spec = next((path, spec) for forms, path, spec in self._files if call.form in forms)
            found = self._session(path, spec).run(call.inputs)
            return [found[tensor.name] for tensor in self.spec.outputs]

        return run_fixed(inputs, self.spec, [form for forms, *_ in self._files for form in forms], answer)

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
        self._open = None

    def _session(self, path: Path, spec: GraphSpec) -> OrtSession:
        if self._open is None or self._open[0] != path:
            self.close()
            self._open = path, OrtSession(path, spec)
        return self._open[1]


class _OneByOne(Session):
    """A session that is asked for each picture by itself, and once: batches of a comparison repeat the same few.

    ``spec`` has the one size of the kit, which pictures of a calibration are then brought to.
    """

    def __init__(self, session: Session, spec: GraphSpec) -> None:
        self.spec, self.description, self._session = spec, session.description, session
        self._known: dict[tuple[Any, ...], Arrays] = {}

    def run(self, inputs: Mapping[str, AnyArray]) -> Arrays:
        ((name, images),) = inputs.items()
        found = [self._answer(name, images[row : row + 1]) for row in range(len(images))]
        return {output: np.concatenate([answers[output] for answers in found]) for output in found[0]}

    def _answer(self, name: str, image: AnyArray) -> Arrays:
        key = image.shape, hashlib.sha256(image.tobytes()).digest()
        if key not in self._known:
            self._known[key] = self._session.run({name: image})
        return self._known[key]


def _compare(manifest: Any, folder: Path, kit: Mapping[str, _Graph], known: Mapping[str, Session]) -> list[Row]:
    """Hold the graphs of the kit against the bundle's, on all cases of its task."""
    task = task_module(manifest.task)
    written: dict[str, list[tuple[Sequence[Form], Path, GraphSpec]]] = {}
    for name, entry in kit.items():
        file = entry.forms, folder / "graphs" / f"{name}.onnx", fixed_spec(entry.spec, entry.sizes)
        written.setdefault(entry.graph, []).append(file)
    cases = task.cases(manifest)
    if manifest.task == "semantic":
        cases = replace(cases, images=tuple(call["image"] for entry in kit.values() for call in entry.asked))
    needed = {name: session for name, session in known.items() if name in written}
    expected = task.answer(cases, needed)
    with ExitStack() as stack:
        sessions = {
            graph: stack.enter_context(_FixedSession(_spec_of(kit, graph), files)) for graph, files in written.items()
        }
        found = task.answer(cases, sessions, expected)
    if manifest.task == "promptable":
        kit["mask_decoder"].asked[0]["image_embeddings"] = expected[0].image_embeddings
    return list(task.compare("fixed sizes", cases, expected, found, task.bar(EXACT)))


def _spec_of(kit: Mapping[str, _Graph], graph: str) -> GraphSpec:
    return next(entry.spec for entry in kit.values() if entry.graph == graph)


def _acceptance(folder: Path, name: str, entry: _Graph, known: Session) -> Iterator[dict[str, Any]]:
    """Write what the graph is asked and what the bundle's answers, and yield where each case lies; no array twice."""
    written: dict[str, str] = {}

    def save(kind: str, tensor: str, array: AnyArray) -> str:
        digest = f"{kind} {tensor} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
        if digest not in written:
            number = sum(key.startswith(f"{kind} {tensor} ") for key in written)
            written[digest] = f"acceptance/{name}/{kind}/{tensor}.{number:03d}.npy"
            (folder / written[digest]).parent.mkdir(parents=True, exist_ok=True)
            stream = io.BytesIO()
            np.save(stream, array, allow_pickle=False)
            write_file(folder / written[digest], stream.getvalue())
        return written[digest]

    for asked in entry.asked:
        for call in fixed_calls(asked, entry.spec, entry.forms):
            answers = known.run(call.inputs)
            yield {
                "rows": call.rows,
                "inputs": [save("inputs", tensor.name, call.inputs[tensor.name]) for tensor in entry.spec.inputs],
                "outputs": [save("outputs", tensor.name, answers[tensor.name]) for tensor in entry.spec.outputs],
            }


def _calibrate(
    folder: Path, manifest: Any, kit: Mapping[str, _Graph], known: Mapping[str, Session], options: ConvertOptions
) -> None:
    """Write AMCT's files: a folder for each input of each graph, one file for each call, numbered alike."""
    recorders = {name: Recorder(session) for name, session in known.items()}
    with TemporaryDirectory(prefix="segship-calibration-") as drawn:
        feeds = task_module(manifest.task).feeds(manifest, _images(manifest.task, options, Path(drawn)), recorders)
        for feed in feeds:
            for name, entry in kit.items():
                for asked in _grouped(feed[entry.graph], entry):
                    for call in fixed_calls(asked, entry.spec, entry.forms):
                        _write_sample(folder / "calibration" / name, call, entry.samples)
                        entry.samples += 1


def _images(task: str, options: ConvertOptions, drawn: Path) -> ImageList:
    """Return the image list that was given, or one of the pictures that were; drawn scenes without."""
    given = options.calibration
    if given is not None and is_image_list(given):
        return open_image_list(given, task)
    choice = CalibrateOptions(task=task, limit=None if given else 8)  # type: ignore[arg-type]  # There are no others.
    return calibrate([] if given is None else [given], drawn / "list", choice)


def _grouped(calls: Sequence[Arrays], entry: _Graph) -> Iterator[Arrays]:
    """Yield calls as a graph takes them: a picture alone fills a batch."""
    for call in calls:
        batch = entry.forms[0].get("batch", 1)
        yield {name: np.repeat(array, batch, axis=0) for name, array in call.items()} if batch > 1 else call


def _write_sample(folder: Path, call: Call, number: int) -> None:
    for name, array in call.inputs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_file(
            folder / name / f"{number:06d}.bin", np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        )


def _document(
    source: Bundle, manifest: Any, folder: Path, kit: Mapping[str, _Graph], options: ConvertOptions
) -> dict[str, Any]:
    """Return what ``kit.json`` says."""
    precisions = ["fp16", *(["int8"] if options.int8 else [])]
    task = task_module(manifest.task)
    bars = {"fp16": KIT_FP16_BARS[manifest.task], "int8": task.bar("int8")}
    return {
        "format_version": 1,
        "segship": segship.__version__,
        "task": manifest.task,
        "architecture": manifest.architecture,
        "bundle": source.digest,
        "soc": options.soc,
        "cann": options.cann or CANN,
        "precisions": precisions,
        "bars": {precision: dict(bars[precision]) for precision in precisions},
        **_facts(manifest),
        "graphs": {name: _entry(source, folder, name, entry) for name, entry in kit.items()},
    }


def _facts(manifest: Any) -> dict[str, Any]:
    """Return what the runner does before and after the graphs."""
    preprocessing = manifest.preprocessing
    facts: dict[str, Any] = {"pixel_mean": preprocessing.pixel_mean, "pixel_std": preprocessing.pixel_std}
    if isinstance(manifest, SemanticManifest):
        table = manifest.table
        names = {"classes": table.classes, "palette": table.palette}
        return {
            **facts,
            **names,
            "frame": preprocessing.frame,
            "label_ids": {label.id: label.train_id for label in LABELS},
        }
    return {**facts, "image_size": preprocessing.image_size, "padding_point": manifest.prompt_rules.padding_point}


def _entry(source: Bundle, folder: Path, name: str, entry: _Graph) -> dict[str, Any]:
    """Return what ``kit.json`` says of a graph."""

    def described(tensors: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape} for tensor in tensors]

    return {
        "graph": entry.graph,
        "sha256": sha256_of(folder / "graphs" / f"{name}.onnx"),
        "made_from": source.manifest.artifact(entry.graph).digest,
        "inputs": described(entry.spec.inputs),
        "outputs": described(entry.spec.outputs),
        "sizes": entry.sizes,
        "gears": entry.gears,
        "forms": entry.forms,
        "output_bytes": [_bytes_of(tensor, entry.forms[-1]) for tensor in entry.spec.outputs],
        "kept_apart": entry.kept_apart,
        "samples": entry.samples,
        "cases": entry.cases,
    }


def _bytes_of(tensor: TensorSpec, form: Form) -> int:
    sizes = [form.get(size, 1) if isinstance(size, str) else int(size) for size in tensor.shape]
    return int(np.prod(sizes)) * np.dtype(tensor.dtype).itemsize


def _write_texts(folder: Path, document: Mapping[str, Any]) -> None:
    """Write ``kit.json``, the README, the scripts, the runner and the digests of the graphs."""
    data = (json.dumps(document, indent=1) + "\n").encode()
    write_file(folder / "kit.json", data)
    write_file(folder / "README.md", commands.readme(json.loads(data)).encode())
    entries: Mapping[str, Any] = json.loads(data)["graphs"]
    precisions, soc = document["precisions"], document["soc"]
    scripts: dict[str, Callable[[], str]] = {
        "00_check": lambda: commands.check_script(soc, "int8" in precisions),
        "20_compile": lambda: commands.compile_script(entries, precisions, soc),
        "30_bench": lambda: commands.bench_script(entries, precisions),
    }
    if "int8" in precisions:
        scripts["10_quantize"] = lambda: commands.quantize_script(entries)
    (folder / "scripts").mkdir()
    for name, text in scripts.items():
        write_file(folder / "scripts" / f"{name}.sh", text().encode())
    written = sorted((folder / "graphs").iterdir())
    sums = "".join(f"{sha256_of(path)}  graphs/{path.name}\n" for path in written)
    write_file(folder / "graphs.sha256", sums.encode())
    write_file(folder / "run.py", files(__package__).joinpath("runner.py").read_bytes())
