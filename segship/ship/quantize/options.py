# SPDX-License-Identifier: Apache-2.0
"""How a bundle is quantized; ``segship quantize`` reads its options from here, without onnx."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segship.backends import DEFAULT_BACKEND
from segship.bundle.artifacts import LowerPrecision
from segship.errors import InputError
from segship.options import check_types


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """How the graphs of a bundle become smaller or faster.

    Attributes
    ----------
    precision
        int8: layers compute with integers. int8-weights, int4-weights, fp16-weights: weights are stored so, the
        arithmetic stays fp32. fp16: arithmetic in float16 with float32 where its range ends.
    calibration
        Folder that `segship calibrate` wrote; drawn scenes when left out.
    backend
        The runtime in which the bar has to hold.
    mask_iou
        Promptable models: the mean IoU with the masks of fp32 that has to hold; that of the precision when left out.
    islands
        fp16: keep in float32 what ranges ask for. Without, all is float16, and what overflows is refused.
    accept_accuracy
        Write what misses its bar all the same; its certificate says fail.
    only
        Leave the artifacts of other precisions out of the bundle that is written.
    lean
        Leave out the graphs that a bundle can do without: promptable models are then slower in everything mode alone.
    force
        Replace a bundle that is already there.
    """

    precision: LowerPrecision = "int8"
    calibration: Path | None = None
    backend: str = DEFAULT_BACKEND
    mask_iou: float | None = None
    islands: bool = True
    accept_accuracy: bool = False
    only: bool = False
    lean: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.mask_iou is not None and not 0 < self.mask_iou <= 1:
            message = f"mask_iou is {self.mask_iou}; accepted is more than 0 and at most 1, such as 0.985"
            raise InputError(message, code="bad_option")
