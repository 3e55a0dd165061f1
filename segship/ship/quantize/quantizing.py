# SPDX-License-Identifier: Apache-2.0
"""A bundle's graphs in a lower precision: made, held against float32, mended where they miss their bar, written.

What is in the way of the bar is found, not guessed: every layer is lowered alone, ranked by how far it moves what its
graph answers, and the worst go back to higher precision until the bar holds. Needs onnx and no torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from segship.arrays import AnyArray
from segship.backends import load_backend
from segship.backends.opening import open_session
from segship.backends.session import RunOptions, Session
from segship.bundle import Bundle
from segship.bundle.artifacts import Option, artifact_file
from segship.bundle.evidence import EXACT, Bar, Row
from segship.bundle.folder import add_artifacts, refuse_package, refuse_stranger, refuse_taken
from segship.bundle.manifest import MANIFEST_FILE, Manifest, task_module
from segship.catalog import find_model
from segship.datasets.calibration import CalibrateOptions, calibrate
from segship.datasets.image_list import ImageList, open_image_list
from segship.errors import ComparisonFailed, InputError, way
from segship.files import write_file
from segship.ship.quantize import half, integers, storage
from segship.ship.quantize.opened import OpenGraph, open_graph
from segship.ship.quantize.options import QuantizeOptions
from segship.ship.quantize.ranges import Recorded, RecordingSession
from segship.tune import Known, TuneOptions, measure

HELD_OUT = 4
"""Of the pictures every fourth is not calibrated with, and the bar is held on those."""
SMOOTHED_WITH = 2
"""Pictures that show which channels are large."""
DRAWN = 16
"""Scenes that are drawn where no pictures are given."""
RANKED_WITH = 2
"""Calls of a graph that layers are ranked by."""
_LONGEST_TEXT = 4000

Report = Callable[[str, Sequence[Row]], None]
"""Called with what was tried, and the rows of its comparison; none for what needs no comparison."""


def quantize_bundle(
    model: str | Path,
    options: QuantizeOptions | None = None,
    report: Report | None = None,
    *,
    out: Path | None = None,
) -> Bundle:
    """Write the graphs of a bundle in a lower precision, beside those that it has or as a bundle of their own.

    Parameters
    ----------
    model
        A bundle's folder, or a name of `segship.load`.
    options
        See `QuantizeOptions`.
    report
        See `Report`.
    out
        Folder for another bundle; the bundle itself gets the new artifacts when left out.

    Raises
    ------
    InputError
        ``bundle_in_package`` as of `segship.tune.tune_bundle`; ``foreign_graphs`` for imported ones;
        ``precision_unavailable`` without graphs in fp32; what is wrong with the calibration.
    ComparisonFailed
        When the bar is missed with every layer that could help in higher precision.
    BundleError, BackendUnavailable, OutputError
        When the bundle, the backend or the folder cannot be used.
    """
    options = options or QuantizeOptions()
    bundle = Bundle.read(find_model(model))
    if out is None:
        refuse_package(bundle)
    else:
        refuse_taken(out, force=options.force)
        refuse_stranger(out)
    if getattr(bundle.manifest, "foreign", None) is not None:
        message = f"{bundle.path} holds imported graphs, which are kept byte for byte; quantize a bundle of the weights"
        raise InputError(message, code="foreign_graphs")
    held = {artifact.graph for artifact in bundle.manifest.artifacts if artifact.precision == EXACT}
    if len(held) < len(bundle.manifest.graphs):
        message = f"{bundle.path} has no graphs in fp32 to lower; quantize the bundle that it was made from"
        raise InputError(message, code="precision_unavailable")
    with tempfile.TemporaryDirectory(prefix="segship-quantize-") as folder:
        reference = _reference(bundle, options, Path(folder))
        trial = _Trial(reference, options, Path(folder), report or (lambda *_: None))
        notes = _fp16(trial) if options.precision == "fp16" else _layers(trial)
        if not trial.passed and not options.accept_accuracy:
            raise _missed(trial, options)
        return _written(trial, notes, out)


@dataclass(frozen=True, slots=True)
class _Reference:
    """A bundle in float32, and what it answered to the pictures that were held out.

    ``calls`` are inputs that each graph got with the first of them.
    """

    bundle: Bundle
    graphs: dict[str, OpenGraph]
    recorded: dict[str, dict[str, Recorded]]
    cases: Any
    expected: Any
    calls: dict[str, list[dict[str, AnyArray]]]
    calibration: str


def _reference(bundle: Bundle, options: QuantizeOptions, folder: Path) -> _Reference:
    """Let the float32 graphs answer all pictures, and record what precision needs to know of their tensors."""
    manifest = bundle.manifest
    task = task_module(manifest.task)
    source = options.calibration
    if source is None:
        source = folder / "drawn"
        drawn = CalibrateOptions(task=manifest.task, limit=DRAWN)  # type: ignore[arg-type]  # There are no others.
        calibrate((), source, drawn)
    images = open_image_list(source, manifest.task)
    graphs = {spec.name: open_graph(bundle.path / manifest.artifact(spec.name).file) for spec in manifest.graphs}
    held_out, used = (part_of(images, held_out=keep) for keep in (True, False))
    recorded: dict[str, dict[str, Recorded]] = {name: {} for name in graphs}
    if options.precision == "int8":
        few = _record(manifest, graphs, _first(used, SMOOTHED_WITH), integers.recorded_for)
        graphs = {name: integers.smoothed(graph, few[name]) for name, graph in graphs.items()}
        recorded = _record(manifest, graphs, used, integers.recorded_for)
    elif options.precision == "fp16":
        recorded = _record(manifest, graphs, used, half.float_tensors_of)
    sessions = {spec.name: RecordingSession(graphs[spec.name], spec, ()) for spec in manifest.graphs}
    cases = task.listed_cases(manifest, held_out, sessions)
    expected = task.answer(cases, sessions)
    calls = next(iter(task.feeds(manifest, held_out, sessions)))
    some = {name: asked[:RANKED_WITH] for name, asked in calls.items()}
    return _Reference(bundle, graphs, recorded, cases, expected, some, images.sha256)


def part_of(images: ImageList, *, held_out: bool) -> ImageList:
    """Return the pictures that are held out, every fourth, or the others; one is both."""
    entries = images.listing.images
    chosen = tuple(entry for index, entry in enumerate(entries) if (index % HELD_OUT == 0) == held_out)
    return replace(images, listing=replace(images.listing, images=chosen or entries))


def _first(images: ImageList, count: int) -> ImageList:
    return replace(images, listing=replace(images.listing, images=images.listing.images[:count]))


def _record(
    manifest: Manifest,
    graphs: Mapping[str, OpenGraph],
    images: ImageList,
    names: Callable[[OpenGraph], Sequence[str]],
) -> dict[str, dict[str, Recorded]]:
    """Let graphs answer pictures one by one and record some of their tensors."""
    sessions = {
        spec.name: RecordingSession(graphs[spec.name], spec, names(graphs[spec.name])) for spec in manifest.graphs
    }
    for _ in task_module(manifest.task).feeds(manifest, images, sessions):
        pass
    return {name: session.recorded for name, session in sessions.items()}


@dataclass(slots=True)
class _Trial:
    """One way after the other of lowering the graphs, each compared with the reference."""

    reference: _Reference
    options: QuantizeOptions
    folder: Path
    report: Report
    rows: list[Row] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the last one was within the bar."""
        return all(row.passed for row in self.rows)

    @property
    def bar(self) -> Bar:
        """What the precision is held against."""
        bar = dict(task_module(self.reference.bundle.manifest.task).bar(self.options.precision))
        if self.options.mask_iou is not None:
            bar["mask_iou_mean"] = self.options.mask_iou
        return bar

    def file(self, graph: str) -> Path:
        """Return where the last graph of a name lies."""
        return self.folder / artifact_file(graph, precision=self.options.precision)

    def write(self, graphs: Mapping[str, OpenGraph]) -> None:
        """Write graphs in the place of the last."""
        for name, graph in graphs.items():
            graph.write(self.file(name), self.reference.bundle.manifest.graph_spec(name))

    def compare(self, step: str, graphs: Mapping[str, OpenGraph]) -> bool:
        """Write graphs, let them answer in the backend, and return whether they are within the bar."""
        reference, manifest = self.reference, self.reference.bundle.manifest
        task = task_module(manifest.task)
        arithmetic = load_backend(self.options.backend).beside(self.options.precision)
        run = RunOptions(backend=self.options.backend, precision=arithmetic)
        self.write(graphs)
        with ExitStack() as stack:
            sessions: dict[str, Session] = {}
            for spec in manifest.graphs:
                sessions[spec.name] = stack.enter_context(open_session(self.file(spec.name), spec, run))
            found = task.answer(reference.cases, sessions, reference.expected)
        self.rows = task.compare(step, reference.cases, reference.expected, found, self.bar)
        self.report(step, self.rows)
        return self.passed


