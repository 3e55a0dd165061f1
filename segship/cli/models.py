# SPDX-License-Identifier: Apache-2.0
"""``segship models``."""

from __future__ import annotations

from dataclasses import asdict

from segship.catalog import list_models
from segship.cli.options import Json, command
from segship.cli.output import make_table, megabytes, print_json, results_console


@command
def models(*, json: Json = False) -> None:
    """List the models that have a name, and where each stands.

    Examples
    --------
    segship models --json
    """
    found = list_models()
    if json:
        print_json({"models": [asdict(model) for model in found]})
        return
    rows = [
        (model.name, model.status, _size(model.bytes), model.licence, model.published, model.location)
        for model in found
    ]
    results_console().print(make_table(("name", "status", ">size", "licence", "published", "location"), rows))


def _size(count: int | None) -> str:
    return "not published" if count is None else megabytes(count)
