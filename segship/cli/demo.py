# SPDX-License-Identifier: Apache-2.0
"""``segship demo``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from segship.catalog import KNOWN_CHECKPOINTS
from segship.cli.options import Force, Json, Model, Out, command
from segship.cli.output import plain, results_console
from segship.cli.pictures import BatchOptions, Report, describe_run, each_picture, report_outcomes, settle_pictures
from segship.cli.segment import print_image
from segship.images.reading import DEMO_POINT_XY, demo_photograph
from segship.jobs import SegmentOptions, answer_prompts, run_job
from segship.loading import load_promptable
from segship.promptable.prompts import Prompts
from segship.writers import Result

FOLDER = Path("segship-demo")
REAL_MODEL = "vit_t"
"""The smallest download whose masks are those of Segment Anything's kind."""


@command
def demo(*, model: Model = "tiny", out: Out = FOLDER, overwrite: Force = False, json: Json = False) -> int:
    """Segment a photograph inside the package from one click.

    The model is tiny, which is inside the package too, unless another one is named.

    Parameters
    ----------
    out
        Folder for the files; segship-demo-MODEL for another model than tiny.
    overwrite
        Replace files that are there.

    Examples
    --------
    segship demo --out first-masks
    segship demo --model vit_t
    """
    if out == FOLDER and model != "tiny":
        out = FOLDER.with_name(f"{FOLDER}-{Path(model).name}")
    options, batch = SegmentOptions(overwrite=overwrite), BatchOptions(out=out, json=json)
    pictures = settle_pictures([str(demo_photograph())], batch, options, Result)
    predictor = load_promptable(model)
    job = partial(run_job, partial(answer_prompts, predictor, Prompts(points=[DEMO_POINT_XY])), options=options)
    report = Report(pictures, batch, describe_run(predictor, model))
    code = report_outcomes(report, each_picture(pictures, options.limits, job), print_image)
    if not json and not code:
        x, y = DEMO_POINT_XY
        results_console().print(f"that was one click at {x},{y}; look at {plain(str(out))}/coffee.overlay.jpg")
        if model == "tiny":
            size = f"{KNOWN_CHECKPOINTS[REAL_MODEL].bytes / 1e6:.0f} MB"
            get = f"segship fetch {REAL_MODEL}, then segship demo --model {REAL_MODEL}"
            results_console().print(f"tiny is for trying things; for real masks ({size}, no torch): {get}")
    return code