Notes = dict[str, dict[str, Option]]
"""Graph -> what decided its bytes."""


def _fp16(trial: _Trial) -> Notes:
    """Compute in float16, and in float32 where ranges ask for it, and then in more and more places."""
    reference = trial.reference
    for rung, name in enumerate(half.RUNGS if trial.options.islands else half.RUNGS[:1]):
        kept: dict[str, set[str]] = {
            graph: half.islands(opened, reference.recorded[graph], rung) if trial.options.islands else set()
            for graph, opened in reference.graphs.items()
        }
        made = {graph: half.to_half(opened, kept[graph]) for graph, opened in reference.graphs.items()}
        # No CPU here need have float16 arithmetic, and what has none rounds where it likes.
        passed = trial.compare(f"float32 by {name}", {graph: half.rounded(opened) for graph, opened in made.items()})
        trial.write(made)
        if passed:
            break
    return {graph: {"float32": name, **_listed("float32_nodes", nodes)} for graph, nodes in kept.items()}


@dataclass(frozen=True, slots=True)
class _Lowering:
    """How one graph is lowered.

    Attributes
    ----------
    layers
        Names of its layers.
    make
        Layers -> the graph in which those went back to higher precision.
    alone
        Layer -> the float32 graph but for that one.
    """

    layers: list[str]
    make: Callable[[Collection[str]], OpenGraph]
    alone: Callable[[str], OpenGraph]


