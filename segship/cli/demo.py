# SPDX-License-Identifier: Apache-2.0
"""``segship demo``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from segship.cli.options import Json, command
from segship.cli.output import plain, results_console
from segship.cli.pictures import each_picture, report_outcomes
from segship.cli.segment import print_image
from segship.files import make_directory
from segship.images.reading import DEMO_POINT_XY, demo_photograph
from segship.jobs import SegmentOptions, answer_prompts, run_job
from segship.loading import load_promptable
from segship.promptable.prompts import Prompts


@command
def demo(*, out: Path = Path("segship-demo"), overwrite: bool = False, json: Json = False) -> int:
    """Segment a photograph inside the package from one click.

    The model is tiny, which is inside the package too.

    Parameters
    ----------
    out
        Folder for the overlay.
    overwrite
        Replace files that are there.

    Examples
    --------
    segship demo --out first-masks
    """
    predictor = load_promptable("tiny")
    make_directory(out)
    options = SegmentOptions(overwrite=overwrite)
    prompts = Prompts(points=[DEMO_POINT_XY])
    job = partial(run_job, partial(answer_prompts, predictor, prompts), options=options, directory=out)
    outcomes = each_picture([str(demo_photograph())], options.limits, job)
    code = report_outcomes(predictor, "tiny", outcomes, print_image, as_json=json)
    if not json:
        x, y = DEMO_POINT_XY
        results_console().print(f"that was one click at {x},{y}; look at {plain(str(out))}/coffee.overlay.jpg")
    return code
