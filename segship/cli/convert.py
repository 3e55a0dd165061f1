# SPDX-License-Identifier: Apache-2.0
"""``segship convert``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from segship.cli.export import parse_pair
from segship.cli.options import OVERWRITE, Fields, Json, Option, command
from segship.cli.output import make_table, megabytes, plain, print_json, progress_console, results_console
from segship.ship.targets import TARGETS, ConvertOptions
from segship.ship.targets import convert as convert_model

if TYPE_CHECKING:
    from segship.bundle.evidence import Row


_CONVERT = Fields(
    force=OVERWRITE,
    target=Option(help=f"The engine or program: {', '.join(TARGETS)}; left out, what the ending of the output says."),
    size=Option(
        parse=lambda text: None if text is None else parse_pair("--size", "HEIGHT,WIDTH such as 512,1024", text),
        metavar="HEIGHT,WIDTH",
    ),
)


@command
def convert(
    model: str,
    /,
    *,
    options: Annotated[ConvertOptions, _CONVERT],
    out: Annotated[Path, Parameter(name=("--out", "-o"))],
    json: Json = False,
) -> None:
    """Convert a model for another engine or program, and compare it.

    Parameters
    ----------
    model
        A bundle's folder, a checkpoint, or a known name.
    out
        Folder to make, or file where the target is one.

    Examples
    --------
    segship convert tiny --target mnn -o tiny-mnn
    """
    with progress_console().status(f"converting {plain(model)}"):
        document = convert_model(model, out, options, _report)
    if json:
        print_json({"path": str(out), **document})
        return
    console = results_console()
    rows = [(name, megabytes(file["bytes"])) for name, file in document["files"].items()]
    console.print(make_table(("file", ">size"), rows))
    console.print(f"written to {plain(str(out))}")


def _report(step: str, rows: Sequence[Row]) -> None:
    progress_console().print(plain("; ".join(map(str, rows[-1:])) or step))