def _lowering(trial: _Trial, graph: str) -> _Lowering:
    opened, precision = trial.reference.graphs[graph], trial.options.precision
    if precision == "int8":
        chosen = integers.to_integers(opened, trial.reference.recorded[graph])

        def without(restored: Collection[str]) -> OpenGraph:
            return storage.store_weights(chosen.quantized(chosen.layers.keys() - set(restored)), 16)

        return _Lowering(list(chosen.layers), without, lambda name: chosen.quantized({name}))
    bits = int(precision.removeprefix("int").removeprefix("fp").removesuffix("-weights"))
    return _Lowering(
        storage.stored_layers(opened),
        lambda restored: storage.store_weights(opened, bits, restored),
        lambda name: storage.store_weights(opened, bits, only={name}),
    )


def _layers(trial: _Trial) -> Notes:
    """Lower all layers, and let the worst go back until the bar holds: 1, 2, 4 and so on of all graphs together."""
    lowerings = {graph: _lowering(trial, graph) for graph in trial.reference.graphs}
    restored: dict[str, list[str]] = {graph: [] for graph in lowerings}

    def attempt(step: str) -> bool:
        return trial.compare(step, {graph: lowering.make(restored[graph]) for graph, lowering in lowerings.items()})

    if not attempt("all layers"):
        ranked = sorted(_damages(trial, lowerings), reverse=True)
        count = 1
        while True:
            restored = {graph: [name for _, owner, name in ranked[:count] if owner == graph] for graph in lowerings}
            if attempt(f"{min(count, len(ranked))} of {len(ranked)} layers restored") or count >= len(ranked):
                break
            count *= 2
    return {
        graph: {"layers": len(lowering.layers) - len(restored[graph]), **_listed("restored", restored[graph])}
        for graph, lowering in lowerings.items()
    }


