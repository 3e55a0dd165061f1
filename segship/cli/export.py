# SPDX-License-Identifier: Apache-2.0
"""The part of ``segship export`` that needs torch and onnx, imported when it is needed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from segship.bundle.evidence import Row, describe_figures
from segship.cli.output import errors_console, make_table, plain, print_json, results_console
from segship.errors import ExportError
from segship.semantic.preprocessing import ScaleLimits
from segship.ship.contracts import export_contract
from segship.ship.export import export_bundle
from segship.ship.options import ExportOptions

DYNAMIC = "dynamic"


def run_export(source: Path, folder: Path, given: Mapping[str, Any], *, json: bool) -> None:
    """Export with the options that were given, sizes as text, and print the comparison of every step.

    Raises
    ------
    ExportError
        ``bad_size``, ``bad_batch`` or ``bad_scale`` when a text is no such thing.
    """
    kept = dict(given)
    kept["size"] = _parse_pair("--size", given["size"], "HEIGHT,WIDTH such as 1024,2048, or dynamic", "bad_size")
    kept["batch"] = _parse_batch(given["batch"])
    scale = _parse_pair("--scale", given["scale"], "LONG,SHORT such as 2048,1024", "bad_scale")
    kept["scale"] = None if scale is None else ScaleLimits(*scale)
    if DYNAMIC in (given["size"], given["batch"]) and given["contract"] == "ascend":
        message = "--contract ascend has fixed sizes; give --size HEIGHT,WIDTH and --batch N, or leave them out"
        raise ExportError(message, code="bad_option")
    options = ExportOptions(**kept)
    started = time.perf_counter()
    rows: list[Row] = []

    def report(step: str, compared: Sequence[Row]) -> None:
        rows.extend(compared)
        errors_console().print(f"{plain(step)}: compared, {time.perf_counter() - started:.0f} s")

    export = export_bundle if options.contract == "segship" else export_contract
    with errors_console().status(f"exporting {plain(source.name)}"):
        export(source, folder, options, report)
    if json:
        print_json({"path": str(folder), "comparison": [asdict(row) for row in rows]})
        return
    results_console().print(_comparison_table(rows))
    results_console().print(f"written to {plain(str(folder))} in {time.perf_counter() - started:.0f} s")


def _parse_pair(option: str, text: str | None, accepted: str, code: str) -> tuple[int, int] | None:
    if text is None or (text == DYNAMIC and option == "--size"):
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ExportError(f"{option} is {text!r}; accepted is {accepted}", code=code)
    return int(parts[0]), int(parts[1])


def _parse_batch(text: str | None) -> int | None:
    if text is None or text == DYNAMIC:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ExportError(f"--batch is {text!r}; accepted are 1, dynamic, or a number with ascend", code="bad_batch")
    return int(text)


def _comparison_table(rows: Sequence[Row]) -> Table:
    cells = [
        (row.step, row.what, row.cases, describe_figures(row.figures), "passed" if row.passed else "FAILED")
        for row in rows
    ]
    return make_table(("step", "compared", ">cases", "agreement with the model", "bar"), cells)
