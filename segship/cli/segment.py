# SPDX-License-Identifier: Apache-2.0
"""Commands of the use road: segment, demo."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from segship.catalog import load_promptable
from segship.cli.look import Json
from segship.cli.output import (
    DEFAULT_RUNTIME,
    FailedImage,
    Runtime,
    make_table,
    plain,
    report_outcomes,
    results_console,
)
from segship.cli.pictures import each_picture, expand_pictures
from segship.errors import PromptError
from segship.files import read_bytes
from segship.images import ImageLimits
from segship.images.reading import DEMO_POINT_XY, demo_photograph
from segship.jobs import SegmentedImage, SegmentOptions, segment_image
from segship.promptable.predictor import Predictor
from segship.promptable.prompt_text import parse_box, parse_point, parse_prompts_json
from segship.promptable.prompts import PromptLimits, Prompts
from segship.writers import check_formats, read_mask_input

DEFAULT_FORMATS = "overlay,png"
Values = Annotated[list[str] | None, Parameter(allow_leading_hyphen=True, negative=())]


def segment(
    *images: str,
    point: Values = None,
    box: Values = None,
    prompts: Path | None = None,
    mask_input: Path | None = None,
    multimask: bool = False,
    clip: bool = False,
    model: str = "tiny",
    runtime: Runtime = DEFAULT_RUNTIME,
    out: Annotated[Path, Parameter(name=("--out", "-o"))] = Path("segship-output"),
    format: str = DEFAULT_FORMATS,
    overwrite: bool = False,
    max_pixels: int | None = None,
    json: Json = False,
) -> int:
    """Segment images from points, boxes, masks.

    All points belong to one object, and one box given with them to the same object; several boxes are several
    objects. Objects with points of their own come from a file: --prompts.

    Parameters
    ----------
    images
        Image files, folders of them, patterns; - is standard input.
    point
        X,Y or X,Y,LABEL in pixels of the upright image; label 1 foreground, 0 background. May be given again.
    box
        X0,Y0,X1,Y1. May be given again.
    prompts
        JSON file with points, labels, boxes, or a list of objects.
    mask_input
        .npz of an earlier run, whose best masks are refined.
    multimask
        All three masks of every object instead of one.
    clip
        Move points outside the image to its edge instead of refusing them.
    model
        tiny, a bundle, a checkpoint (torch backend), or a known name.
    out
        Folder for the files.
    format
        Comma-separated: overlay, png, coco, npz, json, sa1b, labelme, yolo, instances, panoptic, parquet, folder.
    overwrite
        Replace files that are there.
    max_pixels
        Take images of up to this many pixels; 50,000,000 when left out.
    """
    pictures = expand_pictures(images)
    limits = ImageLimits() if max_pixels is None else ImageLimits(pixels=max_pixels)
    options = SegmentOptions(
        multimask_output=True if multimask else "auto",
        clip=clip,
        formats=check_formats(part.strip() for part in format.split(",")),
        overwrite=overwrite,
        limits=limits,
    )
    given = gather_prompts(point or [], box or [], prompts, mask_input)
    predictor = load_promptable(model, **runtime.settings())
    out.mkdir(parents=True, exist_ok=True)
    outcomes = _segment_all(predictor, pictures, given, out, options)
    return report_outcomes(predictor, model, outcomes, _print_image, as_json=json)


def demo(*, out: Path = Path("segship-demo"), overwrite: bool = False, json: Json = False) -> int:
    """Segment the photograph inside the package from one click, with the model inside the package.

    Parameters
    ----------
    out
        Folder for the overlay.
    overwrite
        Replace files that are there.
    """
    predictor = load_promptable("tiny")
    out.mkdir(parents=True, exist_ok=True)
    options = SegmentOptions(overwrite=overwrite)
    outcomes = _segment_all(predictor, [str(demo_photograph())], Prompts(points=[DEMO_POINT_XY]), out, options)
    code = report_outcomes(predictor, "tiny", outcomes, _print_image, as_json=json)
    if not json:
        x, y = DEMO_POINT_XY
        results_console().print(f"that was one click at {x},{y}; look at {plain(str(out))}/coffee.overlay.jpg")
    return code


def gather_prompts(
    points: Sequence[str], boxes: Sequence[str], file: Path | None, mask_input: Path | None
) -> Prompts | list[Prompts]:
    """Make prompts of what stands on the command line.

    Raises
    ------
    PromptError
        When parts contradict one another.
    """
    if file is not None:
        if points or boxes or mask_input is not None:
            raise PromptError(
                "--prompts was given together with --point, --box or --mask-input; put everything into the file",
                code="prompts_given_twice",
            )
        return parse_prompts_json(read_bytes(file.resolve(), limit=PromptLimits().json_bytes + 1))
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


def _segment_all(
    predictor: Predictor,
    images: Sequence[str],
    prompts: Prompts | list[Prompts],
    out: Path,
    options: SegmentOptions,
) -> Iterator[SegmentedImage | FailedImage]:
    def work(source: str | bytes, name: str, stem: str) -> SegmentedImage:
        return segment_image(predictor, source, prompts, out, options, stem=stem, name=name)

    return each_picture(images, options.limits, work, description="segmenting")


def _print_image(image: SegmentedImage) -> None:
    console = results_console()
    height, width = image.prediction.original_size
    times = ", ".join(f"{stage} {value:.0f} ms" for stage, value in image.milliseconds.items())
    console.print(f"[bold]{plain(image.result.name)}[/] {width} x {height}: {times}")
    areas = image.prediction.areas
    rows = [
        (
            entry,
            index,
            f"{image.prediction.iou_predictions[entry, index]:.3f}",
            f"{area:,} px",
            f"{area / (height * width):.1%}",
        )
        for (entry, index), area in zip(np.ndindex(areas.shape), areas.ravel().tolist(), strict=True)
    ]
    console.print(make_table((">object", ">mask", ">predicted IoU", ">area", ">of image"), rows))
    for note in dict.fromkeys((*image.result.notes, *image.prediction.notes)):
        console.print(f"note: {plain(note)}")
    for path in image.files:
        console.print(f"  {plain(str(path))}")
