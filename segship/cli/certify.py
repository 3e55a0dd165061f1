# SPDX-License-Identifier: Apache-2.0
"""``segship certify``."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from segship.bundle.certificate import CERTIFICATE_FILE, Certified
from segship.certify import CertifyOptions
from segship.certify import certify as certify_bundle
from segship.cli.options import OUTPUT_GROUP, Fields, Force, Json, command
from segship.cli.output import check_plot, make_table, plain, print_json, progress_console, results_console
from segship.evaluation.agreement import draw_agreements
from segship.files import write_file


@command
def certify(
    model: str,
    /,
    *,
    images: Path,
    options: Annotated[CertifyOptions, Fields()],
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    plot: Annotated[Path | None, Parameter(group=OUTPUT_GROUP)] = None,
    overwrite: Force = False,
    json: Json = False,
) -> None:
    """Certify what every precision costs in masks or classes here.

    Every artifact in every runtime is held against fp32 in ONNX Runtime, and the verdicts are written into the bundle.

    Parameters
    ----------
    model
        A bundle's folder, or a known name.
    images
        An image list of `segship calibrate`, or a folder of pictures.
    out
        Write a copy there; the certificate goes into the bundle itself when left out.
    plot
        Draw how the IoU with fp32 is distributed, and the error of every output, into this .svg file.
    overwrite
        Replace the .svg file if it is there.

    Examples
    --------
    segship certify sam_vit_b --images evaluation
    """
    check_plot(plot, overwrite=overwrite)
    with progress_console().status(f"certifying {plain(model)}"):
        done = certify_bundle(model, images, options, _report, out=out)
    if plot is not None:
        values = {" ".join(names): found for names, found in done.agreements.items() if found}
        title = (
            f"{done.bundle.manifest.architecture}: IoU with fp32 in {done.certificate.reference.backend}, and errors"
        )
        rows = {f"{row.backend} {row.precision}": row.evidence for row in done.certificate.certified if row.evidence}
        write_file(plot, draw_agreements(title, values, rows).encode(), overwrite=overwrite)
    if json:
        certificate = json_module.loads(done.certificate.to_json())
        print_json({"path": str(done.bundle.path), "certificate": certificate})
        return
    console = results_console()
    console.print(certified_table(done.certificate.certified))
    console.print(f"written to {plain(str(done.bundle.path / CERTIFICATE_FILE))}")
    if plot is not None:
        console.print(f"drawn into {plain(str(plot))}")


def certified_table(certified: Sequence[Certified]) -> Table:
    """Return verdicts as a table."""
    rows = [(row.backend, row.version, row.precision, row.verdict, row.reason) for row in certified]
    return make_table(("backend", "version", "precision", "verdict", "why"), rows)


def _report(certified: Certified) -> None:
    told = f"{certified.backend} {certified.precision}: {certified.verdict}"
    progress_console().print(plain(told))
