# SPDX-License-Identifier: Apache-2.0
"""What is wanted of a picture: the reference's parameters under their own names, and what segship adds to them.

Names and defaults follow segment_anything/automatic_mask_generator.py. Every value is checked when the options are
made, and means what it says: zero is zero, and a threshold of zero filters nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from segship.errors import InputError, option, way
from segship.promptable.everything.records import OUTPUT_MODES, OutputMode, bad_output_mode
from segship.spec import Part

if TYPE_CHECKING:
    from segship.promptable.predictor import Predictor

Mode = Literal["fast", "reference", "hierarchical"]
Nms = Literal["box", "mask"]

ALIKE_POINTS = 4
"""So many points must have found a mask before mode ``hierarchical`` leaves others out for it."""
ALIKE = 0.9
"""IoU of boxes, and ratio of areas, from which it takes two masks for the same."""

# What force_cost may take; `segship.promptable.everything.cost` says what is begun without.
_MOST_POINTS_PER_SIDE = 1024
_MOST_POINTS_PER_BATCH = 65_536
# 5 layers are 1,365 crops, each of them a run of the encoder.
_MOST_CROP_LAYERS = 5


@dataclass(frozen=True, slots=True, eq=False)
class AmgOptions:
    """Parameters of one call for everything in a picture.

    Attributes
    ----------
    points_per_side
        Points along one side of the grid that is asked; None goes with ``point_grids``.
    points_per_batch
        The most points that the decoder takes at once; results do not depend on it.
    pred_iou_thresh
        Keep masks whose predicted IoU is above it, with 0 all; when left out, what suits the model, which is 0.88
        unless its manifest says otherwise.
    stability_score_thresh
        Keep masks whose stability score is at least this; when left out, what suits the model, as a rule 0.95.
    stability_score_offset
        How far the mask threshold moves for the stability score, in logits.
    box_nms_thresh
        Of two masks of one crop with a larger IoU, the one with the lower predicted IoU goes; when left out, what suits
        the model, as a rule 0.7.
    crop_n_layers
        Layers of crops that are looked at besides the whole image; layer i has (2^i)^2 crops.
    crop_nms_thresh
        Of two masks of different crops with a larger IoU, the one of the larger crop goes.
    crop_overlap_ratio
        Overlap of the crops of the first layer, as a part of the shorter side; less in later layers.
    crop_n_points_downscale_factor
        Divides points per side in each further layer.
    point_grids
        One array (n, 2) a layer, x y from 0 to 1; instead of ``points_per_side``.
    min_mask_region_area
        Fill holes and drop islands of fewer pixels, then remove new duplicates; 0 leaves masks as they are.
    output_mode
        What ``segmentation`` is where records are turned into dicts; see
        `segship.promptable.everything.records.OutputMode`.
    mode
        ``fast`` filters low-resolution logits and upscales only what is left; ``reference`` does everything at image
        size, and gives exactly what the reference gives. ``hierarchical`` is ``fast`` on a part of each grid: every
        fourth row and column is asked first, then every second, then the rest, each time without the points that are
        settled. A point is settled if it, and the places a step of the grid to its four sides, lie in one mask that
        passed the filters and that `ALIKE_POINTS` points have found alike: with an IoU of its boxes and a ratio of its
        areas of at least `ALIKE`.
    nms
        Compare boxes to find duplicates, as the reference does, or the masks themselves; when left out, what suits the
        model, as a rule boxes.
    edges
        Let the picture decide the borders of masks, by `segship.masks.edges`, after duplicates are removed; not in mode
        ``reference``. When left out, what suits the model, as a rule not.
    partition
        No two masks overlap: each pixel goes to the smallest mask that has it.
    deadline_seconds
        Seconds for each picture: a coarse grid first, then finer ones where no mask is yet, and stop in time. Only in
        mode ``fast``.
    memory_bytes
        The most memory for the work, beside the model: smaller portions, or a refusal to begin.
    force_cost
        Begin whatever it costs: more than 64 x 64 points a crop, more than 2 layers of crops, more memory than half of
        the machine's, or more than an hour at the speed of the first points; each is refused as ``over_cost`` without.
    refine
        Ask each mask that is left once more, by its box and the mask itself, and take the answer in its place, with its
        scores; filters and the search for duplicates then see the answers. Not in mode ``reference``. When left out,
        what suits the model, as a rule not.
    refine_iou_thresh
        Keep refined masks whose predicted IoU is above it, with 0 all; when left out, what suits the model, as a rule
        0.88. ``pred_iou_thresh`` then says which are asked once more.

    Raises
    ------
    InputError
        ``bad_amg_option``, with the name of the parameter, or ``bad_output_mode``.

    Examples
    --------
    >>> AmgOptions(points_per_side=16).crop_n_layers
    0
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    stability_score_offset: float = 1.0
    box_nms_thresh: float | None = None
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[npt.ArrayLike] | None = None
    min_mask_region_area: float = 0
    output_mode: OutputMode = "binary_mask"
    mode: Mode = "fast"
    nms: Nms | None = None
    edges: bool | None = None
    partition: bool = False
    deadline_seconds: float | None = None
    memory_bytes: int | None = None
    force_cost: bool = False
    refine: bool | None = None
    refine_iou_thresh: float | None = None

    def __post_init__(self) -> None:
        _check_whole("points_per_batch", self.points_per_batch, 1, _MOST_POINTS_PER_BATCH)
        _check_whole("crop_n_layers", self.crop_n_layers, 0, _MOST_CROP_LAYERS)
        _check_whole("crop_n_points_downscale_factor", self.crop_n_points_downscale_factor, 1, _MOST_POINTS_PER_SIDE)
        for name in ("crop_nms_thresh", "crop_overlap_ratio"):
            _check_number(name, getattr(self, name), 0, 1)
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "refine_iou_thresh"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), 0, 1)
        _check_number("stability_score_offset", self.stability_score_offset, 0, 1e6)
        _check_number("min_mask_region_area", self.min_mask_region_area, 0, 1e12)
        self._check_choices()
        self._check_points()
        self._check_bounds()

    def _check_choices(self) -> None:
        if self.output_mode not in OUTPUT_MODES:
            raise bad_output_mode(self.output_mode)
        _check_choice("mode", self.mode, get_args(Mode))
        for name in ("edges", "refine"):
            if type(getattr(self, name)) not in (bool, type(None)):
                raise _bad(name, getattr(self, name), "True, False, or None for what suits the model")
            if getattr(self, name) and self.mode == "reference":
                raise _bad(name, getattr(self, name), "False in mode 'reference', whose masks are the reference's")
        if self.nms is not None:
            _check_choice("nms", self.nms, get_args(Nms))
        for name in ("partition", "force_cost"):
            if type(getattr(self, name)) is not bool:
                raise _bad(name, getattr(self, name), "True or False")

    def _check_points(self) -> None:
        if (self.points_per_side is None) == (self.point_grids is None):
            found = "both are given" if self.point_grids is not None else "both are None"
            raise InputError(
                f"{option('points_per_side')} and {option('point_grids')}: {found}; give exactly one of the two, "
                + way(
                    "points_per_side=None beside point_grids", "and leave out --points-per-side beside --point-grids"
                ),
                code="bad_amg_option",
            )
        if self.points_per_side is not None:
            _check_whole("points_per_side", self.points_per_side, 1, _MOST_POINTS_PER_SIDE)
            last = self.points_per_side // self.crop_n_points_downscale_factor**self.crop_n_layers
            if last < 1:
                raise _bad(
                    "crop_n_points_downscale_factor",
                    self.crop_n_points_downscale_factor,
                    f"a factor that leaves a point of {self.points_per_side} in layer {self.crop_n_layers}",
                )
        if self.point_grids is not None:
            self._check_grids(self.point_grids)

    def _check_grids(self, grids: Sequence[npt.ArrayLike]) -> None:
        if isinstance(grids, str) or not isinstance(grids, Sequence | np.ndarray):
            raise _bad("point_grids", type(grids).__name__, "a list of arrays (n, 2), one for each layer")
        if len(grids) <= self.crop_n_layers:
            accepted = f"one grid for the image and one for each of {self.crop_n_layers} crop layers"
            raise _bad("point_grids", f"{len(grids)} grids", accepted)
        for index, grid in enumerate(grids):
            try:
                array = np.asarray(grid)
            except ValueError as error:
                raise _bad(f"point_grids[{index}]", "a ragged list", "(n, 2) numbers from 0 to 1") from error
            if array.ndim != 2 or array.shape[1] != 2 or not len(array) or array.dtype.kind not in "iuf":
                found = f"an array of {array.dtype} with the shape {array.shape}"
                raise _bad(f"point_grids[{index}]", found, "(n, 2) numbers from 0 to 1")
            # Written so that NaN fails it too.
            if not ((array >= 0) & (array <= 1)).all():
                raise _bad(f"point_grids[{index}]", "a coordinate outside", "numbers from 0 to 1, parts of the crop")

    def _check_bounds(self) -> None:
        if self.deadline_seconds is not None:
            _check_number("deadline_seconds", self.deadline_seconds, 0, 1e9)
            if self.deadline_seconds == 0:
                raise _bad("deadline_seconds", 0, "seconds above 0, or None for no deadline")
            if self.mode != "fast":
                reason = "looks at it all" if self.mode == "reference" else "has an order of its own"
                raise _bad("deadline_seconds", self.deadline_seconds, f"None in mode {self.mode!r}, which {reason}")
        if self.memory_bytes is not None:
            _check_whole("memory_bytes", self.memory_bytes, 1, 1 << 60)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What everything mode keeps; a model may have thresholds of its own, and these defaults are SAM's.

    Attributes
    ----------
    pred_iou_thresh, stability_score_thresh, box_nms_thresh, nms, edges, refine, refine_iou_thresh
        See `AmgOptions`; thresholds from 0 to 1.
    """

    pred_iou_thresh: Part = 0.88
    stability_score_thresh: Part = 0.95
    box_nms_thresh: Part = 0.7
    nms: Nms = "box"
    edges: bool = False
    refine: bool = False
    refine_iou_thresh: Part = 0.88


def thresholds_for(predictor: Predictor, options: AmgOptions) -> Thresholds:
    """Return what a call keeps: what the options say, else what the model's manifest says, else SAM's.

    In mode ``reference`` the manifest's two thresholds hold alone: all else is the reference's.
    """
    own = predictor.manifest.amg_defaults or Thresholds()
    if options.mode == "reference":
        own = Thresholds(own.pred_iou_thresh, own.stability_score_thresh)
    names = [field.name for field in fields(Thresholds)]
    given: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    given |= {name: float(value) for name, value in given.items() if name.endswith("thresh")}
    return replace(own, **given)


COMMAND_NAMES = {"memory_bytes": "--memory", "deadline_seconds": "--deadline"}
"""Fields that the command line takes in units of its own."""


def _check_whole(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
        raise _bad(name, value, f"a whole number from {least} to {most}")


def _check_number(name: str, value: object, least: float, most: float) -> None:
    accepted = f"a number from {least:g} to {most:g}"
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise _bad(name, value, accepted)
    if not least <= float(value) <= most:
        raise _bad(name, value, accepted)


def _check_choice(name: str, value: object, accepted: Sequence[str]) -> None:
    if value not in accepted:
        raise _bad(name, value, " or ".join(repr(choice) for choice in accepted))


def _bad(name: str, found: object, accepted: str) -> InputError:
    shown = found if isinstance(found, str) and " " in found else repr(found)
    said = option(name, COMMAND_NAMES.get(name)) if name.isidentifier() else name
    return InputError(f"{said} is {shown}; accepted is {accepted}", code="bad_amg_option")
