# SPDX-License-Identifier: Apache-2.0
"""``segship verify``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segship.bundle.evidence import require_passed
from segship.certify import CertifyOptions, Line, require_held, verify_certificate
from segship.cli.export import comparison_table, require_exporter
from segship.cli.options import Fields, Json, command
from segship.cli.output import make_table, plain, print_json, progress_console, results_console
from segship.errors import InputError

CERTIFIED = Fields(limit=None, objects=None)
"""How pictures were chosen stands in the certificate."""


@command
def verify(
    bundle: Path,
    /,
    *,
    torch: Annotated[Path | None, Parameter(name="--torch")] = None,
    images: Path | None = None,
    options: Annotated[CertifyOptions, CERTIFIED],
    json: Json = False,
) -> None:
    """Prove a certificate anew, or hold graphs against a torch model.

    Exits with 5 when something that the certificate says does not hold here, or a graph differs from torch by more than
    the bar of an export.

    Parameters
    ----------
    bundle
        A bundle that was certified; or, with --torch, one that was made of the checkpoint by `segship bundle`,
        `segship fetch` or `segship export`, or graphs of `segship import` that are believed to be.
    torch
        Compare with this checkpoint; it is run in torch, which must be installed.
    images
        The pictures of the certificate: measures its figures again. Digests and a few built-in cases when left out.

    Examples
    --------
    segship verify sam_vit_b --images evaluation
    segship verify sam_vit_b --torch sam_vit_b_01ec64.pth
    """
    if torch is not None:
        if images is not None:
            message = "--images are of the certificate and --torch compares with torch; give one of them"
            raise InputError(message, code="bad_option")
        _compare(bundle, torch, json)
        return
    with progress_console().status(f"proving {plain(bundle.name)}"):
        lines = verify_certificate(bundle, images, options)
    if json:
        print_json({"path": str(bundle), "certificate": [asdict(line) for line in lines]})
    else:
        results_console().print(_lines_table(lines))
    require_held(lines)


def _compare(bundle: Path, torch: Path, json: bool) -> None:
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


def _lines_table(lines: Sequence[Line]) -> object:
    rows = [(line.what, "holds" if line.holds else "DOES NOT HOLD", line.found) for line in lines]
    return make_table(("certified", "here", "found"), rows)
