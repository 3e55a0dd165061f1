# SPDX-License-Identifier: Apache-2.0
"""The options of commands whose masks may get names from a semantic model."""

from __future__ import annotations

import json as json_module
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from segship.catalog import load_promptable
from segship.cli.look import Json
from segship.cli.output import (
    DEFAULT_RUNTIME,
    EXIT_BAD_INPUT,
    FailedImage,
    Runtime,
    describe_run,
    errors_console,
    make_table,
    megabytes,
    plain,
    print_failure,
    print_json,
    report_outcomes,
    results_console,
)
from segship.cli.pictures import each_picture, expand_pictures, picture_source
from segship.datasets.known import thing_classes
from segship.errors import InputError, SegshipError
from segship.files import read_bytes
from segship.images import ImageLimits
from segship.jobs import EverythingImage, EverythingOptions, cost_of_everything, find_everything
from segship.promptable.everything.cost import AmgCost
from segship.promptable.everything.options import AmgOptions, Mode, Nms
from segship.promptable.everything.search import Progress as Tick
from segship.promptable.predictor import Predictor
from segship.semantic.predictor import NOTES, SemanticPredictor, open_semantic
from segship.writers import check_formats
from segship.writers.instances import count_labels


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Labelling:
    """What gives masks their names.

    Parameters
    ----------
    labels
        Semantic bundle, checkpoint or known name: each mask gets a class by vote of that model's class map, with
        label_confidence and label_purity, and panoptic has things and stuff.
    things
        With --labels: comma-separated classes that can be counted; those of the data set when left out.
    label_backend
        With --labels: what runs that model; as --backend when left out. The other runtime options hold for both.
    """

    labels: str | None = None
    things: str | None = None
    label_backend: str | None = None

    @property
    def thing_names(self) -> tuple[str, ...] | None:
        """The classes that can be counted; None if the user named none."""
        return None if self.things is None else tuple(part.strip() for part in self.things.split(","))

    def check(self) -> None:
        """Refuse options that belong to a model that was not given, before any model is loaded.

        Raises
        ------
        InputError
            ``bad_option``.
        """
        for option, given in (("--things", self.things), ("--label-backend", self.label_backend)):
            if self.labels is None and given is not None:
                message = f"{option} was given without --labels, to which it belongs; give both"
                raise InputError(message, code="bad_option")

    def open(self, runtime: Runtime) -> SemanticPredictor | None:
        """Load the model, if one was given.

        Raises
        ------
        InputError
            ``other_family``, or ``unknown_class`` when a thing is no class of the model.
        """
        if self.labels is None:
            return None
        settings = replace(runtime, backend=self.label_backend or runtime.backend).settings()
        predictor = open_semantic(self.labels, **settings)
        thing_classes(predictor.table, self.thing_names)
        return predictor


NO_LABELLING = Labelling()


DEFAULT_FORMATS = "overlay,sa1b"
_DEFAULTS = AmgOptions()
_MAX_GRID_BYTES = 64 * 2**20
_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", re.IGNORECASE)


