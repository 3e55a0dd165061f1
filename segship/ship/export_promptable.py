# SPDX-License-Identifier: Apache-2.0
"""From a SAM checkpoint to a checked bundle: the steps, a comparison after each, a folder whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from segship.backends.onnxruntime import Session
from segship.backends.session import SessionOptions
from segship.bundle import Bundle, write_bundle
from segship.bundle.measured import Comparison, ComparisonBar, ComparisonStep
from segship.errors import ExportError
from segship.ship.families.sam.loading import SAM_PROMPT_RULES, describe_model, load_model
from segship.ship.families.sam.model import ImageEncoderGraph, MaskDecoderGraph
from segship.ship.families.sam.shared_decoder import ImageSideGraph, SelectiveDecoderGraph
from segship.ship.graph.store import LARGEST_INLINE_BYTES, save_graph
from segship.ship.steps import GraphChange, check_opset, graph_steps, refuse_taken, take_steps
from segship.ship.variants import apply_variant, find_variant
from segship.ship.verify_promptable import compare_sam, run_reference
from segship.spec import GraphSpec, image_encoder_spec, image_side_spec, mask_decoder_spec, selective_decoder_spec
from segship.tune import tune_bundle

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
        The engine that the graphs shall suit best: one of `segship.ship.variants.VARIANTS`; they run in all.
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

    def __post_init__(self) -> None:
        check_opset(self.graph_opset)
        if self.single_mask and self.contract == "segship":
            raise ExportError(
                "--single-mask belongs to the contracts official, ascend and samexporter; a segship bundle always "
                "holds all four masks and chooses when it runs (multimask_output)",
                code="bad_option",
            )

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
        raise ExportError(
            f"contract {options.contract!r} is no bundle; use segship.ship.contracts.export_foreign", code="bad_option"
        )
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
    largest = {"rows": geometry.embedding_size, "columns": geometry.embedding_size, **MOST_PROMPTS}
    with tempfile.TemporaryDirectory(prefix="segship-export-") as folder:
        graphs = {name: Path(folder) / f"{name}.onnx" for name in parts}

        def write_and_compare(step: str, change: GraphChange) -> Sequence[ComparisonStep]:
            for name, (module, spec) in parts.items():
                graph = change(module, spec, graphs[name])
                save_graph(graph, graphs[name], largest_inline_bytes=options.largest_inline_bytes)
            sessions = {name: open_session(graphs[name], spec) for name, (_, spec) in parts.items()}
            return compare_sam(step, reference, sessions, options.bar)

        steps = graph_steps(options, half_weights=model.checkpoint.half_weights, largest_sizes=largest)
        rows = take_steps(steps, write_and_compare, report)
        manifest = describe_model(
            model,
            opset=options.graph_opset,
            comparison=Comparison(bar=options.bar, steps=rows),
            licence=options.licence,
            clean_masks=options.clean_masks,
        )
        bundle = write_bundle(
            output, manifest, graphs, variants=dict.fromkeys(VARIED_GRAPHS, variant.name), force=options.force
        )
    return tune_bundle(bundle.path) if options.measure else bundle


def open_session(path: Path, spec: GraphSpec) -> Session:
    """Load a graph of the export in ONNX Runtime, which every comparison runs in."""
    return Session(path, spec, SessionOptions())