def _damages(trial: _Trial, lowerings: Mapping[str, _Lowering]) -> Iterator[tuple[float, str, str]]:
    """Yield for each layer lowered alone how far its graph's answers move, against their size."""
    for graph, lowering in lowerings.items():
        calls = trial.reference.calls[graph]
        if not calls:
            continue
        trial.report(f"ranking {len(lowering.layers)} layers of {graph}", ())
        wanted = _run(trial.reference.graphs[graph], calls)
        for name in lowering.layers:
            found = _run(lowering.alone(name), calls)
            yield max(map(_moved, wanted, found)), graph, name


def _run(graph: OpenGraph, calls: Sequence[Mapping[str, AnyArray]]) -> list[AnyArray]:
    """Return of each call the largest output: an embedding, logits of masks, a class map."""
    session = graph.session(lean=False)
    names = [value.name for value in session.get_inputs()]
    answers = (session.run(None, {name: arrays[name] for name in names}) for arrays in calls)
    return [max(answer, key=lambda array: array.size) for answer in answers]


def _moved(expected: AnyArray, found: AnyArray) -> float:
    """Return how far an answer moved, as a part of its size; of classes, how many pixels changed theirs."""
    if expected.dtype.kind in "iu":
        return float(np.mean(expected != found))
    size = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(expected.astype(np.float64) - found)) / size if size else 0.0


def _listed(what: str, names: Collection[str]) -> dict[str, Option]:
    if not names:
        return {}
    text = ", ".join(sorted(names))
    return {f"{what}_count": len(names), what: text if len(text) < _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ..."}


def _missed(trial: _Trial, options: QuantizeOptions) -> ComparisonFailed:
    failed = "; ".join(str(row) for row in trial.rows if not row.passed)
    accept = way("accept_accuracy=True", "--accept-accuracy")
    return ComparisonFailed(
        f"{options.precision} in {options.backend} misses its bar ({_in_words(trial.bar)}): {failed}; nothing was "
        f"written; calibrate with pictures like those it is for, or take it as it is with {accept}",
        code="accuracy_missed",
    )


def _in_words(bar: Bar) -> str:
    return ", ".join(f"{name} {value}" for name, value in bar.items())


def _written(trial: _Trial, notes: Notes, out: Path | None) -> Bundle:
    """Write the last graphs into the bundle, measured in every backend that runs them."""
    reference, options = trial.reference, trial.options
    bundle, precision = reference.bundle, options.precision
    made_with: dict[str, Option] = {"calibration": reference.calibration}
    chosen = {
        graph: {**bundle.manifest.artifact(graph).options, **made_with, **noted, "target": options.backend}
        for graph, noted in notes.items()
    }
    written = add_artifacts(
        bundle,
        bundle.manifest,
        {name: trial.file(name) for name in reference.graphs},
        precision,
        options=chosen,
        directory=out,
        only=options.only,
        lean=options.lean,
        force=options.force,
    )
    known = Known(reference.cases, reference.expected, reference.expected)
    checks = measure(written, TuneOptions(repeats=1), known=known, precisions=(precision,))
    kept = [check for check in bundle.manifest.checks if check.precision != precision and not options.only]
    # What a budget chose was measured of other artifacts.
    renewed = replace(written.manifest, checks=(*kept, *checks), choice=None)
    write_file(written.path / MANIFEST_FILE, renewed.to_json(), overwrite=True)
    return Bundle.open(written.path)