def everything(
    *images: str,
    points_per_side: int | None = None,
    point_grids: Path | None = None,
    points_per_batch: int = _DEFAULTS.points_per_batch,
    pred_iou_thresh: float | None = _DEFAULTS.pred_iou_thresh,
    stability_score_thresh: float | None = _DEFAULTS.stability_score_thresh,
    stability_score_offset: float = _DEFAULTS.stability_score_offset,
    box_nms_thresh: float = _DEFAULTS.box_nms_thresh,
    crop_n_layers: int = _DEFAULTS.crop_n_layers,
    crop_nms_thresh: float = _DEFAULTS.crop_nms_thresh,
    crop_overlap_ratio: float = _DEFAULTS.crop_overlap_ratio,
    crop_n_points_downscale_factor: int = _DEFAULTS.crop_n_points_downscale_factor,
    min_mask_region_area: float = _DEFAULTS.min_mask_region_area,
    mode: Mode = _DEFAULTS.mode,
    nms: Nms = _DEFAULTS.nms,
    partition: bool = _DEFAULTS.partition,
    deadline: float | None = None,
    memory: str | None = None,
    dry_run: bool = False,
    labelling: Labelling = NO_LABELLING,
    model: str = "tiny",
    runtime: Runtime = DEFAULT_RUNTIME,
    out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("segship-output"),
    format: str = DEFAULT_FORMATS,
    overwrite: bool = False,
    max_pixels: int | None = None,
    reduce: int = 1,
    json: Json = False,
) -> int:
    """Find everything in images: a mask for each thing, without a prompt.

    Parameters
    ----------
    images
        Image files, folders of them, patterns; - is standard input.
    points_per_side
        Points along one side of the grid that is asked; 32 when left out.
    point_grids
        JSON file with a list of grids, one for each layer: [[[x, y], ...], ...], x and y from 0 to 1.
    points_per_batch
        The most points that the decoder takes at once; results do not depend on it.
    pred_iou_thresh
        Keep masks whose predicted IoU is above it; when left out, what suits the model (0.88 for SAM).
    stability_score_thresh
        Keep masks whose stability score is at least this; when left out, what suits the model (0.95 for SAM).
    stability_score_offset
        How far the mask threshold moves for the stability score, in logits.
    box_nms_thresh
        Of two masks with a larger IoU, one goes.
    crop_n_layers
        Layers of crops that are looked at besides the whole image.
    crop_nms_thresh
        Of two masks of different crops with a larger IoU, one goes.
    crop_overlap_ratio
        Overlap of crops, as a part of the shorter side.
    crop_n_points_downscale_factor
        Divides points per side in each further layer.
    min_mask_region_area
        Fill holes and drop islands of fewer pixels.
    mode
        fast, or reference: exactly what the reference gives.
    nms
        Compare boxes, as the reference does, or masks.
    partition
        No two masks overlap: each pixel goes to the smallest mask that has it.
    deadline
        Seconds for each image: coarse first, finer where nothing is found yet, and stop in time.
    memory
        The most memory for the work, such as 800MB or 2GB; the model itself comes on top.
    dry_run
        Say what it will cost, and do nothing.
    model
        tiny, a bundle, a checkpoint (torch backend), or a known name.
    out
        Folder for the files.
    format
        Comma-separated: overlay, sa1b, coco, labelme, yolo, instances, panoptic, npz, parquet, folder.
    overwrite
        Replace files that are there.
    max_pixels
        Take images of up to this many pixels; 50,000,000 when left out.
    reduce
        2, 4 or 8 reads images at that part of their size, and masks are of that size.
    """
    pictures = expand_pictures(images)
    labelling.check()
    amg = AmgOptions(
        points_per_side=_points_per_side(points_per_side, point_grids),
        points_per_batch=points_per_batch,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        stability_score_offset=stability_score_offset,
        box_nms_thresh=box_nms_thresh,
        crop_n_layers=crop_n_layers,
        crop_nms_thresh=crop_nms_thresh,
        crop_overlap_ratio=crop_overlap_ratio,
        crop_n_points_downscale_factor=crop_n_points_downscale_factor,
        point_grids=None if point_grids is None else read_grids(point_grids),
        min_mask_region_area=min_mask_region_area,
        mode=mode,
        nms=nms,
        partition=partition,
        deadline_seconds=deadline,
        memory_bytes=None if memory is None else parse_bytes(memory),
    )
    options = EverythingOptions(
        amg=amg,
        formats=check_formats(part.strip() for part in format.split(",")),
        overwrite=overwrite,
        limits=ImageLimits() if max_pixels is None else ImageLimits(pixels=max_pixels),
        reduce=reduce,
        things=labelling.thing_names,
    )
    predictor = load_promptable(model, **runtime.settings())
    if dry_run:
        return _report_costs(predictor, model, pictures, options, as_json=json)
    labels = labelling.open(runtime)
    out.mkdir(parents=True, exist_ok=True)
    outcomes = _find_all(predictor, pictures, out, options, labels)
    more = {} if labels is None else {"labels_by": describe_run(labels, str(labelling.labels))}
    return report_outcomes(predictor, model, outcomes, _print_image, as_json=json, more=more)


def read_grids(path: Path) -> list[Any]:
    """Return the point grids of a JSON file.

    Raises
    ------
    InputError
        ``bad_amg_option``: the file is no JSON list.
    """
    text = read_bytes(path.resolve(), limit=_MAX_GRID_BYTES)
    try:
        grids = json_module.loads(text)
    # RecursionError: brackets nested by the thousand.
    except (ValueError, RecursionError) as error:
        raise InputError(f"--point-grids {path}: it is not JSON", code="bad_amg_option") from error
    if not isinstance(grids, list):
        message = f"--point-grids {path}: it holds a {type(grids).__name__}; accepted is a list of grids"
        raise InputError(message, code="bad_amg_option")
    return grids


