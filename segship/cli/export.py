# SPDX-License-Identifier: Apache-2.0
"""``segship export``."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter
from rich.table import Table

from segship.bundle.evidence import Row, describe_figures
from segship.catalog import KNOWN_CHECKPOINTS, bundle_folder
from segship.cli.options import (
    EDGES,
    OVERWRITE,
    PROMPTABLE_GROUP,
    SEMANTIC_GROUP,
    Fields,
    Json,
    Option,
    command,
    in_group,
)
from segship.cli.output import make_table, plain, print_json, progress_console, results_console
from segship.errors import BackendUnavailable, ExportError
from segship.files import make_directory, tidy_directory
from segship.semantic.preprocessing import ScaleLimits
from segship.ship.options import ExportOptions
from segship.ship.templates.bundling import BundleOptions, would_do

_TELLING = 0.1
EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnxslim")
DYNAMIC = "dynamic"


def make_options(**given: Any) -> ExportOptions:
    """Return how a checkpoint is exported; sizes left open in so many words are no sizes of Ascend's."""
    if given.get("contract") == "ascend" and any(given.get(name, "") is None for name in ("size", "batch")):
        message = "--contract ascend has fixed sizes; give --size HEIGHT,WIDTH and --batch N, or leave them out"
        raise ExportError(message, code="bad_option")
    return ExportOptions(**given)


def is_count(text: str) -> bool:
    """Tell whether a text is a whole number above 0; one with more digits than any size has is none."""
    digits = text.strip()
    return digits.isdecimal() and len(digits) < 10 and int(digits) > 0


def parse_pair(option: str, accepted: str, text: str) -> tuple[int, int]:
    """Return two comma-separated sizes."""
    parts = text.split(",")
    if len(parts) != 2 or not all(map(is_count, parts)):
        raise ExportError(f"{option} is {text!r}; accepted is {accepted}", code=f"bad_{option.removeprefix('--')}")
    return int(parts[0]), int(parts[1])


def parse_size(text: str) -> tuple[int, int] | None:
    """Return a height and a width; nothing for an open one."""
    return None if text == DYNAMIC else parse_pair("--size", "HEIGHT,WIDTH such as 1024,2048, or dynamic", text)


def parse_scale(text: str) -> ScaleLimits:
    """Return the most that the longer and the shorter side of a picture become."""
    return ScaleLimits(*parse_pair("--scale", "LONG,SHORT such as 2048,1024", text))


def parse_batch(text: str) -> int | None:
    """Return a number of pictures; nothing for an open one."""
    if text == DYNAMIC:
        return None
    if not is_count(text):
        raise ExportError(f"--batch is {text!r}; accepted are 1, dynamic, or a number with ascend", code="bad_batch")
    return int(text)


FIELDS = Fields(
    make_options,
    **in_group(PROMPTABLE_GROUP, "single_mask", "image_size", "clean_masks", "target", edges=EDGES),
    **in_group(
        SEMANTIC_GROUP,
        "output",
        "classes",
        "semantic_window",
        size=Option(parse=parse_size, metavar="HEIGHT,WIDTH"),
        batch=Option(parse=parse_batch, metavar="NUMBER"),
        scale=Option(parse=parse_scale, metavar="LONG,SHORT"),
    ),
    simplify=Option(negative="--no-simplify"),
    measure=Option(negative="--no-measure"),
    force=OVERWRITE,
    bar=None,
    largest_inline_bytes=None,
)


