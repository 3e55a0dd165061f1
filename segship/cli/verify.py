# SPDX-License-Identifier: Apache-2.0
"""``segship verify``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segship.bundle.evidence import require_passed
from segship.cli.export import comparison_table, require_exporter
from segship.cli.options import Json, command
from segship.cli.output import plain, print_json, progress_console, results_console


@command
def verify(bundle: Path, /, *, torch: Annotated[Path, Parameter(name="--torch")], json: Json = False) -> None:
    """Hold the graphs of a bundle against their torch model.

    Exits with 5 when a graph differs by more than the bar of an export.

    Parameters
    ----------
    bundle
        A bundle that was made of the checkpoint, by `segship bundle`, `segship fetch` or `segship export`; or graphs of
        `segship import` that are believed to be.
    torch
        The checkpoint; it is run in torch, which must be installed.

    Examples
    --------
    segship verify sam_vit_b --torch sam_vit_b_01ec64.pth
    """
    require_exporter("comparing with the torch model")
    # torch takes seconds to import and is not installed everywhere.
    from segship.ship.verify import verify_bundle

    with progress_console().status(f"comparing {plain(bundle.name)} with {plain(torch.name)}"):
        rows = verify_bundle(bundle, torch)
    if json:
        print_json({"path": str(bundle), "comparison": [asdict(row) for row in rows]})
    else:
        results_console().print(comparison_table(rows))
    require_passed(rows)
