# SPDX-License-Identifier: Apache-2.0
"""``segship quantize``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from segship.cli.export import require_exporter
from segship.cli.options import OVERWRITE, PROMPTABLE_GROUP, Fields, Json, command, in_group
from segship.cli.output import make_table, megabytes, plain, print_json, progress_console, results_console
from segship.cli.tune import checks_table
from segship.ship.quantize.options import QuantizeOptions

if TYPE_CHECKING:
    from segship.bundle.evidence import Row


@command
def quantize(
    model: str,
    /,
    *,
    options: Annotated[QuantizeOptions, Fields(force=OVERWRITE, **in_group(PROMPTABLE_GROUP, "mask_iou"))],
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    json: Json = False,
) -> None:
    """Make a bundle smaller or faster, and say what it costs.

    Every graph is held against fp32 on pictures that it was not calibrated with. What misses the bar is mended: the
    layers that do most damage go back to higher precision. What still misses is refused.

    Parameters
    ----------
    model
        A bundle's folder, or a known name.
    out
        Write another bundle there; the bundle itself gets the new graphs beside its own when left out.

    Examples
    --------
    segship quantize sam_vit_b --precision int8 --calibration calibration
    """
    require_exporter("quantizing", packages=("onnx",), extra="quantize")
    # onnx takes long to import and is not installed everywhere.
    from segship.ship.quantize.quantizing import quantize_bundle

    with progress_console().status(f"quantizing {plain(model)}"):
        bundle = quantize_bundle(model, options, _report, out=out)
    precision = options.precision
    made = [artifact for artifact in bundle.manifest.artifacts if artifact.precision == precision]
    checks = [check for check in bundle.manifest.checks if check.precision == precision]
    if json:
        document = {"path": str(bundle.path), "precision": precision}
        print_json(
            {**document, "artifacts": [asdict(artifact) for artifact in made], "checks": list(map(asdict, checks))}
        )
        return
    console = results_console()
    rows = [(artifact.graph, megabytes(artifact.all_bytes), _kept(artifact.options)) for artifact in made]
    console.print(make_table(("graph", ">size", "in higher precision"), rows))
    console.print(checks_table(checks))
    console.print(
        f"written to {plain(str(bundle.path))}; use it: --model {plain(str(bundle.path))} --precision {precision}"
    )


def _report(step: str, rows: Sequence[Row]) -> None:
    progress_console().print(plain("; ".join(map(str, rows[-1:])) or step))


def _kept(options: Mapping[str, object]) -> str:
    names = options.get("restored", options.get("float32_nodes", "-"))
    return plain(str(names)[:200])
