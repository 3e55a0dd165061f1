# SPDX-License-Identifier: Apache-2.0
"""What became of every target when ``python -m benchmarks.targets`` last tried it: kept, shown, never edited."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from segship.files import read_bytes

RESULTS_FILE = Path(__file__).with_name("results.json")
_MOST_BYTES = 1 << 20
COLUMNS = ("target", "model", "family", "converts", "compared", "ran here", "date, versions")


@dataclass(frozen=True, slots=True)
class Result:
    """One model converted for one target.

    Attributes
    ----------
    target, model, family
        Of `segship.ship.targets.TARGETS`; of the model as tables call it; of `segship.ship.families`.
    refused
        Why nothing was written; None where it was.
    compared
        What the last comparison with the float32 graphs found; None where none was made.
    ran
        The engine that answered; None where what was written has never run.
    own
        That engine is the target's own, and not one that stands in for it.
    date, versions
        When that was, and of what.
    """

    target: str
    model: str
    family: str
    refused: str | None
    compared: str | None
    ran: str | None
    own: bool
    date: str
    versions: str


def read_results() -> tuple[Result, ...]:
    """Return the kept results, by target and model."""
    return tuple(Result(**row) for row in json.loads(read_bytes(RESULTS_FILE, limit=_MOST_BYTES)))


def merge_results(kept: Iterable[Result], found: Iterable[Result]) -> tuple[Result, ...]:
    """Return results in which those that were found take the place of older ones of their target and model."""
    merged = {(row.target, row.model): row for row in (*kept, *found)}
    return tuple(merged[key] for key in sorted(merged))


def results_json(results: Iterable[Result]) -> str:
    """Return the text of the file that holds them."""
    return json.dumps([asdict(row) for row in results], indent=1) + "\n"


def cells_of(row: Result) -> tuple[str, ...]:
    """Return what a table says of a result, under `COLUMNS`."""
    ran = "never" if row.ran is None else row.ran if row.own else f"in {row.ran}, never in its own engine"
    return (
        row.target,
        row.model,
        row.family,
        "yes" if row.refused is None else f"no: {row.refused}",
        row.compared or "-",
        ran if row.refused is None else "-",
        f"{row.date}, {row.versions}",
    )


def markdown_table(results: Iterable[Result]) -> str:
    """Return the table of README.md."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *map(cells_of, results)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
