# SPDX-License-Identifier: Apache-2.0
"""How a checkpoint is exported, and how a graph is held against another; the command line reads its options here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from segship.bundle.evidence import Bar
from segship.errors import ExportError, InputError, option, way
from segship.options import check_types
from segship.semantic.manifest import SemanticWindow
from segship.semantic.preprocessing import ScaleLimits
from segship.ship.graph.fill import LARGEST_INLINE_BYTES
from segship.spec import SemanticOutput

Contract = Literal["segship", "official", "ascend", "samexporter", "mnn", "nndeploy"]

DEFAULT_OPSETS: dict[str, dict[Contract, int]] = {
    "promptable": {"segship": 18, "official": 17, "ascend": 14, "samexporter": 17, "mnn": 18, "nndeploy": 18},
    "semantic": {"segship": 18, "ascend": 14},
}
"""By task; what the readers of each contract were written against."""
LOWEST_OPSET, HIGHEST_OPSET = 14, 24
SMALLEST_SIDE, LARGEST_SIDE = 32, 8192

_PROMPTABLE = {"task": "promptable"}
_SEMANTIC = {"task": "semantic"}


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How a checkpoint is exported; None is what the task or the contract has by itself.

    Attributes
    ----------
    contract
        segship: a bundle. official: the reference's decoder. ascend: the Ascend guides' graphs. samexporter: its pair.
        mnn, nndeploy: what `segship convert --target` of that name writes.
    opset
        ONNX opset, 14 to 24; the contract's own when left out (official and samexporter 17, ascend 14, others 18).
    simplify
        Run onnxslim on the traced graph.
    single_mask
        Promptable models, the other contracts: one mask, chosen by the reference's rule.
    image_size
        Promptable models: export for another model frame; position tables are resized and the change is recorded.
    licence
        Licence of the weights, for the manifest of a checkpoint that is not a published one.
    clean_masks
        Promptable models: whether the bundle cleans masks: keeps the clicked piece, fills small holes, clears outside
        the box. Off for all but tiny when left out.
    edges
        Promptable models: whether masks follow the picture's edges, as the bundle says; off for all but tiny when left
        out.
    target
        Promptable models: the engine that the encoder is written for: onnxruntime (when left out), openvino, or plain;
        any engine runs each of them.
    size
        Semantic models: (height, width) of the only pictures that the graph takes; any when left out.
    batch
        Semantic models: pictures in a run, 1 or any number (when left out); a fixed number with contract ascend.
    output
        Semantic models: class_map (when left out), or logits, which windows and several scales need.
    classes
        Semantic models: JSON file with the names of the classes, where they are none of a known data set's.
    scale
        Semantic models: the most that the longer and the shorter side of a picture become; what the model was
        published with when left out.
    semantic_window
        Semantic models: stages whose semantic layer works in windows. No weight shows it, and a wrong choice gives
        wrong class maps without complaint; the published rule when left out.
    measure
        Compare and time every installed backend on the finished bundle, for --backend auto; see `segship tune`.
    force
        Replace a bundle that is already there.
    bar
        How far a graph may differ from its model; the task's own bar when left out.
    largest_inline_bytes
        Weights beyond this go into one file beside the graph.
    """

    contract: Contract = "segship"
    opset: int | None = None
    simplify: bool = True
    single_mask: bool | None = field(default=None, metadata=_PROMPTABLE)
    image_size: int | None = field(default=None, metadata=_PROMPTABLE)
    licence: str | None = None
    clean_masks: bool | None = field(default=None, metadata=_PROMPTABLE)
    edges: bool | None = field(default=None, metadata=_PROMPTABLE)
    target: str | None = field(default=None, metadata=_PROMPTABLE)
    size: tuple[int, int] | None = field(default=None, metadata=_SEMANTIC)
    batch: int | None = field(default=None, metadata=_SEMANTIC)
    output: SemanticOutput | None = field(default=None, metadata=_SEMANTIC)
    classes: Path | None = field(default=None, metadata=_SEMANTIC)
    scale: ScaleLimits | None = field(default=None, metadata=_SEMANTIC)
    semantic_window: SemanticWindow | None = field(default=None, metadata=_SEMANTIC)
    measure: bool = True
    force: bool = False
    bar: Bar | None = None
    largest_inline_bytes: int = LARGEST_INLINE_BYTES

    def __post_init__(self) -> None:
        check_types(self, ExportError)
        if self.opset is not None and not LOWEST_OPSET <= self.opset <= HIGHEST_OPSET:
            message = f"opset {self.opset} cannot be written; accepted are {LOWEST_OPSET} to {HIGHEST_OPSET}"
            raise ExportError(message, code="bad_opset")
        if self.contract == "ascend" and (self.output == "logits" or self.classes or self.scale):
            raise _bad_option(
                way("output='logits', classes and scale", "--output logits, --classes and --scale")
                + " belong to bundles; the Ascend guide's graph gives the classes' "
                "numbers and holds neither names nor a scale"
            )
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_SIDE:
            message = f"image_size is {self.image_size}; accepted are up to {LARGEST_SIDE} pixels, such as 1024"
            raise ExportError(message, code="bad_image_size")
        self._check_size()

    def _check_size(self) -> None:
        if self.size is not None and not (
            len(self.size) == 2 and all(SMALLEST_SIDE <= side <= LARGEST_SIDE for side in self.size)
        ):
            size = ",".join(map(str, self.size))
            message = (
                f"a size of {size} (height, width) cannot be exported; accepted are sides of {SMALLEST_SIDE} "
                f"to {LARGEST_SIDE} pixels, such as 1024,2048, or dynamic"
            )
            raise ExportError(message, code="bad_size")
        if self.batch is not None and self.batch != 1 and (self.contract == "segship" or self.batch < 1):
            message = (
                f"a batch of {self.batch} cannot be exported; a bundle's is 1 or {way('None', 'dynamic')}, "
                f"{way('contract=', '--contract ')}ascend has any fixed number"
            )
            raise ExportError(message, code="bad_batch")

    def graph_opset(self, task: str) -> int:
        """Return the opset that the graphs of a model of some task will have."""
        return DEFAULT_OPSETS[task][self.contract] if self.opset is None else self.opset

    def check_task(self, task: str, source: Path) -> None:
        """Refuse options and contracts that models of the task do not have.

        Raises
        ------
        ExportError
            ``other_family``, naming them; ``bad_option`` for what a bundle does not have.
        """
        other = "promptable" if task == "semantic" else "semantic"
        given = [
            way(option.name, f"--{option.name.replace('_', '-')}")
            for option in fields(self)
            if option.metadata.get("task") == other and getattr(self, option.name) is not None
        ]
        contracts = DEFAULT_OPSETS[task]
        if given:
            message = f"{source} is a {task} model; leave out {', '.join(given)} ({other} models alone)"
            raise ExportError(message, code="other_family")
        if self.single_mask and self.contract == "segship":
            raise _bad_option(
                way("single_mask", "--single-mask")
                + " belongs to the contracts official, ascend, samexporter and mnn; a segship bundle always "
                "holds all four masks and chooses when it runs (multimask_output)"
            )
        if self.contract not in contracts:
            message = (
                f"{source} is a {task} model, and {way('contract ', '--contract ')}{self.contract} belongs to {other} "
                f"ones; accepted are {' and '.join(contracts)}"
            )
            raise ExportError(message, code="other_family")


def _bad_option(message: str) -> ExportError:
    return ExportError(message, code="bad_option")


@dataclass(frozen=True, slots=True)
class LocateOptions:
    """How a graph is held against its reference.

    Attributes
    ----------
    factor
        A tensor leaves its reference where its relative error is more than so many times that of what it is made of,
        and than what its precision rounds.
    memory_bytes
        The most that tensors of one run may take together; one that is larger goes alone.
    """

    factor: float = 10.0
    memory_bytes: int = 2**30

    def __post_init__(self) -> None:
        check_types(self)
        if not 1 < self.factor < math.inf:
            message = f"{option('factor')} is {self.factor:g}; accepted is a number above 1"
            raise InputError(message, code="bad_option")