@command
def export(
    checkpoint: str,
    /,
    *,
    options: Annotated[ExportOptions, FIELDS],
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    json: Json = False,
) -> None:
    """Export a checkpoint to a checked bundle.

    Or, with --contract, to the graphs that another program expects. Every step is compared with the torch model on
    several images and prompts; past the bar nothing is written.

    Parameters
    ----------
    checkpoint
        A .pth, .pt, .safetensors or .ckpt file, or a known name that was fetched (vit_b, semask_s_cityscapes, ...).
    out
        Folder to make; for a known name the bundle goes to the cache folder when left out.

    Examples
    --------
    segship export vit_b -o sam_vit_b
    segship export mine.pth --contract official --single-mask -o decoder
    segship export streets.pth --size 1024,2048 -o streets
    """
    source, folder = checkpoint_file(checkpoint), out or default_bundle(checkpoint)
    for line in tidy_directory(folder.parent):
        progress_console().print(plain(line), soft_wrap=True)
    require_exporter("exporting", f"; or make a bundle of it without them: segship bundle {checkpoint} -o BUNDLE")
    # torch and onnx take seconds to import and are not installed everywhere.
    from segship.ship.contracts import export_contract
    from segship.ship.export import export_bundle

    options = with_licence_of(checkpoint, source, options)
    if would_do(source, options):
        hint = f"segship bundle {checkpoint} has the same graphs in seconds, without torch and this comparison"
        progress_console().print(plain(hint), style="dim")
    started = time.perf_counter()
    rows: list[Row] = []

    def progress(what: str, done: float) -> None:
        seconds = time.perf_counter() - started
        # The first parts are too short to tell how fast this machine is.
        left = f", about {seconds / done - seconds:.0f} s left" if done > _TELLING else ""
        progress_console().print(f"{seconds:4.0f} s  {plain(what)}{left}", style="dim")

    run = export_bundle if options.contract == "segship" else export_contract
    with progress_console().status(f"exporting {plain(source.name)}"):
        run(source, folder, options, lambda _, compared: rows.extend(compared), progress)
    if json:
        print_json({"path": str(folder), "comparison": [asdict(row) for row in rows]})
        return
    results_console().print(comparison_table(rows))
    results_console().print(f"written to {plain(str(folder))} in {time.perf_counter() - started:.0f} s")


Options = TypeVar("Options", ExportOptions, BundleOptions)


def with_licence_of(checkpoint: str, source: Path, options: Options) -> Options:
    """Return options with the licence of a known name: its file may have no digest that tells it."""
    known = KNOWN_CHECKPOINTS.get(checkpoint)
    if options.licence is None and known is not None and known.by_hand and source != Path(checkpoint):
        return replace(options, licence=known.licence)
    return options


def checkpoint_file(checkpoint: str) -> Path:
    """Return the file that a path or a known name means."""
    if not is_known(checkpoint):
        return Path(checkpoint)
    from segship.fetch import checkpoint_path

    path = checkpoint_path(checkpoint)
    if not os.path.isfile(path):
        message = f"the checkpoint {checkpoint!r} is not on this machine; run: segship fetch {checkpoint}"
        raise ExportError(message, code="no_checkpoint")
    return path


def default_bundle(checkpoint: str) -> Path:
    """Return where the bundle of a known name goes if nobody says it."""
    if checkpoint not in KNOWN_CHECKPOINTS:
        raise ExportError("say where the bundle goes: -o BUNDLE", code="no_output")
    folder = bundle_folder(checkpoint)
    make_directory(folder.parent)
    return folder


def is_known(checkpoint: str) -> bool:
    """Tell whether it is the name of a published checkpoint, and no file here."""
    return checkpoint in KNOWN_CHECKPOINTS and not os.path.exists(checkpoint)


def require_exporter(
    doing: str, instead: str = "", *, packages: Sequence[str] = EXPORT_PACKAGES, extra: str = "export"
) -> None:
    """Refuse to begin without the packages of an extra; ``instead`` is a way that needs none of them."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        message = (
            f'{doing} needs {", ".join(missing)}, not installed here; run: pip install "segship[{extra}]"{instead}'
        )
        raise BackendUnavailable(message, code="export_packages_missing")


def comparison_table(rows: Sequence[Row]) -> Table:
    """Return rows for people."""
    cells = [
        (row.step, row.what, row.cases, describe_figures(row.figures), "passed" if row.passed else "FAILED")
        for row in rows
    ]
    return make_table(("step", "compared", ">cases", "agreement with the model", "bar"), cells)
