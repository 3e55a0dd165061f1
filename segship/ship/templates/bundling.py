# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint of a known architecture to a bundle by its template, without torch and without an export."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from segship.backends.session import Session
from segship.bundle import Bundle, write_bundle
from segship.bundle.evidence import EXACT, Evidence, Row
from segship.bundle.folder import refuse_stranger, refuse_taken
from segship.bundle.manifest import Manifest, task_module
from segship.errors import ExportError
from segship.files import explained, partial_folder
from segship.options import check_types
from segship.semantic.manifest import SemanticWindow
from segship.semantic.preprocessing import ScaleLimits
from segship.ship.checkpoints.survey import survey_checkpoint
from segship.ship.families import family_module, recognise
from segship.ship.graph.fill import fill_graph
from segship.ship.graph.wire import own_domain_only
from segship.ship.options import ExportOptions
from segship.ship.templates import ArchitectureTemplate, read_answers, read_template, template_targets
from segship.ship.verify import open_graph
from segship.ship.weights import Weights, check_state, naming_unusable, read_weights

DEFAULT_TARGET = "onnxruntime"
SELF_CHECK = "self-check"


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """How a checkpoint of a known architecture becomes a bundle; None is what the model has by itself.

    Attributes
    ----------
    target
        Promptable models: the engine that the graphs are written for; either runs both.
    size
        Semantic models: (height, width) of the only pictures that the graph takes; any when left out.
    classes
        Semantic models: a JSON list of the classes' names, where they are none of a known data set's.
    scale
        Semantic models: the most that the longer and the shorter side of a picture become; what the model was
        published with when left out.
    semantic_window
        Semantic models: stages whose semantic layer works in windows; the published rule when left out.
    clean_masks
        Promptable models: whether the bundle cleans masks; off for all but tiny when left out.
    edges
        Promptable models: whether masks follow the picture's edges, as the bundle says; off for all but tiny when left
        out.
    licence
        Licence of the weights, for the manifest of a checkpoint that is not a published one.
    force
        Replace a bundle that is already there.
    """

    target: str | None = None
    size: tuple[int, int] | None = None
    classes: Path | None = None
    scale: ScaleLimits | None = None
    semantic_window: SemanticWindow | None = None
    clean_masks: bool | None = None
    edges: bool | None = None
    licence: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        check_types(self, ExportError)

    def for_export(self) -> ExportOptions:
        """Return what an export with the same result is told."""
        return ExportOptions(
            target=self.target,
            size=self.size,
            classes=self.classes,
            scale=self.scale,
            semantic_window=self.semantic_window,
            clean_masks=self.clean_masks,
            edges=self.edges,
            licence=self.licence,
            force=self.force,
        )


def bundle_checkpoint(checkpoint_path: Path, output: Path, options: BundleOptions | None = None) -> Bundle:
    """Make a bundle of a checkpoint whose architecture has a template; needs no torch, and seconds.

    The graphs are those of `segship.ship.export.export_bundle`. They are not compared with the torch model here, which
    the manifest says (``template``); what is checked is that the general and the shared decoder agree, that every
    answer is finite, and, where there are stored answers to a published checkpoint, that they are given.

    Parameters
    ----------
    checkpoint_path
        A ``.pth``, ``.pt``, ``.safetensors`` or ``.ckpt`` file, fine-tuned ones included.
    output
        Folder to make. Nothing is left behind when anything fails.
    options
        See `BundleOptions`.

    Raises
    ------
    CheckpointError
        When the checkpoint cannot be used, or its tensors are not those of its architecture.
    ExportError
        ``no_template`` when its architecture has none; ``self_check`` when the graphs do not agree.
    OutputError
        When ``output`` exists and ``force`` is off, or cannot be written.
    """
    options, checkpoint_path, output = options or BundleOptions(), Path(checkpoint_path), Path(output)
    refuse_taken(output, force=options.force)
    refuse_stranger(output)
    weights = read_weights(checkpoint_path, options.for_export())
    template = choose_template(weights, options)
    with naming_unusable(weights.checkpoint):
        check_state(_expected(template, weights.config), weights.state)
    manifest = weights.verbs.manifest(weights, options.for_export())
    manifest = replace(manifest, template=template.origin, tools={**manifest.tools, **template.tools})
    with explained(output), partial_folder(output.parent, output.name) as folder:
        files = _fill(template, weights, manifest, folder, options.size)
        # Of large checkpoints, so that they are not in memory beside the graphs that are run now.
        del weights
        rows = self_check(manifest, files)
        if rows:
            bar = task_module(manifest.task).bar(EXACT)
            manifest = replace(manifest, evidence=Evidence(dict(bar), tuple(rows)))
        return write_bundle(output, manifest, files, options=template.options, force=options.force, move=True)


