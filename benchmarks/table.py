# SPDX-License-Identifier: Apache-2.0
"""One table of all saved comparisons, written to ``benchmarks/results/README.md``.

python -m benchmarks.table
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS

HEADER = """# Measured side by side

Written by `python -m benchmarks.table` from the files beside this one; do not edit. Every row of a table was measured
in one run, the sides in turn and each in a process of its own, so ratios hold inside a table and nowhere else.
Agreement is against the first side of the same run: root mean square of the difference, as a part of the value.
"""

OF = {"median_s": "time", "peak_mb": "peak memory"}
VERDICT = {True: "holds", False: "**missed**"}


def write_table() -> Path:
    """Write the table and return its path."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    parts = [section(document) for document in documents if "groups" in document["figures"]]
    path = RESULTS / "README.md"
    path.write_text("\n".join([HEADER, *parts]), encoding="utf-8")
    return path


def section(document: dict[str, Any]) -> str:
    """Return one comparison as text."""
    figures, machine = document["figures"], document["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    lines = [
        f"## {figures['what']}",
        "",
        f"`{document['command']}`, {document['date']}, {describe_machine(machine)}; "
        f"Python {document['python']}, {versions}.",
        *(f"Note: {note}." for note in figures["notes"]),
        "",
    ]
    for rows in figures["groups"]:
        lines += [
            "| side | precision | threads | median | min to max | first call | peak memory | agreement |",
            "|---|---|---|---|---|---|---|---|",
            *(row_text(row) for row in rows),
            "",
        ]
    wanted = [target_text(row) for row in figures["targets"]] + [bound_text(row) for row in figures["bounds"]]
    if wanted:
        lines += ["| what | against | found | wanted |", "|---|---|---|---|", *wanted, ""]
    return "\n".join(lines)


def describe_machine(machine: dict[str, Any]) -> str:
    """Return a machine as text."""
    design = f"family {machine.get('cpu_family')} model {machine.get('cpu_model')}"
    memory = (machine.get("memory_bytes") or 0) / 2**30
    features = " ".join(machine["features"])
    return f"{machine['usable_cores']} cores of {machine['cpu']} ({design}), {memory:.0f} GiB, {features}"


def row_text(row: dict[str, Any]) -> str:
    """Return one side as a line of the table."""
    described = row["described"]
    agreement = ", ".join(f"{name} {value:g}" for name, value in row["agreement"].items()) or "-"
    cells = (
        row["name"],
        described.get("precision", "-"),
        described.get("threads", "-"),
        seconds_text(row["median_s"]),
        f"{seconds_text(min(row['seconds']))} to {seconds_text(max(row['seconds']))} ({len(row['seconds'])})",
        "-" if row["cold_s"] is None else seconds_text(row["cold_s"]),
        f"{row['peak_mb']:,.0f} MB" if row["peak_mb"] else "-",
        agreement,
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def target_text(row: dict[str, Any]) -> str:
    """Return one ratio as a line of the table."""
    aim = f", aim {row['aim']:g}" if row["aim"] else ""
    cells = (
        f"{row['side']}, {OF[row['of']]}",
        row["against"],
        f"{row['ratio']:g} times",
        f"at least {row['at_least']:g}{aim}: {VERDICT[row['holds']]}",
    )
    return f"| {' | '.join(cells)} |"


def bound_text(row: dict[str, Any]) -> str:
    """Return one bound as a line of the table."""
    found, most = (bounded_text(row[key], row["of"]) for key in ("found", "at_most"))
    return f"| {row['side']}, {OF[row['of']]} | - | {found} | at most {most}: {VERDICT[row['holds']]} |"


def bounded_text(value: float, of: str) -> str:
    """Return a figure of a bound for people."""
    return seconds_text(value) if of == "median_s" else f"{value:,.0f} MB"


def seconds_text(seconds: float) -> str:
    """Return a time for people."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


if __name__ == "__main__":
    print(write_table())
