# SPDX-License-Identifier: Apache-2.0
"""One crop of the image: ask the decoder at points, filter what it answers, remove duplicates, make records.

Follows segment_anything/automatic_mask_generator.py _process_crop and _process_batch. Mode ``reference`` takes every
step at image size, in the reference's arithmetic. Mode ``fast`` filters and removes duplicates on the decoder's
low-resolution logits, and only what is left then is made as large as the image; those masks are the same, bit for bit,
unless the model's manifest asks for its masks to be cleaned, which only this mode does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from segship.arrays import BoolArray, FloatArray, IntArray, Points, Size
from segship.errors import BackendUnavailable
from segship.images import LoadedImage
from segship.masks.cleanup import MaskCleanUp, clean_low_res
from segship.masks.nms import box_nms, mask_nms
from segship.masks.rle import mask_to_runs, runs_to_mask
from segship.masks.upscaling import (
    MARGIN,
    EncodedMask,
    LogitsPatch,
    count_above,
    crop_patch,
    encode_logits,
    encode_mask,
)
from segship.promptable.everything.cost import AmgCost, check_speed
from segship.promptable.everything.filters import estimate_boxes, estimate_stability, near_crop_edge, stability
from segship.promptable.everything.grids import Crop, SettledPoints, coarse_to_fine, layer_grids
from segship.promptable.everything.options import AmgOptions, Thresholds, thresholds_for
from segship.promptable.everything.records import MaskRecord
from segship.promptable.prediction import ImageEmbedding
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import ObjectPrompt, Prompts

Progress = Callable[[int, int], None]
"""Is told after each call of the decoder how many points are done, asked or settled, and how many there are."""

FILTERS = ("pred_iou_thresh", "stability_score_thresh", "crop_edge", "refine_iou_thresh")
"""What removes masks besides duplicates."""
# Mode ``hierarchical`` begins with every so many-th row and column of a grid.
_COARSEST = 4
# What a mask input says of cells that were not held: as sure as the decoder itself is far from a mask.
_OUTSIDE = -8.0
# The speed of a call is known after so many calls of the decoder.
_CALLS_MEASURED = 3


@dataclass(slots=True, eq=False)
class Context:
    """What holds for all crops of one call."""

    predictor: Predictor
    source: LoadedImage | ImageEmbedding
    """The image; or its embedding, which has no crops."""
    options: AmgOptions
    cost: AmgCost
    """Has the thresholds, and how much is asked and held at once."""
    progress: Progress | None = None
    points: int = 0
    """Points that have been asked."""
    settled: int = 0
    """Points that need not be asked."""
    removed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FILTERS, 0))
    """Masks that each filter has removed."""
    encode_seconds: float = 0.0
    """Of the last run of the encoder."""
    seconds_per_point: float = math.inf
    """At the fastest so far; the first calls of a runtime are slow."""
    calls: int = 0

    @property
    def thresholds(self) -> Thresholds:
        """What is kept."""
        return thresholds_for(self.predictor, self.options)

    @property
    def size_hw(self) -> Size:
        """Height and width of the image."""
        return self.source.size_hw if isinstance(self.source, LoadedImage) else self.source.original_size

    def count(self, points: int, seconds: float) -> None:
        """Count points that were asked, and tell; refuse to go on if all of them would take too long."""
        self.points += points
        self.calls += 1
        self.seconds_per_point = min(self.seconds_per_point, seconds / points)
        bounded = self.options.force_cost or self.options.deadline_seconds is not None
        if self.calls == _CALLS_MEASURED and not bounded:
            check_speed(self.cost, self.encode_seconds, self.seconds_per_point)
        self._tell()

    def count_settled(self, points: int) -> None:
        """Count points that need not be asked, and tell."""
        if points:
            self.settled += points
            self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress(self.points + self.settled, self.cost.points)


@dataclass(slots=True, eq=False)
class Candidate:
    """A mask that has passed the filters; boxes in the frame of the crop, ends inclusive.

    The mask is what its pixels depend on, or its run lengths once too much is held.
    """

    predicted_iou: float
    stability_score: float
    box_xyxy: tuple[int, int, int, int]
    place: int
    """Of the point that found it, in the grid."""
    mask: EncodedMask | LogitsPatch


class CropSearch:
    """Everything in one crop, in three steps: make one, `ask` at points as often as wanted, take its `records`."""

    def __init__(self, context: Context, crop: Crop) -> None:
        self.crop = crop
        self.grid = layer_grids(context.options)[crop.layer]
        self.points = np.asarray(self.grid * np.array(crop.size_hw[::-1]), np.float64)
        """(n, 2) of the grid, pixels of the crop."""
        self.candidates: list[Candidate] = []
        self._context = context
        self._predictor = context.predictor
        began = time.monotonic()
        self._embedding = self._encoded_crop()
        context.encode_seconds = time.monotonic() - began
        self._upscaler = self._predictor.upscaler(self._embedding)
        # What the manifest alone asks for is left undone where the embedding holds no picture.
        edges = context.options.edges
        if edges is None and not context.thresholds.edges:
            edges = False
        self._edges = self._predictor.followed_edges(self._embedding, edges)
        self._cover = np.zeros(self._upscaler.valid_cells, np.bool_)
        self._held = 0
        self._settled: SettledPoints | None = None
        if context.options.mode == "hierarchical":
            self._settled = SettledPoints(self.points, self._upscaler)

    def _encoded_crop(self) -> ImageEmbedding:
        source, (left, top, right, bottom) = self._context.source, self.crop.box_xyxy
        if isinstance(source, ImageEmbedding):
            return source
        return self._predictor.encode_loaded(LoadedImage(np.ascontiguousarray(source.pixels[top:bottom, left:right])))

    def covered(self, points_xy: Points) -> BoolArray:
        """Return (n,) bool: whether a mask that was found already lies over each point (n, 2), pixels of the crop."""
        return np.asarray(self._cover[self._upscaler.cells_at(points_xy)])

    def ask_all(self) -> None:
        """Ask at the points of the grid, in mode ``hierarchical`` without those that are settled by then."""
        if self._settled is None:
            self.ask(np.arange(len(self.points)))
            return
        for portion in coarse_to_fine(self.grid, _COARSEST):
            is_settled = self._settled.mask()[portion]
            self._context.count_settled(int(is_settled.sum()))
            self.ask(portion[~is_settled])

    def ask(self, chosen: IntArray) -> None:
        """Ask the decoder at some points of the grid, by their places in it, and keep what passes the filters."""
        size, threshold = self._context.cost.points_per_call, self._context.cost.pred_iou_thresh
        # A threshold of 0 is none, as the reference has it: scores may lie below 0.
        bound = threshold if threshold > 0 else -np.inf
        for begin in range(0, len(chosen), size):
            batch, began = chosen[begin : begin + size], time.monotonic()
            found = self._predictor.select_at(self._embedding, self.points[batch], bound)
            asked = self._predictor.masks_per_point * len(batch)
            self._context.removed["pred_iou_thresh"] += asked - len(found.objects)
            self._take(batch[found.objects], found.scores, found.low_res_masks)
            self._context.count(len(batch), time.monotonic() - began)

    def records(self) -> list[MaskRecord]:
        """Return a record of each mask that is no duplicate of a better one, by descending predicted IoU."""
        chosen = self._without_duplicates()
        if self._context.thresholds.refine:
            self._refine(chosen)
            chosen = self._without_duplicates()
        records = [self._record(candidate) for candidate in chosen]
        if self._context.options.mode == "reference":
            return records
        # Only with thresholds of 0 can there be any.
        return [record for record in records if record.area]

    def _without_duplicates(self) -> list[Candidate]:
        if not self.candidates:
            return []
        scores = np.array([candidate.predicted_iou for candidate in self.candidates], np.float32)
        thresholds = self._context.thresholds
        if thresholds.nms == "mask":
            kept = mask_nms(self._comparable_runs(), scores, thresholds.box_nms_thresh)
        else:
            boxes = np.array([candidate.box_xyxy for candidate in self.candidates], np.float32)
            kept = box_nms(boxes, scores, thresholds.box_nms_thresh)
        return [self.candidates[index] for index in kept.tolist()]

    def _refine(self, chosen: list[Candidate]) -> None:
        """Let what the decoder answers to each mask's box and the mask itself be the candidates, where it passes."""
        # Those that are asked about are held until the end.
        self._held = sum(one.mask.logits.nbytes for one in chosen if isinstance(one.mask, LogitsPatch))
        self.candidates = []
        size, threshold = self._context.cost.points_per_call, self._context.thresholds.refine_iou_thresh
        bound = threshold if threshold > 0 else -np.inf
        height, width = self._upscaler.valid_cells
        for begin in range(0, len(chosen), size):
            portion = chosen[begin : begin + size]
            corners = np.array([candidate.box_xyxy for candidate in portion], np.float32)
            # Their ends are the last pixels, and a box has to have an inside.
            corners[:, 2:] += 1
            masks = np.stack([self._mask_input(candidate) for candidate in portion])
            ious, logits = self._predictor.decode_low_res(self._embedding, Prompts(boxes=corners, mask_input=masks))
            passing = ious[:, 0] > np.float32(bound)
            self._context.removed["refine_iou_thresh"] += int((~passing).sum())
            places = np.array([candidate.place for candidate in portion], np.int64)
            self._take(places[passing], ious[passing, 0], logits[passing, 0, :height, :width])

    def _mask_input(self, candidate: Candidate) -> FloatArray:
        """Return (1, 4h, 4w) float32 logits: those that are held, and `_OUTSIDE` where none is above 0."""
        if isinstance(candidate.mask, EncodedMask):
            left, top, right, bottom = self.crop.box_xyxy
            mask = runs_to_mask(candidate.mask.runs, self._context.size_hw)[top:bottom, left:right]
            logits: FloatArray = self._predictor.mask_to_logits(mask)[0]
            return logits
        patch, side = candidate.mask, self._predictor.manifest.geometry.low_res_size
        whole = np.full((1, side, side), _OUTSIDE, np.float32)
        height, width = patch.logits.shape
        whole[0, patch.top : patch.top + height, patch.left : patch.left + width] = patch.logits
        return whole

    def _take(self, places: IntArray, scores: FloatArray, logits: FloatArray) -> None:
        if not len(logits):
            return
        if not np.isfinite(logits).all():
            raise BackendUnavailable(
                f"low_res_masks holds values that are not finite (NaN or infinity) in {self._predictor.description}; "
                "try precision fp32 or another backend, and `segship doctor`",
                code="nonfinite_output",
            )
        if self._context.options.mode == "reference":
            self._filter_at_image_size(places, scores, logits)
        else:
            self._filter_at_low_resolution(places, scores, logits)

    def _filter_at_image_size(self, places: IntArray, ious: FloatArray, logits: FloatArray) -> None:
        threshold = self._context.cost.stability_score_thresh
        left, top, _, _ = self.crop.box_xyxy
        for place, iou, low_res in zip(places.tolist(), ious, logits, strict=True):
            score = stability(
                *count_above(LogitsPatch(low_res), self._upscaler, self._context.options.stability_score_offset)
            )
            if threshold > 0 and not np.float32(score) >= np.float32(threshold):
                self._context.removed["stability_score_thresh"] += 1
                continue
            mask = self._encode(LogitsPatch(low_res), place)
            x0, y0, x1, y1 = mask.box_xyxy
            # An empty mask has a box of zeros in the crop, as the reference has it.
            box = (x0 - left, y0 - top, x1 - left, y1 - top) if mask.area else (0, 0, 0, 0)
            if near_crop_edge(np.array([box]), self.crop, self._context.size_hw)[0]:
                self._context.removed["crop_edge"] += 1
                continue
            self.candidates.append(Candidate(float(iou), score, box, place, mask))

    def _filter_at_low_resolution(self, places: IntArray, ious: FloatArray, logits: FloatArray) -> None:
        points_xy = self.points[places]
        threshold = self._context.cost.stability_score_thresh
        if (clean_up := self._predictor.mask_clean_up) is not None:
            logits = self._without_stray_pieces(points_xy, logits, clean_up)
        scores = estimate_stability(
            logits, self._upscaler, offset=self._context.options.stability_score_offset, threshold=threshold
        )
        boxes = estimate_boxes(logits, self._upscaler)
        stable = scores >= threshold if threshold > 0 else np.ones(len(logits), np.bool_)
        stays = stable & ~near_crop_edge(boxes, self.crop, self._context.size_hw)
        self._context.removed["stability_score_thresh"] += int((~stable).sum())
        self._context.removed["crop_edge"] += int((stable & ~stays).sum())
        for index in np.flatnonzero(stays).tolist():
            x0, y0, x1, y1 = boxes[index].tolist()
            self._cover |= logits[index] > 0
            place = int(places[index])
            if self._settled is not None:
                self._settled.add(place, boxes[index], logits[index])
            mask = self._hold(logits[index], place)
            self.candidates.append(Candidate(float(ious[index]), float(scores[index]), (x0, y0, x1, y1), place, mask))

    def _without_stray_pieces(self, points_xy: Points, logits: FloatArray, clean_up: MaskCleanUp) -> FloatArray:
        """Return the logits (n, h, w) cleaned as the model's manifest wants it for masks of one point each."""
        cells = (points_xy / np.array(self._upscaler.pixels_per_cell[::-1])).astype(np.float32)
        label = np.ones(1, np.int64)
        cleaned = [
            clean_low_res(entry, clean_up, points_xy=cell[None], labels=label, has_box=False)
            for entry, cell in zip(logits, cells, strict=True)
        ]
        return np.stack(cleaned)

    def _hold(self, low_res: FloatArray, place: int) -> EncodedMask | LogitsPatch:
        """Return the part of the logits that is needed later, or the mask itself once too much is held."""
        patch = crop_patch(LogitsPatch(low_res), MARGIN if self._edges is None else self._edges.margin)
        if self._held + patch.logits.nbytes > self._context.cost.held_bytes:
            return self._encode(patch, place)
        self._held += patch.logits.nbytes
        return patch

    def _encode(self, patch: LogitsPatch, place: int) -> EncodedMask:
        left, top, _, _ = self.crop.box_xyxy
        if self._edges is not None:
            prompt = ObjectPrompt(self.points[place : place + 1].astype(np.float32), np.ones(1, np.int64))
            painter = self._predictor.edge_painter(self._embedding, prompt, self._edges, self._predictor.mask_clean_up)
            mask = painter.mask(patch, self.crop.size_hw)
            return encode_mask(mask, corner_xy=(left, top), image_size_hw=self._context.size_hw)
        return encode_logits(patch, self._upscaler, corner_xy=(left, top), image_size_hw=self._context.size_hw)

    def _encoded(self, candidate: Candidate) -> EncodedMask:
        return (
            candidate.mask if isinstance(candidate.mask, EncodedMask) else self._encode(candidate.mask, candidate.place)
        )

    def _comparable_runs(self) -> list[IntArray]:
        """Return run lengths for comparing masks with one another: of cells while all are held, else of pixels."""
        held = [candidate.mask for candidate in self.candidates if isinstance(candidate.mask, LogitsPatch)]
        if len(held) == len(self.candidates):
            size_hw = self._upscaler.valid_cells
            return [mask_to_runs(part.logits > 0, corner_xy=(part.left, part.top), size_hw=size_hw) for part in held]
        encoded = [self._encoded(candidate) for candidate in self.candidates]
        for candidate, mask in zip(self.candidates, encoded, strict=True):
            candidate.mask = mask
        return [mask.runs for mask in encoded]

    def _record(self, candidate: Candidate) -> MaskRecord:
        mask = self._encoded(candidate)
        left, top, _, _ = self.crop.box_xyxy
        x0, y0, x1, y1 = mask.box_xyxy if mask.area else (left, top, left, top)
        x, y = self.points[candidate.place].tolist()
        return MaskRecord(
            runs=mask.runs,
            size=self._context.size_hw,
            area=mask.area,
            bbox=(x0, y0, x1 - x0, y1 - y0),
            predicted_iou=candidate.predicted_iou,
            point_coords=((x + left, y + top),),
            stability_score=candidate.stability_score,
            crop_box=self.crop.box_xywh,
        )
