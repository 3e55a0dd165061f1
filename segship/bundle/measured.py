# SPDX-License-Identifier: Apache-2.0
"""What a manifest says was measured: how close graphs are to their model, and how fast each backend runs them where.

The comparison of an export guards the graphs; the checks of backends guard what runs them, and are what
`segship.backends.choice` decides ``backend="auto"`` by. `segship.tune` makes them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Words = Annotated[str, Field(max_length=4096)]
Label = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
Milliseconds = Annotated[float, Field(gt=0)]


class MeasuredEntry(BaseModel):
    """Strict: unknown keys, wrong types and numbers that are not finite are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class ComparisonBar(MeasuredEntry):
    """How far a graph may differ from the float32 model it was made from.

    ``cosine`` and ``max_abs`` hold for tensors, the latter as a part of the tensor's largest magnitude; the others for
    masks at image size.
    """

    cosine: float = 0.999999
    max_abs: float = 1e-3
    mask_iou_mean: float = 0.9995
    mask_iou_min: float = 0.99


class ComparisonStep(MeasuredEntry):
    """What was measured after one step of the ship road; figures that do not apply are null."""

    # A graph that answers NaN must be reportable; what is read from a file has no NaN in any case.
    model_config = ConfigDict(allow_inf_nan=True)

    step: Words
    graph: Words
    what: Words
    cases: Annotated[int, Field(ge=0)]
    cosine: float | None
    max_abs: float | None
    scale: float | None
    mask_iou_mean: float | None
    mask_iou_min: float | None
    passed: bool


class Comparison(MeasuredEntry):
    """All measurements of an export, against one bar."""

    bar: ComparisonBar
    steps: list[ComparisonStep]


class BackendCheck(MeasuredEntry):
    """One backend in one precision on one machine: whether its masks are the graphs' own, and how long they take.

    ``encode_ms`` and ``decode_ms`` are the fastest runs of one image and of eight one-click objects in one call, pixels
    in and logits out. They are null where the backend could not run at all, and ``problem`` says why.
    """

    backend: Label
    version: Words
    precision: Label
    cpu: Words
    threads: Annotated[int, Field(ge=1)]
    load_ms: Milliseconds | None
    encode_ms: Milliseconds | None
    decode_ms: Milliseconds | None
    bar: ComparisonBar
    comparison: list[ComparisonStep]
    passed: bool
    problem: Words | None = None

    @property
    def milliseconds(self) -> float:
        """What backends are compared by: one image and eight clicks; infinite where nothing ran."""
        if self.encode_ms is None or self.decode_ms is None:
            return float("inf")
        return self.encode_ms + self.decode_ms

    @property
    def timed(self) -> str:
        """What `milliseconds` are the time of, in words."""
        return "an image and eight clicks"


class SemanticBar(MeasuredEntry):
    """How far a semantic graph may differ from the float32 model it was made from.

    ``cosine`` and ``max_abs`` hold for logits, the latter as a part of their largest magnitude; ``pixels_equal`` is the
    part of all pixels whose class must be the same.
    """

    cosine: float = 0.999999
    max_abs: float = 1e-3
    pixels_equal: float = 0.9999


class SemanticStep(MeasuredEntry):
    """What was measured of a semantic graph after one step; figures that do not apply are null."""

    # A graph that answers NaN must be reportable; what is read from a file has no NaN in any case.
    model_config = ConfigDict(allow_inf_nan=True)

    step: Words
    graph: Words
    what: Words
    cases: Annotated[int, Field(ge=0)]
    cosine: float | None
    max_abs: float | None
    scale: float | None
    pixels_equal: float | None
    passed: bool


class SemanticComparison(MeasuredEntry):
    """All measurements of an export of a semantic model, against one bar."""

    bar: SemanticBar
    steps: list[SemanticStep]


class SemanticCheck(MeasuredEntry):
    """One backend in one precision on one machine: whether its class maps are the graph's own, and how long one takes.

    ``segment_ms`` is the fastest run of the graph on one picture of ``size``, (height, width): tensor in, answer out.
    Times are null where the backend could not run at all, and ``problem`` says why.
    """

    backend: Label
    version: Words
    precision: Label
    cpu: Words
    threads: Annotated[int, Field(ge=1)]
    size: tuple[int, int]
    load_ms: Milliseconds | None
    segment_ms: Milliseconds | None
    bar: SemanticBar
    comparison: list[SemanticStep]
    passed: bool
    problem: Words | None = None

    @property
    def milliseconds(self) -> float:
        """What backends are compared by: one picture; infinite where nothing ran."""
        return float("inf") if self.segment_ms is None else self.segment_ms

    @property
    def timed(self) -> str:
        """What `milliseconds` are the time of, in words."""
        return f"a picture of {self.size[1]} x {self.size[0]}"


AnyStep = ComparisonStep | SemanticStep
AnyCheck = BackendCheck | SemanticCheck