def choose_template(weights: Weights, options: BundleOptions) -> ArchitectureTemplate:
    """Return the template of a model; an `ExportError` with the code ``no_template`` where there is none."""
    name = weights.verbs.template_name(weights.config)
    target = options.target or DEFAULT_TARGET
    known = template_targets(name)
    if name is not None and target in known:
        return read_template(name, target)
    path, architecture = weights.checkpoint.path, weights.config.architecture
    if known:
        message = f"there is no ready graph for the target {target!r}; accepted are {' and '.join(known)}"
    else:
        message = f"{path} has an architecture of its own ({architecture}), for which there is no ready graph"
    message += f"; or export it, which needs torch: `segship export {path} -o BUNDLE`"
    raise ExportError(message, code="no_template")


def would_do(checkpoint_path: Path, options: ExportOptions) -> bool:
    """Return whether `bundle_checkpoint` makes the graphs that an export with these options makes.

    Raises
    ------
    CheckpointError
        When the file cannot be read safely, or is of no known family.
    """
    own = BundleOptions(**{field.name: getattr(options, field.name) for field in fields(BundleOptions)})
    if own.for_export() != replace(options, measure=True):
        return False
    family, config = recognise(survey_checkpoint(checkpoint_path).shapes)
    name = family_module(family).template_name(config)
    return (options.target or DEFAULT_TARGET) in template_targets(name)


def _expected(template: ArchitectureTemplate, config: Any) -> dict[str, tuple[bool, tuple[int, ...]]]:
    """Return the tensors that a checkpoint must have, its own sizes put in."""
    return {
        name: (floating, tuple(size if isinstance(size, int) else getattr(config, size) for size in shape))
        for name, (floating, shape) in template.tensors.items()
    }


def _fill(
    template: ArchitectureTemplate, weights: Weights, manifest: Manifest, folder: Path, size: tuple[int, int] | None
) -> dict[str, Path]:
    """Write every graph with its weights into a folder; return its files by graph."""
    files = {}
    for graph, parts in template.graphs.items():
        spec = manifest.contracts[graph]
        files[graph] = folder / f"{graph}.onnx"
        parts = parts if size is None else replace(parts, body=_of_size(parts.body, size))
        fill_graph(parts, spec, weights.state, files[graph], halves=weights.checkpoint.half_weights)
    return files


def _of_size(body: bytes, size_hw: tuple[int, int]) -> bytes:
    """Return a graph of any size as one of a fixed size, its shapes folded by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Basic rewriting stays within ONNX's own operators.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for name, size in zip(("height", "width"), size_hw, strict=True):
        options.add_free_dimension_override_by_name(name, size)
    with tempfile.TemporaryDirectory(prefix="segship-size-") as folder:
        path = Path(folder) / "fixed.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(body, options, providers=["CPUExecutionProvider"])
        return own_domain_only(path.read_bytes())


def self_check(manifest: Manifest, files: Mapping[str, Path]) -> list[Row]:
    """Let the graphs answer one case; return rows of how far those of them agree that answer the same question.

    Raises
    ------
    ExportError
        ``self_check`` when graphs disagree, an answer is not a finite number, or a published checkpoint does not give
        its stored answers.
    """
    task = task_module(manifest.task)
    cases = task.few(task.cases(manifest))
    with ExitStack() as stack:
        sessions: dict[str, Session] = {
            graph: stack.enter_context(open_graph(file, manifest.contracts[graph], once=True))
            for graph, file in files.items()
        }
        answers = task.answer(cases, sessions)
    bar = task.bar(EXACT)
    rows: list[Row] = task.agreement(SELF_CHECK, cases, answers, bar)
    stored = read_answers(manifest.checkpoint.sha256)
    if stored is not None:
        rows += task.compare_stored(f"{SELF_CHECK} against stored answers", answers, stored, bar)
    if failed := [str(row) for row in rows if not row.passed]:
        message = (
            f"with these weights the graphs do not agree with each other: {'; '.join(failed)}; nothing was written; "
            "give another checkpoint, or compare with torch: `segship export`"
        )
        raise ExportError(message, code="self_check")
    # A graph that is held against itself shows that its answers are finite, and nothing that is worth keeping.
    return [row for row in rows if row.figures.get("max_abs") != 0.0]
