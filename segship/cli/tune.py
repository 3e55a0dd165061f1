# SPDX-License-Identifier: Apache-2.0
"""``segship tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from segship.backends.choice import choose_backend
from segship.cli.options import Fields, Json, command
from segship.cli.output import errors_console, make_table, plain, print_json, results_console
from segship.tune import TuneOptions, tune_bundle

if TYPE_CHECKING:
    from segship.bundle.manifest import Manifest
    from segship.bundle.measured import AnyCheck


@command
def tune(
    model: str,
    /,
    *,
    options: Annotated[TuneOptions, Fields()],
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    json: Json = False,
) -> None:
    """Find the backend that is right and fastest on this machine.

    Compares and times every installed backend and writes into the bundle what came out, which decides what
    `--backend auto` takes. Needs no torch.

    Parameters
    ----------
    model
        A bundle's folder, or a known name.
    out
        Write a copy there; the bundle itself is renewed when left out.

    Examples
    --------
    segship tune sam_vit_b
    """
    with errors_console().status(f"measuring {plain(model)}"):
        bundle = tune_bundle(model, options, _report, out=out)
    checks = bundle.manifest.backends
    choices = {precision: choose_backend(checks, precision=precision) for precision in ("fp32", "auto")}
    if json:
        document: dict[str, Any] = {
            "path": str(bundle.path),
            "backends": [check.model_dump() for check in checks],
            "choices": {
                precision: {"backend": choice.backend, "precision": choice.precision, "reason": choice.reason}
                for precision, choice in choices.items()
            },
        }
        print_json(document)
        return
    console = results_console()
    console.print(_checks_table(bundle.manifest))
    for precision, choice in choices.items():
        chosen = f"{choice.backend} {choice.precision}"
        console.print(f"--backend auto --precision {precision}: [bold]{plain(chosen)}[/], {plain(choice.reason)}")
    console.print(f"written to {plain(str(bundle.path))}")


def _checks_table(manifest: Manifest) -> Table:
    times: tuple[str, ...]
    if manifest.family == "semantic":
        times = (">segment ms",)
        rows = [_check_cells(check, check.segment_ms) for check in manifest.backends]
    else:
        times = (">encode ms", ">8 clicks ms")
        rows = [_check_cells(check, check.encode_ms, check.decode_ms) for check in manifest.backends]
    return make_table(("backend", "version", "precision", ">threads", ">load ms", *times, "comparison"), rows)


def _check_cells(check: AnyCheck, *milliseconds: float | None) -> tuple[object, ...]:
    numbers = map(_number, (check.load_ms, *milliseconds))
    passed = "passed" if check.passed else check.problem or "FAILED"
    return (check.backend, check.version, check.precision, check.threads, *numbers, passed)


def _report(check: AnyCheck) -> None:
    passed = "passed" if check.passed else "FAILED"
    errors_console().print(f"{plain(check.backend)} {plain(check.precision)}: {passed}")


def _number(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:,.1f}"
