# SPDX-License-Identifier: Apache-2.0
"""What the commands that compare sides have in common: options, groups, ratios against targets, saved results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import table
from benchmarks.machine import peers, save_result
from benchmarks.prepared import WorkFolder, digest_of_code
from benchmarks.sides import SideFigures, SidePlan, compare_sides
from segship.files import cache_folder


@dataclass(frozen=True)
class Target:
    """A ratio that must hold: so many times faster, or smaller, than the other side."""

    side: str
    against: str
    at_least: float
    of: Literal["median_s", "peak_mb"] = "median_s"
    aim: float | None = None


@dataclass(frozen=True)
class Bound:
    """A figure of one side that must not be larger: seconds, or megabytes."""

    side: str
    at_most: float
    of: Literal["median_s", "peak_mb"] = "median_s"


@dataclass
class Comparison:
    """What one command compares."""

    name: str
    what: str
    groups: Sequence[Sequence[SidePlan]]
    targets: Sequence[Target]
    rounds: int
    block: int = 1
    bounds: Sequence[Bound] = ()
    compare: bool = True
    notes: Sequence[str] = ()
    rows: list[list[SideFigures]] = field(default_factory=list)


def common_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every comparison has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b", help="architecture; small runs in milliseconds, for trying out")
    parser.add_argument(
        "--work",
        type=lambda text: str(Path(text).resolve()),
        default=str(cache_folder() / "benchmarks"),
        help="folder for graphs and weights, used again by the next run; in segship's cache when left out",
    )
    parser.add_argument("--threads", type=int, default=2, help="of every side")
    parser.add_argument("--only", default="", help="sides whose names hold one of these parts, separated by semicolons")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser


def run_comparison(comparison: Comparison, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all groups one after the other, print the rows and ratios, and save them."""
    folder = WorkFolder(Path(arguments.work), arguments.model)
    for plans in comparison.groups:
        chosen = [plan for plan in plans if _is_chosen(plan, arguments.only)]
        if not chosen:
            continue
        for plan in chosen:
            for what in plan.needs:
                folder.need(what)
                warn_of_age(folder, what)
        print(f"{comparison.what}: {', '.join(plan.name for plan in chosen)}", flush=True)
        sides = compare_sides(
            chosen,
            rounds=comparison.rounds,
            threads=arguments.threads,
            block=comparison.block,
            compare=comparison.compare,
        )
        comparison.rows.append(sides)
        for side in sides:
            print(describe(side), flush=True)
        if not arguments.no_save:
            # After every group, so that what has been measured is kept whatever becomes of the next one.
            save(comparison)
    return finish(comparison, keep=not arguments.no_save)


def warn_of_age(folder: WorkFolder, what: str) -> None:
    """Say if a bundle was made by other code than that which is here."""
    kind, _, detail = what.partition(":")
    if kind == "ours" and not (name := folder.bundle(detail.split(":")[0]).name).endswith(digest_of_code()):
        print(f"NOTE: {name} was made by other code; `python -m benchmarks.prepared ... all --renew` makes another")


def finish(comparison: Comparison, *, keep: bool) -> dict[str, Any]:
    """Print ratios and bounds, and save everything."""
    figures = figures_of(comparison)
    for row in figures["targets"]:
        print(table.target_text(row), flush=True)
    for row in figures["bounds"]:
        print(table.bound_text(row), flush=True)
    if keep:
        print(save(comparison))
        print(table.write_table())
    return figures


def save(comparison: Comparison) -> Path:
    """Write the result as it stands."""
    return save_result(comparison.name, figures_of(comparison), versions=peers())


def figures_of(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison for `json.dumps`."""
    return {
        "what": comparison.what,
        "notes": list(comparison.notes),
        "groups": [[side.to_dict() for side in sides] for sides in comparison.rows],
        "targets": ratios(comparison),
        "bounds": bounds(comparison),
    }


def _is_chosen(plan: SidePlan, only: str) -> bool:
    return not only or any(word.strip() in plan.name for word in only.split(";"))


def describe(side: SideFigures) -> str:
    """Return a row as text."""
    differs = ", ".join(f"{name} {value:g}" for name, value in side.agreement.items())
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in side.extra.get("parts_s", {}).items())
    return (
        f"{side.name}: median {1e3 * side.median_s:,.2f} ms of {len(side.seconds)}, "
        f"peak {side.peak_bytes / 1e6:,.0f} MB; {differs}" + (f"; last run: {parts}" if parts else "")
    )


def ratios(comparison: Comparison) -> list[dict[str, Any]]:
    """Return every target whose two sides were measured in one group, with the ratio found."""
    found = []
    for target in comparison.targets:
        for sides in comparison.rows:
            rows = {side.name: side.to_dict() for side in sides}
            if target.side in rows and target.against in rows:
                ratio = rows[target.against][target.of] / rows[target.side][target.of]
                holds = ratio >= target.at_least
                found.append({**asdict(target), "ratio": round(ratio, 2), "holds": holds})
                break
    return found


def bounds(comparison: Comparison) -> list[dict[str, Any]]:
    """Return every bound whose side was measured, with what was found."""
    rows = {side.name: side.to_dict() for sides in comparison.rows for side in sides}
    return [
        {**asdict(bound), "found": rows[bound.side][bound.of], "holds": rows[bound.side][bound.of] <= bound.at_most}
        for bound in comparison.bounds
        if bound.side in rows
    ]
