# SPDX-License-Identifier: Apache-2.0
"""One shard of a run: its pictures to a table of answers, of which every byte is the same whoever makes it."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from segship.errors import InputError, SegshipError
from segship.images import ImageLimits, LoadedImage, read_image
from segship.jobs import JobImage, MapOptions, answer_classes
from segship.promptable.everything.options import AmgOptions
from segship.promptable.everything.search import AmgResult, generate_loaded
from segship.promptable.prediction import ImageEmbedding, MaskPrediction
from segship.promptable.prompt_text import parse_prompts_json
from segship.run.ledger import Commit, Ledger, Quarantined
from segship.run.objects import STORE_FAULTS
from segship.run.plan import Items, Plan, PlanOptions, require_same
from segship.run.sources import Item, read_item
from segship.run.stages import Occupancy, Schedule, Stage, run_stages
from segship.run.storage import Folder
from segship.semantic.class_map import ClassMap
from segship.semantic.views import SemanticOptions
from segship.writers.names import storable_text

if TYPE_CHECKING:
    from segship.promptable.predictor import Predictor
    from segship.semantic.predictor import SemanticPredictor

Row = dict[str, Any]
Announce = Callable[[Item | None], None]

# Faults of the machine, after which another attempt may succeed; all others are the picture's own.
_OF_THE_MACHINE = {"run_failed", "backend_missing", "worker_died", "no_space", *STORE_FAULTS}


@dataclass(frozen=True, slots=True)
class Answered:
    """One picture, what the stages have made of it so far, or why there is nothing."""

    item: Item
    made: Any = None
    quarantined: Quarantined | None = None

    @property
    def rows(self) -> list[Row]:
        """What the last stage has made."""
        return [] if self.quarantined is not None else list(self.made)


class Worker:
    """Works on shards of a plan with one model.

    Parameters
    ----------
    folder, plan
        Of the run.
    announce
        Is told of every picture before it is begun, for whoever must know which one a death belongs to; of None, when
        all of a shard are answered.
    """

    def __init__(self, folder: Folder, plan: Plan, announce: Announce = lambda item: None) -> None:
        require_same(plan)
        self._plan = plan
        self._ledger = Ledger(folder, plan.shards)
        self._items = Items(folder, plan)
        self._announce = announce
        self._stages, self._limits = _stages_of(plan)
        self.occupancy = Occupancy()

    def work(
        self, shard: int, skipped: Mapping[str, Quarantined] | None = None, schedule: Schedule = "serial"
    ) -> Commit:
        """Work on a shard and commit it; ``skipped`` are items that have killed workers.

        Raises
        ------
        SegshipError
            When the machine fails; the shard is then not committed.
        """
        answered = self._answers(self._items.of(shard), skipped or {}, schedule)
        rows = [row for one in answered for row in one.rows]
        done = [one.item.id for one in answered if one.quarantined is None]
        quarantined = [one.quarantined for one in answered if one.quarantined is not None]
        self._announce(None)
        return self._ledger.commit(shard, encode_rows(rows), len(rows), done, quarantined)

    def answer(self, item: Item) -> Answered:
        """Work on one picture, and commit nothing; errors as `work`."""
        return self._answers([item], {}, "serial")[0]

    def _answers(self, items: Sequence[Item], skipped: Mapping[str, Quarantined], schedule: Schedule) -> list[Answered]:
        self.occupancy = Occupancy()
        stages = [Stage(name, partial(_unless_quarantined, function)) for name, function in self._stages]
        begun = [partial(self._begin, item, skipped) for item in items]
        stages.insert(0, Stage("read", lambda begin: begin()))
        return list(run_stages(begun, stages, schedule, self.occupancy))

    def _begin(self, item: Item, skipped: Mapping[str, Quarantined]) -> Answered:
        """Read one picture."""
        if item.id in skipped:
            return Answered(item, quarantined=skipped[item.id])
        self._announce(item)
        return _unless_quarantined(self._read, Answered(item))

    def _read(self, item: Item, _: Any) -> LoadedImage:
        data = read_item(item, self._plan.options.limits.bytes)
        return read_image(data, limits=self._limits)


def _unless_quarantined(function: Callable[[Item, Any], Any], one: Answered) -> Answered:
    """Take one picture a stage further, or put it into quarantine for what was raised; the machine's faults go on."""
    if one.quarantined is not None:
        return one
    try:
        return replace(one, made=function(one.item, one.made))
    except SegshipError as error:
        if error.code in _OF_THE_MACHINE:
            raise
        return Answered(one.item, quarantined=quarantine(one.item, error.code, error.on_command_line))
    except MemoryError:
        return Answered(
            one.item, quarantined=quarantine(one.item, "out_of_memory", "there was not enough memory for it")
        )


def quarantine(item: Item, code: str, message: str, attempts: int = 1) -> Quarantined:
    """Return an item as one without an answer."""
    return Quarantined(item.id, storable_text(item.name), code, storable_text(message), attempts)


Function = Callable[[Item, Any], Any]


def _stages_of(plan: Plan) -> tuple[list[tuple[str, Function]], ImageLimits]:
    """Return the stages after reading, each from what the one before has made, and what a picture may be."""
    from segship.loading import load_promptable, load_semantic

    options, run = plan.options, asdict(plan.options.run)
    place = plan.model["place"]
    if options.task == "semantic":
        semantic = load_semantic(place, **run)
        views = MapOptions(limits=options.limits, semantic=SemanticOptions(flip=options.flip))
        answer = partial(_classes, semantic, views)
        return [("segment", answer)], options.limits
    predictor = load_promptable(place, **run)
    limits = predictor.image_limits(options.limits)
    encode: tuple[str, Function] = "encode", lambda item, loaded: predictor.encode_loaded(loaded)
    if options.task == "everything":
        decode: Function = partial(_records, predictor, options.amg)
        # Crops are encoded as they are looked at.
        return ([("decode", decode)] if options.amg.crop_n_layers else [encode, ("decode", decode)]), limits
    return [("prompts", _require_prompts), encode, ("decode", partial(_masks, predictor, options))], limits


