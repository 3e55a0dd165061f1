# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint to a checked bundle: trace, simplify, lower, compare after every step, write whole or not at all.

The middle of the ship road. `export_bundle` writes segship's own contract; `segship.export_foreign` writes the graphs
that other people's programs expect.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import onnx
from torch import nn

from segship.backends.onnxruntime import Session
from segship.backends.session import SessionOptions
from segship.bundle import Bundle, write_bundle
from segship.bundle.measured import Comparison, ComparisonBar, ComparisonStep
from segship.errors import ExportError, OutputError
from segship.graph.halve import halve_exact_weights
from segship.graph.lower import LOWEST_OPSET, lower_opset
from segship.graph.save import LARGEST_INLINE_BYTES, save_graph
from segship.graph.simplify import simplify_graph
from segship.graph.trace import LOWEST_TRACED_OPSET, trace_graph
from segship.loading import SAM_PROMPT_RULES, describe_model, load_model
from segship.models.sam import ImageEncoderGraph, MaskDecoderGraph
from segship.models.shared_decoder import ImageSideGraph, SelectiveDecoderGraph
from segship.models.variants import apply_variant, find_variant
from segship.spec import GraphSpec, image_encoder_spec, image_side_spec, mask_decoder_spec, selective_decoder_spec
from segship.tune import tune_bundle
from segship.verify import compare_sam, require_passed, run_reference

HIGHEST_OPSET = 24
Contract = Literal["segship", "official", "ascend", "samexporter"]
# What the readers of each contract were written against.
DEFAULT_OPSETS: dict[Contract, int] = {"segship": 18, "official": 17, "ascend": 14, "samexporter": 17}

# Graphs that differ between targets.
VARIED_GRAPHS = ("image_encoder", "selective_decoder")
# The exporter must know some bound of each axis; nobody comes near these.
MOST_PROMPTS = {"objects": 1 << 16, "points": 1 << 16}

