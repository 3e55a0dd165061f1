# SPDX-License-Identifier: Apache-2.0
"""What a call for everything will cost, known before it begins: runs of the encoder, points, memory.

On a CPU the decoder gains nothing from more than a few points at a time and only takes more memory, so
``points_per_batch`` is an upper bound (`segship.promptable.decoder.objects_per_call`); results do not depend on it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from segship.arrays import Size
from segship.errors import InputError, option, way
from segship.machine import describe_machine
from segship.promptable.decoder import bytes_per_object, image_side_bytes
from segship.promptable.everything.grids import crop_boxes, layer_grids
from segship.promptable.everything.options import COMMAND_NAMES, AmgOptions, thresholds_for

if TYPE_CHECKING:
    from segship.promptable.predictor import Predictor

# Low-resolution logits that wait for the removal of duplicates; what is beyond becomes run lengths at once.
_HELD_BYTES = 64 * 2**20
_LEAST_HELD_BYTES = 2**20
# The decoder's four masks, the copy of those that pass, their mask input, and what numpy holds while it filters.
_LOW_RES_MASKS_PER_POINT = 16
# A strip of columns: logits, their distances, and flags.
_BYTES_PER_STRIP_ROW = 128 * 16
# Kept masks a layer, the part of the columns that a mask has, and the run lengths of a column: guesses that busy
# pictures stay below.
_KEPT_MASKS = 1000
_PART_OF_COLUMNS = 0.5
_BYTES_PER_COLUMN = 16
# Scores, box, point and arrays as Python has them.
_BYTES_PER_RECORD = 2048

MOST_POINTS = 64 * 64
MOST_CROP_LAYERS = 2
MOST_SECONDS = 3600.0
"""The most points a crop, layers of crops, and seconds that are begun without ``force_cost``."""
_MOST_PART_OF_MEMORY = 0.5
# Below this the machine is not asked how much it has.
_LITTLE_MEMORY = 2**30


@dataclass(frozen=True, slots=True)
class AmgCost:
    """What a call will do.

    Attributes
    ----------
    crops
        Runs of the encoder.
    points
        Points that the decoder is asked at; fewer if there is a deadline.
    candidates
        Masks that are looked at, as a rule three for each point.
    points_per_call
        Points that the decoder takes at once.
    decoder_calls
        How often it runs.
    peak_bytes
        The most memory that the image, the decoder's tensors and the masks are expected to take together. The model
        itself and the work of its encoder come on top.
    pred_iou_thresh, stability_score_thresh
        The thresholds that hold for this model.
    refine_iou_thresh
        That of refined masks; None where none is refined. Asking once more comes on top of what is counted here: as
        many objects as masks are left.
    held_bytes
        The part of ``peak_bytes`` for low-resolution logits.
    """

    crops: int
    points: int
    candidates: int
    points_per_call: int
    decoder_calls: int
    peak_bytes: int
    pred_iou_thresh: float
    stability_score_thresh: float
    refine_iou_thresh: float | None
    held_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the cost for `json.dumps`."""
        return asdict(self)