def stage_names(options: PlanOptions) -> tuple[str, ...]:
    """Return the names of the stages after reading, for drawings."""
    if options.task == "semantic":
        return ("segment",)
    if options.task == "prompts":
        return ("prompts", "encode", "decode")
    return ("decode",) if options.amg.crop_n_layers else ("encode", "decode")


def _records(predictor: Predictor, amg: AmgOptions, item: Item, source: LoadedImage | ImageEmbedding) -> list[Row]:
    return _record_rows(item, generate_loaded(predictor, source, amg))


def _require_prompts(item: Item, loaded: LoadedImage) -> LoadedImage:
    if not item.prompts:
        raise InputError("the source has no prompts for it; give a table with prompts, x and y", code="no_prompts")
    return loaded


def _masks(predictor: Predictor, options: PlanOptions, item: Item, embedding: ImageEmbedding) -> list[Row]:
    prediction = predictor.decode(
        embedding,
        parse_prompts_json(item.prompts),
        multimask_output=options.multimask_output,
        outside="clip" if options.clip else "error",
    )
    return _mask_rows(item, prediction)


def _classes(semantic: SemanticPredictor, views: MapOptions, item: Item, loaded: LoadedImage) -> list[Row]:
    return _class_rows(item, answer_classes(semantic, JobImage(loaded), views).class_map)


def _row(item: Item, size_hw: Sequence[int], index: int, **more: Any) -> Row:
    height, width = size_hw
    return {
        **dict.fromkeys(COLUMNS),
        "image_id": item.id,
        "image": item.name,
        "height": height,
        "width": width,
        "index": index,
        **more,
    }


def _record_rows(item: Item, result: AmgResult) -> list[Row]:
    return [
        _row(
            item,
            result.size,
            index,
            counts=record.rle["counts"],
            area=record.area,
            bbox=list(record.bbox),
            predicted_iou=record.predicted_iou,
            stability_score=record.stability_score,
            point_coords=[list(point) for point in record.point_coords],
            crop_box=[float(side) for side in record.crop_box],
        )
        for index, record in enumerate(result.records)
    ]


def _mask_rows(item: Item, prediction: MaskPrediction) -> list[Row]:
    rows = list[Row]()
    objects, masks = prediction.held.shape
    for entry in range(objects):
        for mask in range(masks):
            x0, y0, x1, y1 = prediction.held.box(entry, mask)
            rows.append(
                _row(
                    item,
                    prediction.original_size,
                    len(rows),
                    object=entry,
                    mask=mask,
                    counts=prediction.mask_rle(entry, mask)["counts"],
                    area=prediction.held.area(entry, mask),
                    bbox=[float(side) for side in (x0, y0, x1 - x0, y1 - y0)],
                    predicted_iou=float(prediction.iou_predictions[entry, mask]),
                    prompt=item.prompts,
                )
            )
    return rows


def _class_rows(item: Item, class_map: ClassMap) -> list[Row]:
    from segship.masks.rle import encode_rle, read_rle, runs_to_box

    rows = list[Row]()
    for name, area in class_map.areas().items():
        rle = encode_rle(class_map.mask(name))
        x0, y0, x1, y1 = runs_to_box(*read_rle(rle))
        box = [float(side) for side in (x0, y0, x1 - x0, y1 - y0)]
        more = {"category": name, "counts": rle["counts"], "area": area, "bbox": box}
        rows.append(_row(item, class_map.array.shape, len(rows), **more))
    return rows


def _columns() -> dict[str, tuple[str, bool]]:
    """Column -> its type in pyarrow's words, and whether it may be null."""
    return {
        "image_id": ("string", False),
        "image": ("string", False),
        "height": ("int32", False),
        "width": ("int32", False),
        "index": ("int32", False),
        "object": ("int32", True),
        "mask": ("int32", True),
        "category": ("string", True),
        "counts": ("string", False),
        "area": ("int64", False),
        "bbox": ("boxes", False),
        "predicted_iou": ("float64", True),
        "stability_score": ("float64", True),
        "point_coords": ("points", True),
        "crop_box": ("boxes", True),
        "prompt": ("string", True),
    }


COLUMNS = tuple(_columns())
"""The columns of a run's tables: which picture, which of its masks, for which object of its prompts and which of that
object's masks, its class, COCO's compressed run lengths for the size [height, width], pixels, box as x y width height
(SA-1B's for everything), scores, points that asked for it, crop, and the prompt as JSON. What is not known is null."""


def encode_rows(rows: Sequence[Row]) -> bytes:
    """Return a table as Parquet: the same bytes for the same rows and version of pyarrow."""
    pyarrow, parquet, stream = import_module("pyarrow"), import_module("pyarrow.parquet"), io.BytesIO()
    lists = {"boxes": pyarrow.list_(pyarrow.float64(), 4), "points": pyarrow.list_(pyarrow.list_(pyarrow.float64(), 2))}
    kinds = {
        "string": pyarrow.string(),
        "int32": pyarrow.int32(),
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
    }
    kinds |= lists
    schema = pyarrow.schema(
        [pyarrow.field(name, kinds[kind], nullable=nullable) for name, (kind, nullable) in _columns().items()]
    )
    table = pyarrow.Table.from_pylist(list(rows), schema=schema)
    parquet.write_table(table, stream, compression="zstd", compression_level=3, write_statistics=True)
    return stream.getvalue()
