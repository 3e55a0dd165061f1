# SPDX-License-Identifier: Apache-2.0
"""As much as there is time for: a coarse grid first, then finer ones where no mask is yet, and a stop in time.

What is asked first is spread over the whole image, so a short time gives the large things everywhere rather than all
things in one corner. Without a deadline nothing of this is used.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Never

import numpy as np

from segship.arrays import Points, Size
from segship.errors import InputError, SegshipWarning
from segship.images import FileAsRead, ImageLimits, ImageSource, LoadedImage, read_image
from segship.promptable.everything.cost import AmgCost, check_cost, estimate_cost
from segship.promptable.everything.crops import FILTERS, Context, CropSearch, Progress
from segship.promptable.everything.filters import (
    clean_small_regions,
    coverage,
    crop_score,
    keep_best,
    partition_records,
)
from segship.promptable.everything.grids import Crop, coarse_to_fine, crop_boxes, layer_grids
from segship.promptable.everything.options import AmgOptions, thresholds_for
from segship.promptable.everything.records import MaskRecord, MaskRecords
from segship.promptable.prediction import ImageEmbedding

if TYPE_CHECKING:
    from segship.promptable.predictor import Predictor

# A step may take longer than the longest before it: other work on the machine, larger masks.
_CAUTION = 1.5
# Time to make a found mask as large as the image: about 1 ns a pixel, twice that where outlines are ragged.
_SECONDS_PER_PIXEL = 2e-9


class Deadline:
    """A point in time, and whether anything was left out because of it.

    Parameters
    ----------
    at
        As `time.monotonic` counts.
    """

    def __init__(self, at: float) -> None:
        self.reached = False
        self._at = at

    def allows(self, seconds: float) -> bool:
        """Return whether so much more work ends in time; if not, that is remembered."""
        in_time = time.monotonic() + seconds <= self._at
        self.reached |= not in_time
        return in_time


def ask_coarse_to_fine(context: Context, deadline: Deadline) -> list[MaskRecord]:
    """Return records of the crops, the whole image first, as far as the time goes.

    The first portion of the coarsest grid is asked in any case, so a picture is never left without an answer for lack
    of time alone.
    """
    grids = layer_grids(context.options)
    finished: list[CropSearch] = []
    slowest_encode = 0.0
    for crop in _crops(context):
        if finished and not deadline.allows(_CAUTION * slowest_encode + _time_to_finish(finished, context)):
            break
        if finished and not _is_open(finished[0], crop, grids[crop.layer]):
            continue
        began = time.monotonic()
        search = CropSearch(context, crop)
        slowest_encode = max(slowest_encode, time.monotonic() - began)
        finished.append(search)
        _ask_portions(search, finished, context, deadline)
    return [record for search in finished for record in search.records()]


def _ask_portions(search: CropSearch, finished: Sequence[CropSearch], context: Context, deadline: Deadline) -> None:
    per_call, slowest = context.cost.points_per_call, 0.0
    for waiting in coarse_to_fine(search.grid):
        while len(waiting := waiting[~search.covered(search.points[waiting])]):
            is_first = len(finished) == 1 and slowest == 0.0
            if not is_first and not deadline.allows(_CAUTION * slowest + _time_to_finish(finished, context)):
                return
            began = time.monotonic()
            search.ask(waiting[:per_call])
            waiting = waiting[per_call:]
            slowest = max(slowest, time.monotonic() - began)


def _time_to_finish(finished: Sequence[CropSearch], context: Context) -> float:
    height, width = context.size_hw
    seconds = _SECONDS_PER_PIXEL * height * width
    if context.thresholds.refine:
        # Fewer are asked once more than there are candidates, and each takes longer than a point.
        seconds += context.seconds_per_point
    return seconds * sum(len(search.candidates) for search in finished)


def _is_open(whole: CropSearch, crop: Crop, grid: Points) -> bool:
    """Return whether a point of the crop lies where nothing was found in the whole image."""
    left, top, _, _ = crop.box_xyxy
    points = grid * np.array(crop.size_hw[::-1]) + np.array([left, top])
    return bool((~whole.covered(points)).any())


DEADLINE_REACHED = "deadline_reached"
ALL_FILTERED = "all_filtered"
NOTES = {
    DEADLINE_REACHED: "there was no time for all points, and things may be missing",
    ALL_FILTERED: "no mask has passed the filters; lower their thresholds",
}
"""What the notes of everything mode mean."""


@dataclass(frozen=True, slots=True, eq=False)
class AmgResult:
    """Everything in one picture.

    Attributes
    ----------
    records
        The masks, in the reference's order: by descending predicted IoU, those of smaller crops first.
    size
        Height and width of the image, in pixels.
    coverage
        Which part of the image lies in at least one mask, 0 to 1.
    cost
        What was expected before the work began.
    points
        Points that were really asked; fewer than expected if there was a deadline.
    notes
        What was noticed: notes of the image, ``deadline_reached`` if points were left out for lack of time, and
        ``all_filtered`` if no mask has passed the filters.
    image_path
        The file that the image was read from, if it was one.
    removed
        Masks that each of ``pred_iou_thresh``, ``stability_score_thresh``, ``crop_edge`` and ``refine_iou_thresh`` has
        removed.
    what_was_filtered
        Words for a picture without a mask: what removed how many, and what suits the model; else nothing.
    """

    records: tuple[MaskRecord, ...] = field(repr=False)
    size: Size
    coverage: float
    cost: AmgCost
    points: int
    notes: tuple[str, ...] = ()
    image_path: str | Path | FileAsRead | None = None
    removed: Mapping[str, int] = field(default_factory=dict)
    what_was_filtered: str = ""


def generate(
    predictor: Predictor,
    image: ImageSource | ImageEmbedding,
    options: AmgOptions | None = None,
    *,
    limits: ImageLimits | None = None,
    progress: Progress | None = None,
) -> AmgResult:
    """Find everything in a picture, and say how much of it is covered and what it took.

    Takes what `generate_masks` does, and tells ``progress``.

    Raises
    ------
    ImageError, InputError
        When the image cannot be read, cannot be cut into so many crops, or ``memory_bytes`` does not suffice;
        ``over_cost`` when it takes more than is begun without ``force_cost``; ``needs_image`` for an embedding's crops.
    PromptError
        ``foreign_embedding`` when another encoder made it.
    """
    started, options = time.monotonic(), options or AmgOptions()
    source = _read(predictor, image, options, limits)
    return generate_loaded(predictor, source, options, progress=progress, started=started)


def generate_loaded(
    predictor: Predictor,
    source: LoadedImage | ImageEmbedding,
    options: AmgOptions,
    *,
    progress: Progress | None = None,
    started: float | None = None,
) -> AmgResult:
    """Do what `generate` does with an image that was read within its limits; a deadline counts from ``started``."""
    began = time.monotonic() if started is None else started
    context, notes = _make_context(predictor, source, options, progress), source.notes
    if options.deadline_seconds is None:
        records = [record for crop in _crops(context) for record in _ask_all(context, crop)]
    else:
        deadline = Deadline(began + options.deadline_seconds)
        records = ask_coarse_to_fine(context, deadline)
        notes += (DEADLINE_REACHED,) if deadline.reached else ()
    records = _finish(records, context)
    if options.partition:
        records = partition_records(records, context.size_hw)
    words = "" if records else _what_was_filtered(context)
    return AmgResult(
        tuple(records),
        context.size_hw,
        coverage(records),
        context.cost,
        context.points,
        (*notes, ALL_FILTERED) if words else notes,
        source.path if isinstance(source, LoadedImage) else source.image_path,
        context.removed,
        words,
    )


def _given(options: AmgOptions | None, unknown: Mapping[str, object]) -> AmgOptions:
    if unknown or not isinstance(options, AmgOptions | None):
        name = next(iter(unknown), "points_per_side")
        found = f"there is no parameter {name!r}" if unknown else f"options is a {type(options).__name__}"
        raise TypeError(f"{found}; give options as one: AmgOptions({name}=...)")
    return options or AmgOptions()


def _read(
    predictor: Predictor, image: ImageSource | ImageEmbedding, options: AmgOptions, limits: ImageLimits | None
) -> LoadedImage | ImageEmbedding:
    if not isinstance(image, ImageEmbedding):
        return read_image(image, limits=predictor.image_limits(limits, image))
    predictor.check_embedding(image)
    if options.crop_n_layers:
        message = f"crop_n_layers is {options.crop_n_layers}, and an embedding has no crops; give the image, or 0"
        raise InputError(message, code="needs_image")
    return image


def _what_was_filtered(context: Context) -> str:
    own, held, removed = asdict(thresholds_for(context.predictor, AmgOptions())), context.thresholds, context.removed
    if not any(removed.values()):
        return ""
    counts = [
        f"{name} ({getattr(held, name):g}; {own[name]:g} suits the model) removed {removed[name]:,}"
        for name in FILTERS
        if name in own and (held.refine or name != "refine_iou_thresh")
    ]
    counts += [f"edges of crops {removed['crop_edge']:,}"] if removed["crop_edge"] else []
    return f"no mask is left of {context.predictor.masks_per_point * context.points:,}: {', '.join(counts)}"


def generate_masks(
    predictor: Predictor,
    image: ImageSource | ImageEmbedding,
    options: AmgOptions | None = None,
    *,
    limits: ImageLimits | None = None,
    **unknown: Never,
) -> MaskRecords:
    """Find everything in a picture.

    The image is what `Predictor.encode` takes, within ``limits``, or what it gave, of which there are no crops;
    ``options`` are those of `AmgOptions`, its defaults when left out.

    Returns
    -------
    list
        A `MaskRecord` for each mask, by descending predicted IoU, those of smaller crops first. Empty if nothing
        passes the thresholds, with a `SegshipWarning` that says which removed how many. It has a method ``save``.

    Raises
    ------
    ImageError, InputError, PromptError
        As `segship.promptable.everything.search.generate`.

    Examples
    --------
    >>> import segship
    >>> predictor = segship.load("tiny")
    >>> records = segship.generate_masks(predictor, segship.demo_photograph(), segship.AmgOptions(points_per_side=4))
    >>> all(record.mask.shape == (400, 600) for record in records)
    True
    """
    found = generate(predictor, image, _given(options, unknown), limits=limits)
    if found.what_was_filtered:
        warnings.warn(found.what_was_filtered, SegshipWarning, stacklevel=2)
    return MaskRecords(found.records, found.size, found.notes, found.image_path)


def iter_masks(
    predictor: Predictor,
    image: ImageSource | ImageEmbedding,
    options: AmgOptions | None = None,
    *,
    limits: ImageLimits | None = None,
    progress: Progress | None = None,
    **unknown: Never,
) -> Iterator[MaskRecord]:
    """Find everything in a picture and yield each mask as soon as its crop is done.

    Smaller crops come first, since their masks win over those of larger ones: what is yielded is final, and is what
    `generate_masks` returns, in the same order. With ``min_mask_region_area`` each crop is cleaned by itself, so that
    of duplicates between crops another one may stay.

    Takes what `generate_masks` does, and tells ``progress``; ``partition`` and ``deadline_seconds`` need the whole
    image at once and are refused.

    Raises
    ------
    InputError
        ``needs_whole_image``, or as `generate_masks`.

    Examples
    --------
    >>> import segship
    >>> predictor = segship.load("tiny")
    >>> options = segship.AmgOptions(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    >>> next(segship.iter_masks(predictor, segship.demo_photograph(), options)).size
    (400, 600)
    """
    options = _given(options, unknown)
    for name in ("partition", "deadline_seconds"):
        if getattr(options, name):
            message = f"{name} is {getattr(options, name)!r}, and needs the whole image at once; use generate_masks"
            raise InputError(message, code="needs_whole_image")
    source = _read(predictor, image, options, limits)
    return _iterate(_make_context(predictor, source, options, progress))


def _iterate(context: Context) -> Iterator[MaskRecord]:
    yielded: list[MaskRecord] = []
    for crop in sorted(_crops(context), key=lambda crop: crop.area):
        records = _clean(_ask_all(context, crop), context)
        known = len(yielded)
        if known:
            # Those that were yielded have larger scores, or equal ones and come first, so they all stay.
            together = yielded + records
            scores = [crop_score(record) for record in together]
            stay = keep_best(together, scores, context.options.crop_nms_thresh, nms=context.thresholds.nms)
            records = [together[index] for index in stay if index >= known]
        yielded += records
        yield from records
    if not yielded and (words := _what_was_filtered(context)):
        warnings.warn(words, SegshipWarning, stacklevel=2)


def _make_context(
    predictor: Predictor, source: LoadedImage | ImageEmbedding, options: AmgOptions, progress: Progress | None
) -> Context:
    """Refuse what costs too much."""
    size_hw = source.size_hw if isinstance(source, LoadedImage) else source.original_size
    cost = estimate_cost(predictor, size_hw, options)
    check_cost(cost, options)
    return Context(predictor, source, options, cost, progress)


def _ask_all(context: Context, crop: Crop) -> list[MaskRecord]:
    search = CropSearch(context, crop)
    search.ask_all()
    return search.records()


def _crops(context: Context) -> list[Crop]:
    return crop_boxes(context.size_hw, context.options.crop_n_layers, context.options.crop_overlap_ratio)


def _finish(records: list[MaskRecord], context: Context) -> list[MaskRecord]:
    """Remove duplicates between crops, and clean."""
    if context.options.crop_n_layers > 0:
        scores = [crop_score(record) for record in records]
        stay = keep_best(records, scores, context.options.crop_nms_thresh, nms=context.thresholds.nms)
        records = [records[index] for index in stay]
    return _clean(records, context)


def _clean(records: list[MaskRecord], context: Context) -> list[MaskRecord]:
    options, thresholds = context.options, context.thresholds
    if not options.min_mask_region_area > 0:
        return records
    threshold = max(thresholds.box_nms_thresh, options.crop_nms_thresh)
    return clean_small_regions(records, options.min_mask_region_area, threshold, nms=thresholds.nms)
