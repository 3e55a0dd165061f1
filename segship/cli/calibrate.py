# SPDX-License-Identifier: Apache-2.0
"""``segship calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segship.cli.options import OVERWRITE, Fields, Json, command
from segship.cli.output import plain, print_json, progress_console, results_console
from segship.datasets.calibration import CalibrateOptions
from segship.datasets.calibration import calibrate as make_list
from segship.ship.bins import write_bins

BINS = "bins"


@command
def calibrate(
    *images: str,
    options: Annotated[CalibrateOptions, Fields(overwrite=OVERWRITE)],
    out: Annotated[Path, Parameter(name=("--out", "-o"))],
    bins: str | None = None,
    json: Json = False,
) -> None:
    """List pictures and prompts to quantize and certify models on.

    Needs no model. Every picture is copied into the list, and listed with its digest.

    Parameters
    ----------
    images
        Pictures, folders of them, text files with a path a line, or an image list; scenes are drawn when left out.
    out
        Folder to make.
    bins
        Write what the graphs of this bundle, or known name, are given as raw files too: bins/INPUT/000000.bin.

    Examples
    --------
    segship calibrate photos --limit 40 -o calibration
    segship calibrate --limit 8 -o calibration --bins sam_vit_b
    """
    with progress_console().status("listing pictures"):
        made = make_list(images, out, options)
    shapes = {}
    if bins is not None:
        with progress_console().status(f"running {plain(bins)}"):
            shapes = write_bins(made, bins, out / BINS)
    objects = sum(len(image.objects) for image in made.listing.images)
    if json:
        document = {"path": str(made.path), "task": made.listing.task, "images": len(made), "objects": objects}
        print_json({**document, "sha256": made.sha256, "bins": shapes})
        return
    console = results_console()
    console.print(f"{len(made)} pictures with {objects} objects in {plain(str(made.path))}")
    console.print(f"SHA-256 {made.sha256}", style="dim")
    for name, shape in shapes.items():
        console.print(f"{plain(str(out / BINS / name))}: float32 {','.join(map(str, shape))}")