Report = Callable[[str, Sequence[ComparisonStep]], None]
"""Called after every step with its name and the rows of its comparison."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a checkpoint is exported.

    Attributes
    ----------
    contract
        ``segship``: a bundle with our graphs. ``official``, ``ascend``, ``samexporter``: the graphs of those programs.
    opset
        ONNX opset of the graphs, 14 to 24; None is the contract's own, see `DEFAULT_OPSETS`.
    simplify
        Run onnxslim after tracing.
    single_mask
        For the other contracts: one mask an object, chosen by the reference's rule.
    image_size
        Another model frame than the checkpoint's; position tables are resized and the change is recorded.
    target
        The engine that the graphs shall suit best: one of `segship.models.variants.VARIANTS`; they run in all.
    licence
        Licence of the weights for the manifest, where they are not a published file whose licence is known.
    clean_masks
        Whether the bundle cleans prompted masks (`segship.masks.cleanup`); None is as the architecture has it, which is
        off for all but tiny.
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
    opset: int | None = None
    simplify: bool = True
    single_mask: bool = False
    image_size: int | None = None
    target: str = "onnxruntime"
    licence: str | None = None
    clean_masks: bool | None = None
    force: bool = False
    measure: bool = True
    bar: ComparisonBar = field(default_factory=ComparisonBar)
    largest_inline_bytes: int = LARGEST_INLINE_BYTES

    @property
    def graph_opset(self) -> int:
        """The opset that the graphs will have."""
        return DEFAULT_OPSETS[self.contract] if self.opset is None else self.opset


def export_bundle(
    checkpoint_path: Path, output: Path, options: ExportOptions | None = None, report: Report | None = None
) -> Bundle:
    """Export a checkpoint to a bundle.

    Parameters
    ----------
    checkpoint_path
        A ``.pth``, ``.pt`` or ``.safetensors`` file.
    output
        Folder to make. Nothing is left behind when anything fails.
    options
        See `ExportOptions`; its ``contract`` must be ``segship``.
    report
        Called after every step with its comparison.

    Raises
    ------
    ExportError
        When a step fails; `ComparisonFailed` when a graph differs from the model by more than the bar.
    CheckpointError
        When the checkpoint cannot be used.
    OutputError
        When ``output`` exists and ``force`` is off, or cannot be written.
    """
    options = options or ExportOptions()
    if options.contract != "segship":
        raise ExportError(f"contract {options.contract!r} is no bundle; use segship.export_foreign", code="bad_option")
    check_options(options)
    refuse_taken(output, force=options.force)
    model = load_model(checkpoint_path, image_size=options.image_size)
    geometry = model.config.geometry
    # The reference computes as the published code does; only the graphs follow the target's variant.
    reference = run_reference(model.sam, SAM_PROMPT_RULES)
    variant = find_variant(options.target)
    apply_variant(model.sam, variant)
    parts: dict[str, tuple[nn.Module, GraphSpec]] = {
        "image_encoder": (ImageEncoderGraph(model.sam), image_encoder_spec(geometry)),
        "mask_decoder": (MaskDecoderGraph(model.sam), mask_decoder_spec(geometry)),
        "image_side": (ImageSideGraph(model.sam), image_side_spec(geometry)),
        "selective_decoder": (SelectiveDecoderGraph(model.sam), selective_decoder_spec(geometry)),
    }
    rows: list[ComparisonStep] = []
    with tempfile.TemporaryDirectory(prefix="segship-export-") as folder:
        largest = {"rows": geometry.embedding_size, "columns": geometry.embedding_size, **MOST_PROMPTS}
        for step, change in graph_steps(options, half_weights=model.half_weights, largest_sizes=largest):
            for name, (module, spec) in parts.items():
                path = Path(folder) / f"{name}.onnx"
                save_graph(change(module, spec, path), path, largest_inline_bytes=options.largest_inline_bytes)
            sessions = {name: open_session(Path(folder) / f"{name}.onnx", spec) for name, (_, spec) in parts.items()}
            compared = compare_sam(step, reference, sessions, options.bar)
            rows.extend(compared)
            if report is not None:
                report(step, compared)
            require_passed(compared)
        manifest = describe_model(
            model,
            opset=options.graph_opset,
            comparison=Comparison(bar=options.bar, steps=rows),
            licence=options.licence,
            clean_masks=options.clean_masks,
        )
        graphs = {name: Path(folder) / f"{name}.onnx" for name in parts}
        bundle = write_bundle(
            output, manifest, graphs, variants=dict.fromkeys(VARIED_GRAPHS, variant.name), force=options.force
        )
    return tune_bundle(bundle.path) if options.measure else bundle


class GraphOptions(Protocol):
    """What options of any family say about the steps."""

    @property
    def simplify(self) -> bool:
        """Whether there is a step for onnxslim."""

    @property
    def graph_opset(self) -> int:
        """The opset that graphs will have."""


GraphChange = Callable[[nn.Module, GraphSpec, Path], onnx.ModelProto]


def graph_steps(
    options: GraphOptions,
    *,
    half_weights: bool = False,
    largest_sizes: Mapping[str, int] | None = None,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
) -> list[tuple[str, GraphChange]]:
    """Return the steps that make a graph, in order: the name of each, and what makes the next graph from the last.

    Parameters
    ----------
    options
        Which steps there are.
    half_weights
        The checkpoint was saved in half precision, so its weights are stored so again.
    largest_sizes
        Upper bounds of dynamic axes, for tracing.
    finish
        Nodes written by hand after tracing.
    """

    def trace(module: nn.Module, spec: GraphSpec, _: Path) -> onnx.ModelProto:
        model = trace_graph(module, spec, opset=options.graph_opset, largest_sizes=largest_sizes)
        return model if finish is None else finish(model)

    steps: list[tuple[str, GraphChange]] = [("traced", trace)]
    if options.simplify:
        steps.append(("simplified", lambda _module, _spec, path: simplify_graph(onnx.load(str(path)))))
    if options.graph_opset < LOWEST_TRACED_OPSET:
        lowered = f"lowered to opset {options.graph_opset}"
        steps.append((lowered, lambda _module, _spec, path: lower_opset(onnx.load(str(path)), options.graph_opset)))
    if half_weights:
        steps.append(("exact weights as fp16", lambda _module, _spec, path: _halved(path)))
    return steps


def _halved(path: Path) -> onnx.ModelProto:
    model = onnx.load(str(path))
    halve_exact_weights(model)
    return model


def check_options(options: ExportOptions) -> None:
    """Refuse options outside their range before any work is done."""
    if not LOWEST_OPSET <= options.graph_opset <= HIGHEST_OPSET:
        raise ExportError(
            f"opset {options.opset} cannot be written; accepted are {LOWEST_OPSET} to {HIGHEST_OPSET}", code="bad_opset"
        )
    if options.single_mask and options.contract == "segship":
        raise ExportError(
            "--single-mask belongs to the contracts official, ascend and samexporter; a segship bundle always holds "
            "all four masks and chooses when it runs (multimask_output)",
            code="bad_option",
        )


def refuse_taken(output: Path, *, force: bool) -> None:
    """Refuse a folder that is there already, before minutes of work are spent on it."""
    if output.exists() and not force:
        raise OutputError(
            f"{output} exists; choose another folder, or replace a bundle with --force", code="output_exists"
        )


def open_session(path: Path, spec: GraphSpec) -> Session:
    """Load a graph of the export in ONNX Runtime, which every comparison runs in."""
    return Session(path, spec, SessionOptions())