def parse_bytes(text: str) -> int:
    """Return a number of bytes from text such as 800MB, 1.5 GiB or 2000000.

    Examples
    --------
    >>> parse_bytes("1.5GB"), parse_bytes("2MiB")
    (1500000000, 2097152)
    """
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        message = f"--memory is {text!r}; accepted is a number of bytes, such as 800MB, 1.5GB or 1GiB"
        raise InputError(message, code="bad_amg_option")
    number, letter, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(letter.lower() or " "))


def _points_per_side(given: int | None, point_grids: Path | None) -> int | None:
    if point_grids is not None:
        return given
    return _DEFAULTS.points_per_side if given is None else given


def _find_all(
    predictor: Predictor,
    images: Sequence[str],
    out: Path,
    options: EverythingOptions,
    labels: SemanticPredictor | None = None,
) -> Iterator[EverythingImage | FailedImage]:
    def work(source: str | bytes, name: str, stem: str) -> EverythingImage:
        with _progress(name) as tick:
            return find_everything(predictor, source, out, options, stem=stem, name=name, progress=tick, labels=labels)

    return each_picture(images, options.limits, work)


@contextmanager
def _progress(image: str) -> Iterator[Tick]:
    """Show on standard error how many points have been asked."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = errors_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(plain(image), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _report_costs(
    predictor: Predictor, model: str, images: Sequence[str], options: EverythingOptions, *, as_json: bool
) -> int:
    costs: list[tuple[str, AmgCost]] = []
    failed: list[FailedImage] = []
    for image in images:
        try:
            costs.append((image, cost_of_everything(predictor, picture_source(image, options.limits), options)))
        except SegshipError as error:
            if len(images) == 1:
                raise
            failed.append(FailedImage(image, error.code, str(error)))
            print_failure(failed[-1])
    if as_json:
        entries = [{"image": image, **cost.to_dict()} for image, cost in costs]
        told = [asdict(failure) for failure in failed]
        print_json({**describe_run(predictor, model), "dry_run": True, "images": entries, "failed": told})
        return EXIT_BAD_INPUT if failed else 0
    console = results_console()
    for image, cost in costs:
        console.print(f"[bold]{plain(image)}[/] would take:")
        console.print(make_table(("", ""), _cost_rows(cost)))
    return EXIT_BAD_INPUT if failed else 0


def _cost_rows(cost: AmgCost) -> list[tuple[str, str]]:
    return [
        ("runs of the encoder", f"{cost.crops:,}"),
        ("points", f"{cost.points:,}"),
        ("calls of the decoder", f"{cost.decoder_calls:,} with up to {cost.points_per_call} points"),
        ("masks to look at", f"{cost.candidates:,}"),
        ("memory besides the model", f"about {megabytes(cost.peak_bytes)}"),
        ("pred_iou_thresh", f"{cost.pred_iou_thresh:g}"),
        ("stability_score_thresh", f"{cost.stability_score_thresh:g}"),
    ]


def _print_image(image: EverythingImage) -> None:
    console = results_console()
    height, width = image.result.size
    times = ", ".join(f"{stage} {value:.0f} ms" for stage, value in image.milliseconds.items())
    console.print(f"[bold]{plain(image.name)}[/] {width} x {height}: {times}")
    cost = image.result.cost
    console.print(
        f"{len(image.result.records)} masks cover {image.result.coverage:.1%}; asked at {image.result.points:,} of "
        f"{cost.points:,} points; predicted IoU above {cost.pred_iou_thresh:g}, stability from "
        f"{cost.stability_score_thresh:g}"
    )
    if image.labelled is not None:
        counts = ", ".join(f"{count} {plain(name)}" for name, count in count_labels(image.labelled).items())
        console.print(f"labels: {counts or 'none'}")
    for note in image.result.notes:
        console.print(f"note: {plain(note)}" + (f": {plain(NOTES[note])}" if note in NOTES else ""))
    for path in image.files:
        console.print(f"  {plain(str(path))}")
