# SPDX-License-Identifier: Apache-2.0
"""``segship models``."""

from __future__ import annotations

from dataclasses import asdict

from segship.catalog import KNOWN_CHECKPOINTS, ModelInfo, list_models
from segship.cli.options import Json, command
from segship.cli.output import make_table, megabytes, print_json, results_console
from segship.ship.fetching import needs_torch

COLUMNS = ("name", "status", ">size", ">to fetch", "torch", "licence", "published", "location")


@command
def models(*, json: Json = False) -> None:
    """List the models that have a name, and where each stands.

    What has to be fetched before a model can be used, and whether making its bundle needs torch.

    Examples
    --------
    segship models --json
    """
    found = [(model, _needs_torch(model)) for model in list_models()]
    if json:
        print_json({"models": [{**asdict(model), "needs_torch": torch} for model, torch in found]})
        return
    rows = [
        (
            model.name,
            model.status,
            _size(model.bytes),
            _size(model.to_fetch),
            "needed" if torch else "not needed",
            model.licence,
            model.published,
            model.location,
        )
        for model, torch in found
    ]
    results_console().print(make_table(COLUMNS, rows))


def _needs_torch(model: ModelInfo) -> bool:
    known = KNOWN_CHECKPOINTS.get(model.name)
    return known is not None and model.status != "bundle ready" and needs_torch(known)


def _size(count: int | None) -> str:
    return "not published" if count is None else megabytes(count) if count else "nothing"
