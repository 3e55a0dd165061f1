# SPDX-License-Identifier: Apache-2.0
"""``segship template``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segship.bundle.evidence import Row, require_passed
from segship.cli.export import comparison_table, require_exporter
from segship.cli.options import Json, command
from segship.cli.output import plain, print_json, progress_console, results_console


@command
def template(
    name: str,
    /,
    *,
    target: str | None = None,
    prove: Annotated[bool, Parameter(negative="--no-prove")] = True,
    answers: Path | None = None,
    json: Json = False,
) -> None:
    """Make the graphs of an architecture anew, as the package has them.

    For who changes a network or adds one. The graphs hold no weights: they are traced by seeded ones, and held against
    the torch model on others. Needs torch.

    Parameters
    ----------
    name
        An architecture, such as vit_t or semask_s.all.
    target
        onnxruntime or openvino; every one that the architecture is written for when left out.
    prove
        Compare with torch, on other weights.
    answers
        A published checkpoint whose answers are kept, for bundles that are made of it where no torch is.

    Examples
    --------
    segship template vit_t
    """
    require_exporter("making a template")
    # torch takes seconds to import and is not installed everywhere.
    from segship.ship.templates.making import make_template, prove_template, store_answers, template_targets_of

    if answers is not None:
        results_console().print(f"written to {plain(str(store_answers(answers)))}")
    rows: list[Row] = []
    for chosen in template_targets_of(name) if target is None else (target,):
        make_template(name, chosen, lambda what, done: progress_console().print(f"{done:4.0%}  {what}", style="dim"))
        rows.extend(prove_template(name, chosen) if prove else ())
    if json:
        print_json({"name": name, "comparison": [asdict(row) for row in rows]})
    else:
        results_console().print(comparison_table(rows))
    require_passed(rows)
