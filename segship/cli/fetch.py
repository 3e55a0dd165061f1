# SPDX-License-Identifier: Apache-2.0
"""``segship fetch``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segship.catalog import KNOWN_CHECKPOINTS
from segship.cli.options import Json, command
from segship.cli.output import megabytes, plain, print_json, progress_bar, progress_console, results_console
from segship.ship.fetching import FetchedModel, fetch_model


@command
def fetch(
    name: str,
    /,
    *,
    from_file: Annotated[Path | None, Parameter(name="--from")] = None,
    mirror: str | None = None,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    json: Json = False,
) -> None:
    """Fetch a published model and make its bundle, without torch.

    An interrupted download goes on where it stopped, and a bundle that is there is kept. The semantic models
    (semask_...) can only be downloaded by a browser: the command says where, and checks the file.

    Parameters
    ----------
    name
        vit_b, vit_l, vit_h or vit_t; or semask_s_cityscapes or osam_vit_b_quantized and their like, see `segship
        models`.
    from_file
        Take this file, fetched by hand, instead of downloading.
    mirror
        Base address to fetch from instead of the published one; also SEGSHIP_MIRROR.
    out
        Folder for the file, and no bundle is made; the cache folder when left out.

    Examples
    --------
    segship fetch vit_t
    segship fetch semask_s_cityscapes --from downloaded.pth
    """
    started = time.perf_counter()
    with progress_bar(name, of_bytes=True) as tick:
        fetched = fetch_model(
            name,
            destination=out,
            mirror=mirror,
            from_file=from_file,
            progress=tick,
            tell=lambda what: progress_console().print(plain(what), style="dim"),
        )
    if json:
        facts = {"name": name, "path": str(fetched.path), "bytes": fetched.bytes, "sha256": fetched.sha256}
        bundle = None if fetched.bundle is None else str(fetched.bundle)
        print_json({**facts, "checked": fetched.checked, "bundle": bundle})
        return
    results_console().print(f"{plain(str(fetched.path))}  {megabytes(fetched.bytes)}, {plain(fetched.checked)}")
    if out is None or fetched.bundle is not None:
        results_console().print(_next_step(fetched, time.perf_counter() - started))


def _next_step(fetched: FetchedModel, seconds: float) -> str:
    """Return what is there to be used, and how, or how to make it."""
    known = KNOWN_CHECKPOINTS.get(fetched.name)
    if fetched.bundle is None:
        return f"there is no ready graph for it; its bundle needs torch: segship export {fetched.name}"
    made = "was there already, and is kept" if fetched.kept else f"ready in {seconds:.1f} s"
    use = f"segment photo.jpg --model {fetched.name} --point 500,375"
    if known is not None and known.task == "semantic":
        use = f"semantic street.png --model {fetched.name}"
    return f"{plain(str(fetched.bundle))}  {made}\nuse it: segship {use}"
