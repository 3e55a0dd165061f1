# SPDX-License-Identifier: Apache-2.0
"""``segship models``."""

from __future__ import annotations

from dataclasses import asdict

from segship.backends import is_installed
from segship.catalog import KNOWN_CHECKPOINTS, ModelInfo, list_models
from segship.cli.options import Json, command
from segship.cli.output import make_table, megabytes, print_json, results_console
from segship.ship.fetching import needs_torch
from segship.ship.targets import TARGETS
from segship.ship.targets.results import COLUMNS as RESULT_COLUMNS
from segship.ship.targets.results import cells_of, read_results

COLUMNS = ("name", "status", ">to fetch", "torch", ">bundle in", "published", "licence", "location")
NARROW, NARROW_COLUMNS = 140, 5
"""A terminal that is not as wide shows so many columns, since addresses would be folded into many lines."""


@command
def models(*, targets: bool = False, json: Json = False) -> None:
    """List the models that have a name, and where each stands.

    What has to be fetched before a model can be used, whether making its bundle needs torch, and how long that takes on
    two cores. Published is the mIoU of semantic models at one scale and at several. A narrow terminal
    leaves out that, licences and addresses; --json has them.

    Parameters
    ----------
    targets
        List what models can be converted for instead, what is installed for it here, and what became of it when it was
        last tried.

    Examples
    --------
    segship models --json
    segship models --targets
    """
    if targets:
        _list_targets(json=json)
        return
    found = [(model, _needs_torch(model)) for model in list_models()]
    if json:
        print_json({"models": [{**asdict(model), "needs_torch": torch} for model, torch in found]})
        return
    rows = [
        (
            model.name,
            model.status,
            _size(model.to_fetch),
            "needed" if torch else "not needed",
            "" if model.bundle_seconds is None else f"{model.bundle_seconds:.0f} s",
            model.published,
            model.licence,
            model.location,
        )
        for model, torch in found
    ]
    console = results_console()
    shown = NARROW_COLUMNS if console.width < NARROW else len(COLUMNS)
    console.print(make_table(COLUMNS[:shown], [row[:shown] for row in rows]))


def _list_targets(*, json: bool) -> None:
    results = read_results()
    here = {name: all(map(is_installed, row.packages)) for name, row in TARGETS.items()}
    if json:
        rows = [{"name": name, **asdict(row), "here": here[name]} for name, row in TARGETS.items()]
        print_json({"targets": rows, "results": list(map(asdict, results))})
        return
    console = results_console()
    listed = [
        (name, row.what, " and ".join(row.tasks), "yes" if here[name] else f'pip install "{row.extra}"')
        for name, row in TARGETS.items()
    ]
    console.print(make_table(("target", "what comes out", "models", "here"), listed))
    console.print(make_table(RESULT_COLUMNS, [cells_of(row) for row in results]))


def _needs_torch(model: ModelInfo) -> bool:
    known = KNOWN_CHECKPOINTS.get(model.name)
    return known is not None and model.status != "bundle ready" and needs_torch(known)


def _size(count: int | None) -> str:
    return "not published" if count is None else megabytes(count) if count else "nothing"
