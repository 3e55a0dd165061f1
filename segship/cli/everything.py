# SPDX-License-Identifier: Apache-2.0
"""``segship everything``."""

from __future__ import annotations

import json as json_module
import re
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from segship.backends.session import RunOptions
from segship.cli.options import (
    COST_GROUP,
    EDGES,
    FILTER_GROUP,
    INPUT_GROUP,
    LABELS_GROUP,
    SEARCH_GROUP,
    Fields,
    Images,
    Model,
    Option,
    Run,
    command,
    in_group,
    job_fields,
    parse_words,
)
from segship.cli.output import make_table, megabytes, plain, progress_bar, results_console
from segship.cli.pictures import (
    Batch,
    Merge,
    Report,
    describe_run,
    each_merged,
    each_picture,
    find_pictures,
    print_head,
    print_tail,
    report_outcomes,
    settle_pictures,
    split_merged,
)
from segship.datasets.known import thing_classes
from segship.errors import InputError
from segship.files import read_bytes, real_path
from segship.jobs import Everything, EverythingOptions, FinishedImage, answer_everything, read, run_job
from segship.loading import load_promptable, load_semantic
from segship.promptable.everything.cost import AmgCost, check_cost, estimate_cost
from segship.promptable.everything.options import AmgOptions
from segship.semantic.predictor import SemanticPredictor
from segship.writers import Instances, MergedWriter
from segship.writers.instances import count_labels

_MAX_GRID_BYTES = 64 * 2**20
_MOST_BYTES_DIGITS = 30
_BYTES = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", re.IGNORECASE)


def make_amg(**given: Any) -> AmgOptions:
    """Return what to look for; grids from a file stand instead of the default grid."""
    return AmgOptions(**{"points_per_side": None, **given} if "point_grids" in given else given)


def read_grids(path: Path) -> list[Any]:
    """Return the point grids of a JSON file.

    Raises
    ------
    InputError
        ``bad_amg_option``: the file is no JSON list.
    """
    text = read_bytes(real_path(path), limit=_MAX_GRID_BYTES)
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
    if match is None or len(text) > _MOST_BYTES_DIGITS:
        message = f"--memory is {text!r}; accepted is a number of bytes, such as 800MB, 1.5GB or 1GiB"
        raise InputError(message, code="bad_amg_option")
    number, letter, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(letter.lower() or " "))


AMG = Fields(
    make_amg,
    output_mode=None,
    **in_group(
        SEARCH_GROUP,
        "crop_n_layers",
        "crop_overlap_ratio",
        "crop_n_points_downscale_factor",
        "mode",
        points_per_side=Option(help="Points along one side of the grid that is asked."),
        point_grids=Option(
            kind=Path | None,
            parse=read_grids,
            help="JSON file with a list of grids instead, one for each layer: [[[x, y], ...], ...], from 0 to 1.",
        ),
    ),
    **in_group(
        FILTER_GROUP,
        "pred_iou_thresh",
        "stability_score_thresh",
        "stability_score_offset",
        "box_nms_thresh",
        "refine_iou_thresh",
        "crop_nms_thresh",
        "nms",
        "min_mask_region_area",
        "partition",
        edges=EDGES,
        refine=Option(negative="--no-refine"),
    ),
    **in_group(
        COST_GROUP,
        "points_per_batch",
        "force_cost",
        deadline_seconds=Option(name="--deadline", metavar="SECONDS"),
        memory_bytes=Option(name="--memory", parse=parse_bytes, metavar="SIZE"),
    ),
)
REDUCE = Option(group=INPUT_GROUP)
THINGS = Option(parse=parse_words, metavar="NAMES", group=LABELS_GROUP)


