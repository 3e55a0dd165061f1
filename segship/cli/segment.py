# SPDX-License-Identifier: Apache-2.0
"""``segship segment``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from segship.cli.options import EDGES, Images, Model, Option, Run, command, job_fields
from segship.cli.output import make_table, results_console
from segship.cli.pictures import (
    Batch,
    Merge,
    Report,
    describe_run,
    each_merged,
    print_head,
    print_tail,
    report_outcomes,
    settle_pictures,
    split_merged,
)
from segship.errors import PromptError
from segship.files import read_bytes, real_path
from segship.jobs import FinishedImage, JobImage, SegmentOptions, answer_prompts, run_job
from segship.loading import load_promptable
from segship.promptable.prediction import MaskPrediction
from segship.promptable.prompt_text import parse_box, parse_point, parse_prompts_json
from segship.promptable.prompts import PromptLimits, Prompts
from segship.writers import Result, read_mask_input

# Coordinates may be below 0.
COORDINATES = Parameter(allow_leading_hyphen=True, negative=())
# Half a million boxes; a server sets a smaller limit.
PROMPTS_FILE = PromptLimits(json_bytes=16 * 2**20)
MULTIMASK = Option(
    name="--multimask",
    kind=bool,
    default=False,
    parse=lambda given: True if given else "auto",
    help="All three masks of every object instead of one.",
)


@command
def segment(
    *images: Images,
    point: Annotated[list[str] | None, COORDINATES, Parameter(metavar="X,Y")] = None,
    box: Annotated[list[str] | None, COORDINATES, Parameter(metavar="X0,Y0,X1,Y1")] = None,
    prompts: Path | None = None,
    mask_input: Path | None = None,
    options: Annotated[SegmentOptions, job_fields("masks", multimask_output=MULTIMASK, edges=EDGES)],
    merge: Merge = False,
    model: Model = "tiny",
    runtime: Run,
    batch: Batch,
) -> int:
    """Segment images from points, boxes and masks.

    All points belong to one object, and one box given with them to the same object; several boxes are several
    objects. Objects with points of their own come from a file: --prompts.

    Parameters
    ----------
    point
        X,Y or X,Y,LABEL in pixels of the upright image; label 1 foreground, 0 background. May be given again.
    box
        Around an object, in the same pixels. May be given again.
    prompts
        JSON file with points, labels, boxes; or with objects of their own: {"objects": [{"boxes": ...}, ...]}.
    mask_input
        .npz of an earlier run on the same image, whose best masks are refined.
    merge
        One data set of all images for the formats coco, panoptic and yolo, instead of files of each.

    Examples
    --------
    segship segment photo.jpg --point 500,375 --point 600,400,0
    segship segment photo.jpg --box 425,600,700,875 --format coco,png -o masks
    segship segment photos --prompts prompts.json --recursive --skip-existing
    """
    options, merged = split_merged(options, batch, merge=merge)
    pictures = settle_pictures(images, batch, options, Result)
    given = gather_prompts(point or [], box or [], prompts, mask_input)
    predictor = load_promptable(model, **asdict(runtime))
    options = replace(options, limits=predictor.image_limits(options.limits))

    def answer(image: JobImage, options: SegmentOptions) -> Result:
        if mask_input is not None:
            # What it holds was read above; this is whether it is this image's.
            read_mask_input(mask_input, image.loaded.size_hw)
        return answer_prompts(predictor, given, image, options)

    job = partial(run_job, answer, options=options)
    report = Report(pictures, batch, describe_run(predictor, model))
    outcomes = each_merged(report, pictures, merged, options, job, description="segmenting")
    return report_outcomes(report, outcomes, print_image)


def gather_prompts(
    points: Sequence[str], boxes: Sequence[str], file: Path | None, mask_input: Path | None
) -> Prompts | list[Prompts]:
    """Make prompts of what stands on the command line; parts that contradict one another are a `PromptError`."""
    if file is not None:
        if points or boxes or mask_input is not None:
            raise PromptError(
                "--prompts was given together with --point, --box or --mask-input; put everything into the file",
                code="prompts_given_twice",
            )
        text = read_bytes(real_path(file), limit=PROMPTS_FILE.json_bytes + 1)
        try:
            return parse_prompts_json(text, PROMPTS_FILE)
        except PromptError as error:
            raise PromptError(f"--prompts {file}: {error.on_command_line}", code=error.code) from error
    if points and len(boxes) > 1:
        raise PromptError(
            f"{len(points)} points and {len(boxes)} boxes were given, and points belong to one object; "
            'write the objects into a file: --prompts, {"objects": [{"points": ..., "boxes": ...}, ...]}',
            code="ambiguous_prompts",
        )
    parsed = [parse_point(text) for text in points]
    return Prompts(
        points=[(point.x, point.y) for point in parsed] or None,
        labels=[point.label for point in parsed] or None,
        boxes=[parse_box(text) for text in boxes] or None,
        mask_input=None if mask_input is None else read_mask_input(mask_input),
    )


def print_image(image: FinishedImage[Result]) -> None:
    """Print what became of one image."""
    prediction = image.answer.prediction
    assert isinstance(prediction, MaskPrediction)
    height, width = prediction.original_size
    print_head(image.answer.name, (height, width), image.milliseconds)
    areas, scores = prediction.areas, prediction.iou_predictions
    rows = [
        (*place, f"{scores[place]:.3f}", f"{areas[place]:,} px", f"{areas[place] / (height * width):.1%}")
        for place in np.ndindex(areas.shape)
    ]
    results_console().print(make_table((">object", ">mask", ">predicted IoU", ">area", ">of image"), rows))
    print_tail((*image.answer.notes, *prediction.notes), image.files)
