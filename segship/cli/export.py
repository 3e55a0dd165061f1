# SPDX-License-Identifier: Apache-2.0
"""The two halves of ``segship export``, one a family; torch comes with them, so they are imported when needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from segship.bundle.measured import AnyStep, SemanticStep
from segship.cli.output import errors_console, make_table, plain, print_json, results_console
from segship.errors import ExportError
from segship.semantic.preprocessing import ScaleLimits
from segship.ship.contracts import export_foreign
from segship.ship.export_promptable import ExportOptions, export_bundle
from segship.ship.export_semantic import SemanticExportOptions, export_ascend_semantic, export_semantic

DYNAMIC = "dynamic"
Report = Callable[[str, Sequence[AnyStep]], None]


def export_promptable(source: Path, folder: Path, given: Mapping[str, Any], *, json: bool) -> None:
    """Export a promptable model with the options that were given; None stands for their defaults."""
    options = ExportOptions(**{name: value for name, value in given.items() if value is not None})
    export = export_bundle if options.contract == "segship" else export_foreign
    _run(source, folder, lambda report: export(source, folder, options, report), json=json)


def export_semantic_model(source: Path, folder: Path, given: Mapping[str, Any], *, json: bool) -> None:
    """Export a semantic model with the options that were given, sizes as text; None stands for their defaults.

    Raises
    ------
    ExportError
        ``other_family`` for a contract that only promptable models have; ``bad_size``, ``bad_batch``, ``bad_scale``
        when a text is no such thing.
    """
    if given["contract"] not in ("segship", "ascend"):
        message = (
            f"{source} is a semantic model, and --contract {given['contract']} belongs to promptable ones; accepted "
            "are segship and ascend"
        )
        raise ExportError(message, code="other_family")
    kept = {name: value for name, value in given.items() if value is not None}
    kept["size"] = _parse_pair("--size", given["size"], "HEIGHT,WIDTH such as 1024,2048, or dynamic", "bad_size")
    kept["batch"] = _parse_batch(given["batch"])
    scale = _parse_pair("--scale", given["scale"], "LONG,SHORT such as 2048,1024", "bad_scale")
    kept["scale"] = None if scale is None else ScaleLimits(*scale)
    if _asks_for_open_sizes(given) and given["contract"] == "ascend":
        message = "--contract ascend has fixed sizes; give --size HEIGHT,WIDTH and --batch N, or leave them out"
        raise ExportError(message, code="bad_option")
    options = SemanticExportOptions(**kept)
    export = export_semantic if options.contract == "segship" else export_ascend_semantic
    _run(source, folder, lambda report: export(source, folder, options, report), json=json)


def _asks_for_open_sizes(given: Mapping[str, Any]) -> bool:
    """Tell whether an open size or batch was asked for in so many words."""
    return DYNAMIC in (given["size"], given["batch"])


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


def _run(source: Path, folder: Path, export: Callable[[Report], object], *, json: bool) -> None:
    """Export, say when each step was compared, and print the comparison."""
    started = time.perf_counter()
    rows: list[AnyStep] = []

    def report(step: str, steps: Sequence[AnyStep]) -> None:
        rows.extend(steps)
        errors_console().print(f"{plain(step)}: compared, {time.perf_counter() - started:.0f} s")

    with errors_console().status(f"exporting {plain(source.name)}"):
        export(report)
    if json:
        print_json({"path": str(folder), "comparison": [row.model_dump() for row in rows]})
        return
    results_console().print(_comparison_table(rows))
    results_console().print(f"written to {plain(str(folder))} in {time.perf_counter() - started:.0f} s")


def _comparison_table(rows: Sequence[AnyStep]) -> Table:
    cells = [(row.step, row.what, row.cases, _agreement(row), "passed" if row.passed else "FAILED") for row in rows]
    return make_table(("step", "compared", ">cases", "agreement with the model", "bar"), cells)


def _agreement(row: AnyStep) -> str:
    if isinstance(row, SemanticStep):
        if row.pixels_equal is not None:
            return f"{100 * row.pixels_equal:.4f} % of the pixels equal"
    elif row.mask_iou_mean is not None:
        return f"IoU {row.mask_iou_mean:.6f}, min {row.mask_iou_min:.6f}"
    return f"cos {row.cosine:.9f}, max {row.max_abs:.0e}"