@command
def everything(
    *images: Images,
    options: Annotated[EverythingOptions, job_fields("masks", amg=AMG, reduce=REDUCE, things=THINGS)],
    labels: Annotated[str | None, Parameter(group=LABELS_GROUP)] = None,
    label_backend: Annotated[str | None, Parameter(group=LABELS_GROUP)] = None,
    dry_run: Annotated[bool, Parameter(group=COST_GROUP)] = False,
    merge: Merge = False,
    model: Model = "tiny",
    runtime: Run,
    batch: Batch,
) -> int:
    """Find everything in images, without a prompt.

    Gives a mask for each thing.

    Parameters
    ----------
    labels
        Semantic bundle, checkpoint or known name: each mask gets a class by vote of that model's class map, with
        label_confidence and label_purity, and panoptic has things and stuff.
    label_backend
        With --labels: what runs that model; as --backend when left out. The other runtime options hold for both.
    dry_run
        Say what it will cost, and do nothing.
    merge
        One data set of all images for the formats coco, panoptic and yolo, instead of files of each.

    Examples
    --------
    segship everything photo.jpg
    segship everything photos --recursive --skip-existing -o masks
    segship everything photo.jpg --points-per-side 16 --format coco,overlay
    """
    for option, given in (("--things", options.things), ("--label-backend", label_backend)):
        if labels is None and given is not None:
            message = f"{option} was given without --labels, to which it belongs; give both"
            raise InputError(message, code="bad_option")
    options, merged = split_merged(options, batch, merge=merge)
    pictures = find_pictures(images, batch) if dry_run else settle_pictures(images, batch, options, Instances)
    predictor = load_promptable(model, **asdict(runtime))
    options = replace(options, limits=predictor.image_limits(options.limits))
    if dry_run:

        def estimate(source: str | bytes, name: str, directory: Path, stem: str) -> _ImageCost:
            cost, refused = estimate_cost(predictor, read(source, options).loaded.size_hw, options.amg), None
            try:
                check_cost(cost, options.amg)
            except InputError as error:
                refused = error.on_command_line
            return _ImageCost(name, cost, refused)

        report = Report(pictures, batch, {**describe_run(predictor, model), "dry_run": True})
        return report_outcomes(report, each_picture(pictures, options.limits, estimate), _print_cost)
    semantic = None
    if labels is not None:
        semantic = _open_labels(labels, replace(runtime, backend=label_backend or runtime.backend), options)

    def find(
        source: str | bytes, name: str, directory: Path, stem: str, merged: MergedWriter | None = None
    ) -> FinishedImage[Everything]:
        with progress_bar(name) as tick:
            answer = partial(answer_everything, predictor, semantic, progress=tick)
            return run_job(answer, source, options, directory, stem=stem, name=name, merged=merged)

    more = {} if semantic is None else {"labels_by": describe_run(semantic, str(labels))}
    report = Report(pictures, batch, {**describe_run(predictor, model), **more})
    return report_outcomes(report, each_merged(report, pictures, merged, options, find), _print_image)


def _open_labels(labels: str, runtime: RunOptions, options: EverythingOptions) -> SemanticPredictor:
    predictor = load_semantic(labels, **asdict(runtime))
    thing_classes(predictor.table, options.things)
    return predictor


@dataclass(frozen=True, slots=True)
class _ImageCost:
    image: str
    cost: AmgCost
    refused: str | None
    """Why it would not be begun."""

    def to_dict(self) -> dict[str, Any]:
        return {"image": self.image, **self.cost.to_dict(), "refused": self.refused}


def _print_cost(image: _ImageCost) -> None:
    console = results_console()
    console.print(f"[bold]{plain(image.image)}[/] would take:")
    console.print(make_table(("", ""), _cost_rows(image.cost)))
    if image.refused is not None:
        console.print(f"it would be refused: {plain(image.refused)}")


def _cost_rows(cost: AmgCost) -> list[tuple[str, str]]:
    return [
        ("runs of the encoder", f"{cost.crops:,}"),
        ("points", f"{cost.points:,}"),
        ("calls of the decoder", f"{cost.decoder_calls:,} with up to {cost.points_per_call} points"),
        ("masks to look at", f"{cost.candidates:,}"),
        ("memory besides the model", f"about {megabytes(cost.peak_bytes)}"),
        ("pred_iou_thresh", f"{cost.pred_iou_thresh:g}"),
        ("stability_score_thresh", f"{cost.stability_score_thresh:g}"),
        ("refine_iou_thresh", "-" if cost.refine_iou_thresh is None else f"{cost.refine_iou_thresh:g}"),
    ]


def _print_image(image: FinishedImage[Everything]) -> None:
    found, source, console = image.answer.result, image.answer.source, results_console()
    print_head(source.name, found.size, image.milliseconds)
    cost = found.cost
    console.print(
        f"{len(found.records)} masks cover {found.coverage:.1%}; asked at {found.points:,} of {cost.points:,} points; "
        f"predicted IoU above {cost.pred_iou_thresh:g}, stability from {cost.stability_score_thresh:g}"
        + ("" if cost.refine_iou_thresh is None else f", refined above {cost.refine_iou_thresh:g}")
    )
    if found.what_was_filtered:
        console.print(plain(found.what_was_filtered))
    if isinstance(source, Instances):
        counts = ", ".join(f"{count} {plain(name)}" for name, count in count_labels(source).items())
        console.print(f"labels: {counts or 'none'}")
    print_tail(found.notes, image.files)