def estimate_cost(predictor: Predictor, size_hw: Size, options: AmgOptions) -> AmgCost:
    """Return what a call will cost; nothing is run.

    Parameters
    ----------
    size_hw
        Height and width of the image, in pixels.

    Raises
    ------
    InputError
        ``over_memory``: ``memory_bytes`` is less than even the smallest portions take. ``too_small_for_crops``.

    Examples
    --------
    >>> import segship
    >>> estimate_cost(segship.load("tiny"), (1200, 1800), AmgOptions(crop_n_layers=1)).crops
    5
    """
    crops = crop_boxes(size_hw, options.crop_n_layers, options.crop_overlap_ratio)
    grids = layer_grids(options)
    points_of_crops = [len(grids[crop.layer]) for crop in crops]
    points_per_call, held_bytes, peak_bytes = _portions(predictor, size_hw, options, max(points_of_crops))
    thresholds = thresholds_for(predictor, options)
    return AmgCost(
        crops=len(crops),
        points=sum(points_of_crops),
        candidates=predictor.masks_per_point * sum(points_of_crops),
        points_per_call=points_per_call,
        decoder_calls=sum(-(-count // points_per_call) for count in points_of_crops),
        peak_bytes=peak_bytes,
        pred_iou_thresh=thresholds.pred_iou_thresh,
        stability_score_thresh=thresholds.stability_score_thresh,
        refine_iou_thresh=thresholds.refine_iou_thresh if thresholds.refine else None,
        held_bytes=held_bytes,
    )


def check_cost(cost: AmgCost, options: AmgOptions) -> None:
    """Refuse as ``over_cost`` what takes more points, layers or memory than are begun unasked."""
    if options.force_cost:
        return
    most = max(len(grid) for grid in layer_grids(options))
    if most > MOST_POINTS:
        found = f"the grid has {most:,} points a crop, {cost.points:,} in all; at most {MOST_POINTS:,} a crop"
        raise _over_cost(found, "give fewer points")
    if options.crop_n_layers > MOST_CROP_LAYERS:
        found = f"{option('crop_n_layers')} is {options.crop_n_layers}, {cost.crops:,} crops"
        found += f"; at most {MOST_CROP_LAYERS} layers"
        raise _over_cost(found, "give fewer layers")
    memory = describe_machine().memory_bytes if cost.peak_bytes > _LITTLE_MEMORY else None
    if memory is not None and cost.peak_bytes > _MOST_PART_OF_MEMORY * memory:
        found = f"about {cost.peak_bytes:,} bytes of memory of the machine's {memory:,} are needed; at most half"
        memory_bytes = option("memory_bytes", COMMAND_NAMES["memory_bytes"])
        raise _over_cost(found, f"give {memory_bytes}, fewer points, or a smaller image")


def check_speed(cost: AmgCost, encode_seconds: float, seconds_per_point: float) -> None:
    """Refuse as ``over_cost`` what would take too long at the speed that was measured."""
    seconds = cost.crops * encode_seconds + cost.points * seconds_per_point
    if seconds > MOST_SECONDS:
        found = f"at the speed of the first points this takes about {seconds / 60:,.0f} minutes; at most"
        deadline = option("deadline_seconds", COMMAND_NAMES["deadline_seconds"])
        raise _over_cost(f"{found} {MOST_SECONDS / 60:.0f}", f"give fewer points or crops, or {deadline}")


def _over_cost(found: str, advice: str) -> InputError:
    # A server has not asked for what its clients send.
    begin = way(", or force_cost to begin all the same", ", or --force-cost to begin all the same", "")
    message = f"{found} are begun unasked; {advice}{begin}"
    return InputError(message, code="over_cost")


def _portions(predictor: Predictor, size_hw: Size, options: AmgOptions, most_points: int) -> tuple[int, int, int]:
    """Return points for each call, bytes for held logits, and the expected peak, within ``memory_bytes``."""
    geometry = predictor.manifest.geometry
    embedding = 4 * geometry.embedding_channels * geometry.embedding_size**2
    low_res = 4 * geometry.low_res_size**2
    per_point = bytes_per_object(geometry) + _LOW_RES_MASKS_PER_POINT * low_res
    height, width = size_hw
    points = min(options.points_per_batch, most_points, predictor.objects_per_call)
    candidates = predictor.masks_per_point * most_points
    held = min(_HELD_BYTES, candidates * low_res)
    # As run lengths: what is not held as logits, and what is kept of the layers.
    encoded = candidates - held // low_res + _KEPT_MASKS * (1 + options.crop_n_layers)
    fixed = (
        2 * 3 * height * width
        + 3 * 4 * predictor.image_size**2
        + embedding
        + (image_side_bytes(geometry) if predictor.holds_image_side else 0)
        + _BYTES_PER_STRIP_ROW * height
        + encoded * (_BYTES_PER_RECORD + int(_PART_OF_COLUMNS * width) * _BYTES_PER_COLUMN)
        + (4 * height * width if options.partition else 0)
    )
    bound = options.memory_bytes
    if bound is not None:
        least = fixed + per_point + min(held, _LEAST_HELD_BYTES)
        if bound < least:
            raise InputError(
                f"memory_bytes is {bound:,}; an image of {width} x {height} pixels needs at least {least:,} even with "
                "one point at a time; allow more, or make the image smaller",
                code="over_memory",
            )
        points = max(1, min(points, (bound - fixed - min(held, _LEAST_HELD_BYTES)) // per_point))
        held = min(held, bound - fixed - points * per_point)
    return points, held, fixed + points * per_point + held
