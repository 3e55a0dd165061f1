# SPDX-License-Identifier: Apache-2.0
"""``segship semantic``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter

from segship.cli.options import MODEL_GROUP, VIEWS_GROUP, Fields, Images, Option, Run, command, in_group, job_fields
from segship.cli.output import make_table, results_console
from segship.cli.pictures import (
    Batch,
    Report,
    describe_run,
    each_picture,
    print_head,
    print_tail,
    report_outcomes,
    settle_pictures,
)
from segship.draw import percent
from segship.errors import InputError
from segship.jobs import FinishedImage, MapOptions, answer_classes, run_job
from segship.loading import load_semantic
from segship.semantic.views import MULTI_SCALE_RATIOS, SemanticOptions
from segship.writers import ClassMapResult

Number = TypeVar("Number", int, float)


def make_options(*, multi_scale: bool = False, **given: Any) -> SemanticOptions:
    """Return the views of a picture that a model gets.

    Parameters
    ----------
    multi_scale
        The published multi-scale test: ratios 0.5 to 1.75 and mirrored.
    """
    if not multi_scale:
        return SemanticOptions(**given)
    if "ratios" in given or given.get("flip"):
        raise InputError("--multi-scale was given with --ratios or --flip, which it contains", code="bad_option")
    return SemanticOptions(**{**given, "ratios": MULTI_SCALE_RATIOS, "flip": True})


def parse_numbers(option: str, kind: Callable[[str], Number], text: str) -> tuple[Number, ...]:
    """Return comma-separated numbers."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        message = f"{option} is {text!r}; accepted are numbers with commas between"
        raise InputError(message, code="bad_option") from error


def parse_pair(option: str, text: str) -> tuple[int, ...]:
    """Return two comma-separated sizes."""
    numbers = parse_numbers(option, int, text)
    if len(numbers) != 2:
        raise InputError(f"{option} is {text!r}; accepted are two sizes, such as 512,1024", code="bad_option")
    return numbers


SEMANTIC = Fields(
    make_options,
    VIEWS_GROUP,
    probability=None,
    **in_group(
        VIEWS_GROUP,
        "flip",
        window=Option(parse=partial(parse_pair, "--window"), metavar="HEIGHT,WIDTH"),
        stride=Option(parse=partial(parse_pair, "--stride"), metavar="ROWS,COLUMNS"),
        ratios=Option(parse=partial(parse_numbers, "--ratios", float), metavar="NUMBERS"),
    ),
)


@command
def semantic(
    *images: Images,
    options: Annotated[MapOptions, job_fields("class maps", semantic=SEMANTIC)],
    model: Annotated[str, Parameter(group=MODEL_GROUP)],
    runtime: Run,
    batch: Batch,
) -> int:
    """Find the class of every pixel of images.

    Parameters
    ----------
    model
        A semantic bundle, a SeMask checkpoint (torch backend), or a known name such as semask_s_cityscapes.

    Examples
    --------
    segship semantic street.png --model semask_s_cityscapes
    segship semantic leftImg8bit/val --recursive --model streets -o maps
    """
    pictures = settle_pictures(images, batch, options, ClassMapResult)
    predictor = load_semantic(model, **asdict(runtime))
    predictor.check_options(options.semantic)
    job = partial(run_job, partial(answer_classes, predictor), options=options)
    outcomes = each_picture(pictures, options.limits, job, description="finding classes")
    return report_outcomes(Report(pictures, batch, describe_run(predictor, model)), outcomes, _print_image)


def _print_image(image: FinishedImage[ClassMapResult]) -> None:
    class_map = image.answer.class_map
    height, width = class_map.array.shape
    print_head(image.answer.name, (height, width), image.milliseconds)
    shares = class_map.shares()
    rows = [(name, f"{area:,} px", percent(shares[name])) for name, area in class_map.areas().items()]
    results_console().print(make_table(("class", ">area", ">of image"), rows))
    print_tail(class_map.notes, image.files)
