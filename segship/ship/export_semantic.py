# SPDX-License-Identifier: Apache-2.0
"""From a SeMask-FPN checkpoint to a checked bundle, or to the Ascend guide's graph.

The contract ``ascend`` is what the Ascend guide for SeMask compiles: one graph for each batch, of one size, that takes
``image`` and gives ``output``, the classes' numbers in int64.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from segship.bundle import Bundle, write_bundle
from segship.bundle.measured import SemanticBar, SemanticComparison, SemanticStep
from segship.datasets.classes import read_class_file
from segship.errors import ExportError
from segship.semantic.preprocessing import ScaleLimits
from segship.ship.contracts import SemanticIndices, ascend_semantic_spec, describe_files, files_of, write_folder
from segship.ship.families.config import SemanticWindow
from segship.ship.families.semask.loading import LoadedSemask, choose_settings, describe_semask, load_semask
from segship.ship.families.semask.model import SemanticGraph
from segship.ship.graph.store import LARGEST_INLINE_BYTES, save_graph
from segship.ship.steps import GraphChange, check_opset, graph_steps, refuse_taken, take_steps
from segship.ship.tools import tool_versions
from segship.ship.verify_semantic import OPEN_SIZES, compare_semantic, run_semantic_reference
from segship.spec import GraphSpec, SemanticOutput, TensorSpec, semantic_spec
from segship.tune import tune_bundle

Contract = Literal["segship", "ascend"]
DEFAULT_OPSETS: dict[Contract, int] = {"segship": 18, "ascend": 14}
ASCEND_SIZE = (1024, 2048)
"""Of the guide, which has no other."""
SMALLEST_SIDE, LARGEST_SIDE = 32, 8192

SemanticReport = Callable[[str, Sequence[SemanticStep]], None]
"""Called after every step with its name and the rows of its comparison."""


@dataclass(frozen=True, slots=True)
class SemanticExportOptions:
    """How a semantic checkpoint is exported.

    Attributes
    ----------
    contract
        ``segship``: a bundle. ``ascend``: the graph that the Ascend guide compiles.
    size
        (height, width) of the only pictures that the graph takes; None takes any, for ``ascend`` the guide's own.
    batch
        Pictures in a run; None leaves it open. A bundle's is 1 or open, ``ascend`` has any number and 1 for None.
    output
        ``class_map``, or ``logits`` for windows, several scales and exact outlines. Bundles only.
    classes
        JSON file of the classes' names, where the checkpoint is of none of the known data sets.
    scale
        How large pictures are made; None is what the model was published with.
    semantic_window
        Stages whose semantic layer works in windows; None is the published rule.
    opset
        ONNX opset of the graph, 14 to 24; None is the contract's own.
    simplify
        Run onnxslim after tracing.
    licence
        Licence of the weights, for the manifest.
    force
        Replace a bundle that is already there.
    measure
        Measure the bundle in every installed backend and write into its manifest what came out.
    bar
        How far a graph may differ from its model.
    largest_inline_bytes
        Weights beyond this go into one sidecar file beside the graph.
    """

    contract: Contract = "segship"
    size: tuple[int, int] | None = None
    batch: int | None = None
    output: SemanticOutput = "class_map"
    classes: Path | None = None
    scale: ScaleLimits | None = None
    semantic_window: SemanticWindow | None = None
    opset: int | None = None
    simplify: bool = True
    licence: str | None = None
    force: bool = False
    measure: bool = True
    bar: SemanticBar = field(default_factory=SemanticBar)
    largest_inline_bytes: int = LARGEST_INLINE_BYTES

    def __post_init__(self) -> None:
        check_opset(self.graph_opset)
        if self.size is not None and not all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in self.size):
            height, width = self.size
            message = (
                f"a size of {height},{width} (height, width) cannot be exported; accepted are sides of {SMALLEST_SIDE} "
                f"to {LARGEST_SIDE} pixels, such as 1024,2048, or dynamic"
            )
            raise ExportError(message, code="bad_size")
        if self.batch is not None and self.batch != 1 and (self.contract == "segship" or self.batch < 1):
            message = (
                f"a batch of {self.batch} cannot be exported; a bundle's is 1 or dynamic, --contract ascend has any "
                "fixed number"
            )
            raise ExportError(message, code="bad_batch")
        if self.contract == "ascend" and (self.output != "class_map" or self.classes or self.scale):
            message = (
                "--output logits, --classes and --scale belong to bundles; the Ascend guide's graph gives the classes' "
                "numbers and holds neither names nor a scale"
            )
            raise ExportError(message, code="bad_option")

    @property
    def graph_opset(self) -> int:
        """The opset that the graph will have."""
        return DEFAULT_OPSETS[self.contract] if self.opset is None else self.opset


def export_semantic(
    checkpoint_path: Path,
    output: Path,
    options: SemanticExportOptions | None = None,
    report: SemanticReport | None = None,
) -> Bundle:
    """Export a SeMask-FPN checkpoint to a bundle.

    Parameters
    ----------
    checkpoint_path
        A ``.pth``, ``.pt`` or ``.safetensors`` file.
    output
        Folder to make. Nothing is left behind when anything fails.
    options
        See `SemanticExportOptions`; its ``contract`` must be ``segship``.
    report
        Called after every step with its comparison.

    Raises
    ------
    ExportError
        When a step fails; `ComparisonFailed` when the graph differs from the model by more than the bar.
    CheckpointError
        When the checkpoint cannot be used.
    OutputError
        When ``output`` exists and ``force`` is off, or cannot be written.
    """
    options = options or SemanticExportOptions()
    if options.contract != "segship":
        message = f"contract {options.contract!r} is no bundle; use segship.ship.export_semantic.export_ascend_semantic"
        raise ExportError(message, code="bad_option")
    refuse_taken(output, force=options.force)
    classes = None if options.classes is None else read_class_file(options.classes)
    model = load_semask(checkpoint_path, semantic_window=options.semantic_window)
    settings = choose_settings(model, classes, options.scale)
    spec = with_batch(semantic_spec(model.config.classes, options.output, options.size), options.batch)
    with tempfile.TemporaryDirectory(prefix="segship-export-") as folder:
        path = Path(folder) / "semantic.onnx"
        rows = _write_graph(model, SemanticGraph(model.semask, options.output), spec, path, options, report)
        manifest = describe_semask(
            model,
            settings,
            output=options.output,
            size=options.size,
            opset=options.graph_opset,
            comparison=SemanticComparison(bar=options.bar, steps=rows),
            licence=options.licence,
        )
        bundle = write_bundle(output, manifest, {"semantic": path}, force=options.force)
    return tune_bundle(bundle.path) if options.measure else bundle


def export_ascend_semantic(
    checkpoint_path: Path, output: Path, options: SemanticExportOptions, report: SemanticReport | None = None
) -> dict[str, Any]:
    """Export a SeMask-FPN checkpoint to the graph that the Ascend guide compiles; return what ``export.json`` holds.

    The folder holds ``NAME_bsB.onnx``, B being the batch, and ``export.json``. It is no bundle.

    Raises
    ------
    ExportError, CheckpointError, OutputError
        As `export_semantic`.
    """
    refuse_taken(output, force=options.force)
    model = load_semask(checkpoint_path, semantic_window=options.semantic_window)
    batch, size = options.batch or 1, options.size or ASCEND_SIZE
    spec = ascend_semantic_spec(batch, size)
    with tempfile.TemporaryDirectory(prefix="segship-export-") as folder:
        path = Path(folder) / f"{checkpoint_path.stem}_bs{batch}.onnx"
        rows = _write_graph(model, SemanticIndices(model.semask), spec, path, options, report)
        files = files_of([path])
        document = dict(
            contract=options.contract,
            opset=options.graph_opset,
            architecture=model.config.architecture,
            semantic_window=model.config.semantic_window,
            classes=model.config.classes,
            preprocessing={"pixel_mean": model.config.pixel_mean, "pixel_std": model.config.pixel_std},
            checkpoint={"name": model.checkpoint.path.name, "sha256": model.checkpoint.sha256},
            changes=list(model.changes),
            graphs={path.name: asdict(spec)},
            files=describe_files(files),
            tools=tool_versions(),
            comparison={"bar": options.bar.model_dump(), "steps": [row.model_dump() for row in rows]},
        )
        write_folder(output, files, document, force=options.force)
    return document


def with_batch(spec: GraphSpec, batch: int | None) -> GraphSpec:
    """Return a contract with its first axis fixed; as it is for None."""
    if batch is None:
        return spec

    def fixed(tensor: TensorSpec) -> TensorSpec:
        return TensorSpec(tensor.name, tensor.dtype, (batch, *tensor.shape[1:]))

    return GraphSpec(spec.name, tuple(map(fixed, spec.inputs)), tuple(map(fixed, spec.outputs)))


def _write_graph(
    model: LoadedSemask,
    module: nn.Module,
    spec: GraphSpec,
    path: Path,
    options: SemanticExportOptions,
    report: SemanticReport | None,
) -> list[SemanticStep]:
    """Write the graph step by step, compare it after each, and return the rows."""
    batch, *_, height, width = spec.inputs[0].shape
    fixed = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    sizes = OPEN_SIZES if fixed is None else (fixed,)
    cases = run_semantic_reference(model.semask, sizes, batch=batch if isinstance(batch, int) else None)

    def write_and_compare(step: str, change: GraphChange) -> Sequence[SemanticStep]:
        graph = change(module, spec, path)
        save_graph(graph, path, largest_inline_bytes=options.largest_inline_bytes)
        return compare_semantic(step, cases, graph, path, spec, options.bar)

    return take_steps(graph_steps(options, half_weights=model.checkpoint.half_weights), write_and_compare, report)
