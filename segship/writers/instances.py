# SPDX-License-Identifier: Apache-2.0
"""What writers take: prompted masks, records, class maps of one image; and `Instances`, the one view of all masks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segship.arrays import BoolArray, FloatArray, Pixels
from segship.datasets.known import thing_classes
from segship.errors import InputError, way
from segship.masks.panoptic import PanopticOptions
from segship.masks.polygons import Polygon, mask_to_polygons
from segship.masks.rle import Rle, Runs, compress_runs, runs_to_area, runs_to_box, runs_to_crop, runs_to_mask
from segship.promptable.everything.records import ImageRecords, MaskRecord
from segship.semantic.class_map import ClassMap
from segship.semantic.labels import NOBODY, check_size, vote_class

if TYPE_CHECKING:
    from segship.promptable.prediction import MaskPrediction
    from segship.promptable.prompts import ObjectPrompt


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One image with its prompts and its prediction, ready to be written.

    Attributes
    ----------
    stem
        What the names of its files begin with; `segship.writers.names.output_stems` makes safe ones.
    name
        The input's file name, as COCO and JSON repeat it; directories in it are left out.
    pixels
        (H, W, 3) uint8 RGB, upright.
    prediction
        Masks, scores and low-resolution logits of all objects.
    objects
        The prompts of each object, in the order of the prediction.
    notes
        More notes than the prediction has itself.
    """

    stem: str
    name: str
    pixels: Pixels
    prediction: MaskPrediction
    objects: Sequence[ObjectPrompt] = ()
    notes: tuple[str, ...] = ()

    @property
    def masks(self) -> BoolArray:
        """(objects, masks, H, W) bool, also if the prediction holds logits."""
        masks = self.prediction.masks
        return np.asarray(masks if masks.dtype == np.bool_ else masks > 0, np.bool_)

    @property
    def best_masks(self) -> NDArray[np.intp]:
        """(objects,) the index of the mask with the highest predicted IoU, the first of equals."""
        return np.asarray(self.prediction.iou_predictions.argmax(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One mask and what is known of it.

    Attributes
    ----------
    runs
        (n,) int64 run lengths, column by column, beginning with zeros.
    size
        Height and width of the image.
    score
        Predicted IoU; None where the model gave no number.
    category
        Index into `Instances.categories`.
    place
        Object and mask in a prompted prediction; None for a record.
    point_coords
        The points that asked for it, x y in the image frame.
    stability_score
        As `segship.masks.scores` has it; None for a prompted mask, of which it is not known.
    crop_box
        x y width height of the part of the image that the model saw.
    bbox_xywh
        The box of a record as the reference counts it; None for a prompted mask.
    label_confidence, label_purity
        How sure the category is, see `segship.semantic.labels`; None if no class map was asked.
    """

    runs: Runs
    size: tuple[int, int]
    score: float | None
    category: int = 0
    place: tuple[int, int] | None = None
    point_coords: tuple[tuple[float, float], ...] = ()
    stability_score: float | None = None
    crop_box: tuple[int, int, int, int] = (0, 0, 0, 0)
    bbox_xywh: tuple[float, float, float, float] | None = None
    label_confidence: float | None = None
    label_purity: float | None = None

    @property
    def area(self) -> int:
        """Number of pixels."""
        return runs_to_area(self.runs)

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """The box around the mask, x0 y0 x1 y1 half-open; zeros for an empty mask."""
        return runs_to_box(self.runs, self.size)

    @property
    def coco_bbox(self) -> list[int]:
        """The box around the mask as COCO has it: x y width height."""
        x0, y0, x1, y1 = self.box_xyxy
        return [x0, y0, x1 - x0, y1 - y0]

    @property
    def sam_bbox(self) -> list[float]:
        """The box around the mask as the reference and SA-1B have it: x y width height, to the last pixel itself."""
        if self.bbox_xywh is not None:
            return [float(side) for side in self.bbox_xywh]
        x, y, width, height = self.coco_bbox
        # The reference subtracts the first pixel from the last, so its sizes are one less than the count of pixels.
        return [float(x), float(y), float(max(width - 1, 0)), float(max(height - 1, 0))]

    @property
    def rle(self) -> Rle:
        """The mask as COCO's compressed run lengths."""
        return Rle(size=list(self.size), counts=compress_runs(self.runs))

    @property
    def mask(self) -> BoolArray:
        """(H, W) bool."""
        return runs_to_mask(self.runs, self.size)

    @property
    def crop(self) -> tuple[BoolArray, tuple[int, int]]:
        """The part of the mask inside its box, (h, w) bool, and the x0 y0 of the box."""
        return runs_to_crop(self.runs, self.size)

    def polygons(self, tolerance: float = 0.0) -> list[Polygon]:
        """Return the outlines of the mask in the image frame, as `segship.masks.polygons.mask_to_polygons` does."""
        crop, corner_xy = self.crop
        if not crop.size:
            return []
        polygons = mask_to_polygons(crop, tolerance=tolerance)
        return [Polygon(one.outer + corner_xy, tuple(hole + corner_xy for hole in one.holes)) for one in polygons]


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """Where categories that were voted for come from, and which of them can be counted; COCO panoptic needs both."""

    class_map: ClassMap
    things: frozenset[str]
    panoptic: PanopticOptions


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The masks of one image, and the names of their categories.

    Stem, name, pixels and notes are as in `Result`. ``labels`` say where the categories come from, if a class map voted
    for them.
    """

    stem: str
    name: str
    pixels: Pixels
    entries: tuple[Instance, ...]
    categories: tuple[str, ...] = (NOBODY,)
    notes: tuple[str, ...] = ()
    labels: Labels | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return (self.pixels.shape[0], self.pixels.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class ClassMapResult:
    """One image with its class map, of the same size, ready to be written; stem, name and pixels are as in `Result`.

    ``made_by`` is for the JSON document what made it: architecture, backend, precision, views.
    """

    stem: str
    name: str
    pixels: Pixels
    class_map: ClassMap
    made_by: Mapping[str, Any] = field(default_factory=dict)


Source: TypeAlias = Result | ImageRecords | Instances
"""The masks of one image, in any of their forms."""
Kind = Literal["masks", "class maps"]
"""What a result holds; formats of masks take every `Source`, those of class maps a `ClassMapResult`."""


def kind_of(result: Source | ClassMapResult) -> Kind:
    """Return what a result holds; refuses anything else as ``bad_source``."""
    if isinstance(result, ClassMapResult):
        return "class maps"
    if isinstance(result, Result | ImageRecords | Instances):
        return "masks"
    raise _bad_source(result)


def _bad_source(found: object) -> InputError:
    accepted = "Result, ImageRecords, Instances and ClassMapResult"
    return InputError(f"{type(found).__name__} cannot be written; accepted are {accepted}", code="bad_source")


def check_reduced(formats: Collection[str], notes: Collection[str]) -> None:
    """Refuse formats with places in pixels of the file that they name, if it was read smaller than it is."""
    wrong = [name for name in formats if name in ("coco", "labelme", "panoptic")]
    if wrong and any(note.startswith("reduced_") for note in notes):
        message = (
            f"the image was read at a part of its size, and {', '.join(wrong)} would place masks on the whole file; "
            f"read it without {way('reduce', '--reduce')}, or make the file smaller first"
        )
        raise InputError(message, code="bad_option")


def as_instances(source: Source, *, best_only: bool = False) -> Instances:
    """Return the masks of any result.

    With ``best_only``, of every object of a prompted prediction only the mask with the highest predicted IoU, for
    formats in which every mask is a thing of its own. Records are things already. Anything else, and records for an
    image of another size, are refused as ``bad_source``.
    """
    if isinstance(source, Instances):
        return replace(source, entries=_best(source.entries)) if best_only else source
    if isinstance(source, Result):
        notes = tuple(dict.fromkeys([*source.prediction.notes, *source.notes]))
        return Instances(source.stem, source.name, source.pixels, _of_result(source, best_only), notes=notes)
    if not isinstance(source, ImageRecords):
        raise _bad_source(source)
    entries = tuple(_of_record(record) for record in source.records)
    view = Instances(source.stem, source.name, source.pixels, entries, notes=source.notes)
    for entry in entries:
        if entry.size != view.size:
            message = f"a record is for an image of {entry.size} pixels, and the image has {view.size}; give the same"
            raise InputError(message, code="bad_source")
    return view


def label_instances(source: Source, labels: Sequence[str], categories: Sequence[str] | None = None) -> Instances:
    """Return the masks of a result with the names that a classifier or a person gave them.

    Labels are one a mask, in the order of `as_instances`. ``categories`` are all names there are, in the order of their
    numbers, and those of the labels in the order of their first use when left out; give them if several images shall
    share their numbers. Labels that do not fit are refused as ``bad_labels``.
    """
    instances = as_instances(source)
    names = tuple(dict.fromkeys(labels)) if categories is None else tuple(categories)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the category {twice!r} stands twice; give every category once", code="bad_labels")
    if len(labels) != len(instances.entries):
        message = f"there are {len(labels)} labels and {len(instances.entries)} masks; give one label a mask"
        raise InputError(message, code="bad_labels")
    unknown = [label for label in labels if label not in names]
    if unknown:
        message = f"{unknown[0]!r} is no category; accepted are {', '.join(names)}"
        raise InputError(message, code="bad_labels")
    numbers = {name: number for number, name in enumerate(names)}
    entries = tuple(
        replace(entry, category=numbers[label], label_confidence=None, label_purity=None)
        for entry, label in zip(instances.entries, labels, strict=True)
    )
    return replace(instances, entries=entries, categories=names or (NOBODY,), labels=None)


def shortest_number(value: FloatArray | np.float32) -> float | None:
    """Return the shortest decimal that reads back as the same float32; None for what JSON has no number for."""
    return float(str(np.float32(value))) if np.isfinite(value) else None


def _of_result(result: Result, best_only: bool) -> tuple[Instance, ...]:
    scores = result.prediction.iou_predictions
    height, width = result.prediction.original_size
    if best_only:
        places = list(enumerate(result.best_masks.tolist()))
    else:
        places = list(np.ndindex(scores.shape[:2]))
    return tuple(
        Instance(
            runs=result.prediction.mask_runs(entry, index),
            size=(height, width),
            score=shortest_number(scores[entry, index]),
            place=(entry, index),
            point_coords=_points_of(result, entry),
            crop_box=(0, 0, width, height),
        )
        for entry, index in places
    )


def _points_of(result: Result, entry: int) -> tuple[tuple[float, float], ...]:
    if entry >= len(result.objects):
        return ()
    points = result.objects[entry].points
    # Points of a prompt are finite; they are checked when it is made.
    return tuple((float(str(x)), float(str(y))) for x, y in points)


def _of_record(record: MaskRecord) -> Instance:
    x, y, width, height = record.crop_box
    return Instance(
        runs=record.runs,
        size=record.size,
        score=_finite(record.predicted_iou),
        point_coords=tuple((float(x), float(y)) for x, y in record.point_coords),
        stability_score=_finite(record.stability_score),
        crop_box=(int(x), int(y), int(width), int(height)),
        bbox_xywh=record.bbox,
    )


def _best(entries: Sequence[Instance]) -> tuple[Instance, ...]:
    """Keep of the masks of one object the first with the highest score; records all stay."""
    best: dict[int, Instance] = {}
    for entry in entries:
        if entry.place is None:
            continue
        kept = best.get(entry.place[0])
        if kept is None or _comparable(entry.score) > _comparable(kept.score):
            best[entry.place[0]] = entry
    return tuple(entry for entry in entries if entry.place is None or best[entry.place[0]] is entry)


def _comparable(score: float | None) -> float:
    return -math.inf if score is None else score


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def label_records(
    source: Source,
    class_map: ClassMap,
    *,
    things: Collection[str] | None = None,
    panoptic: PanopticOptions | None = None,
) -> Instances:
    """Return the masks of a result with the classes that they are voted, ready to be written in every format.

    Parameters
    ----------
    class_map
        As `segship.label_masks` takes it.
    things
        Names of the classes that can be counted, for COCO panoptic; what `segship.datasets.known` knows of the data
        set when left out.
    panoptic
        How masks and class map are merged there.

    Raises
    ------
    InputError
        ``other_size`` or ``unknown_class``.
    """
    instances = as_instances(source)
    check_size(instances.size, class_map)
    labels = Labels(class_map, thing_classes(class_map.table, things), panoptic or PanopticOptions())
    votes = [vote_class(entry.runs, class_map) for entry in instances.entries]
    nobody = len(class_map.classes)
    entries = tuple(
        replace(
            entry,
            category=nobody if vote.number is None else vote.number,
            label_confidence=round(vote.label_confidence, 6),
            label_purity=round(vote.label_purity, 6),
        )
        for entry, vote in zip(instances.entries, votes, strict=True)
    )
    # All classes, so that the numbers of several images agree; one more only if a mask has none.
    name = NOBODY if NOBODY not in class_map.classes else f"{NOBODY} without a class"
    categories = class_map.classes + ((name,) if any(vote.number is None for vote in votes) else ())
    return replace(instances, entries=entries, categories=categories, labels=labels)


def count_labels(instances: Instances) -> dict[str, int]:
    """Return how many masks every class has that has any, most first."""
    names = Counter(instances.categories[entry.category] for entry in instances.entries)
    return dict(names.most_common())
