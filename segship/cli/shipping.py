# SPDX-License-Identifier: Apache-2.0
"""Commands of the ship road: fetch, export."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from segship.cli.output import errors_console, make_table, megabytes, plain, print_json, results_console
from segship.cli.reports import Json
from segship.errors import BackendUnavailable, ExportError
from segship.known import KNOWN_CHECKPOINTS

if TYPE_CHECKING:
    from segship.bundle.manifest import ComparisonStep

EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnxslim", "safetensors")


def fetch(
    name: str,
    /,
    *,
    from_file: Annotated[Path | None, Parameter(name="--from")] = None,
    mirror: str | None = None,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    json: Json = False,
) -> None:
    """Fetch a published checkpoint and check it by its SHA-256; an interrupted download goes on where it stopped.

    Parameters
    ----------
    name
        vit_b, vit_l, vit_h or vit_t.
    from_file
        Take this file, fetched by hand, instead of downloading.
    mirror
        Base address to fetch from instead of the published one; also SEGSHIP_MIRROR.
    out
        Folder for the file; the cache folder when left out.
    """
    from segship.fetch import fetch_checkpoint

    with _download_progress() as progress:
        task = progress.add_task(name, total=None)
        path = fetch_checkpoint(
            name,
            destination=out,
            mirror=mirror,
            from_file=from_file,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    known = KNOWN_CHECKPOINTS[name]
    if json:
        print_json({"name": name, "path": str(path), "bytes": known.bytes, "sha256": known.sha256})
        return
    results_console().print(f"{plain(str(path))}  {megabytes(known.bytes)}, sha256 {known.sha256[:12]} checked")


def export(
    checkpoint: str,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    contract: Literal["segship", "official", "ascend", "samexporter"] = "segship",
    opset: int | None = None,
    simplify: Annotated[bool, Parameter(negative="--no-simplify")] = True,
    single_mask: bool = False,
    image_size: int | None = None,
    licence: str | None = None,
    clean_masks: bool | None = None,
    target: str = "onnxruntime",
    measure: Annotated[bool, Parameter(negative="--no-measure")] = True,
    force: bool = False,
    json: Json = False,
) -> None:
    """Export a checkpoint to a checked bundle, or to the graphs that another program expects.

    Every step is compared with the torch model on several images and prompts; past the bar nothing is written.

    Parameters
    ----------
    checkpoint
        A .pth, .pt or .safetensors file, or a known name that was fetched (vit_b, vit_l, vit_h, vit_t).
    out
        Folder to make; for a known name the bundle goes to the cache folder when left out.
    contract
        segship: a bundle. official: the reference's decoder. ascend: the Ascend guide's pair. samexporter: its pair.
    opset
        ONNX opset, 14 to 24; the contract's own when left out (segship 18, official and samexporter 17, ascend 14).
    simplify
        Run onnxslim on the traced graph.
    single_mask
        For the other contracts: one mask, chosen by the reference's rule.
    image_size
        Export for another model frame; position tables are resized and the change is recorded.
    licence
        Licence of the weights, for the manifest of a checkpoint that is not a published one.
    clean_masks
        Whether the bundle cleans prompted masks: keeps the clicked piece, fills small holes, clears outside the box.
        Off for all but tiny when left out.
    target
        The engine that the encoder is written for: onnxruntime, openvino, or plain; any engine runs each of them.
    measure
        Compare and time every installed backend on the finished bundle, for --backend auto; see `segship tune`.
    force
        Replace a bundle that is already there.
    """
    started = time.perf_counter()
    source, folder = _checkpoint_file(checkpoint), out or _default_bundle(checkpoint)
    # torch and onnx take seconds to import and are not installed everywhere.
    _require_exporter()
    from segship.export import ExportOptions, export_bundle

    options = ExportOptions(
        contract=contract,
        opset=opset,
        simplify=simplify,
        single_mask=single_mask,
        image_size=image_size,
        licence=licence,
        clean_masks=clean_masks,
        target=target,
        measure=measure,
        force=force,
    )
    rows: list[ComparisonStep] = []

    def report(step: str, steps: Sequence[ComparisonStep]) -> None:
        rows.extend(steps)
        errors_console().print(f"{plain(step)}: compared, {time.perf_counter() - started:.0f} s")

    with errors_console().status(f"exporting {plain(source.name)}"):
        if contract == "segship":
            export_bundle(source, folder, options, report)
        else:
            from segship.export_foreign import export_foreign

            export_foreign(source, folder, options, report)
    if json:
        print_json({"path": str(folder), "comparison": [row.model_dump() for row in rows]})
        return
    results_console().print(_comparison_table(rows))
    results_console().print(f"written to {plain(str(folder))} in {time.perf_counter() - started:.0f} s")


def _checkpoint_file(checkpoint: str) -> Path:
    if checkpoint in KNOWN_CHECKPOINTS and not Path(checkpoint).exists():
        from segship.fetch import checkpoint_path

        path = checkpoint_path(checkpoint)
        if not path.is_file():
            raise ExportError(
                f"the checkpoint {checkpoint!r} is not on this machine; run: segship fetch {checkpoint}",
                code="no_checkpoint",
            )
        return path
    return Path(checkpoint)


def _default_bundle(checkpoint: str) -> Path:
    if checkpoint in KNOWN_CHECKPOINTS:
        from segship.catalog import bundle_folder

        folder = bundle_folder(checkpoint)
        folder.parent.mkdir(parents=True, exist_ok=True)
        return folder
    raise ExportError("say where the bundle goes: -o BUNDLE", code="no_output")


def _require_exporter() -> None:
    missing = [name for name in EXPORT_PACKAGES if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(
            f'exporting needs {", ".join(missing)}, not installed here; run: pip install "segship[export]"',
            code="export_packages_missing",
        )


def _comparison_table(rows: Sequence[ComparisonStep]) -> Table:
    cells = [(row.step, row.what, row.cases, _agreement(row), "passed" if row.passed else "FAILED") for row in rows]
    return make_table(("step", "compared", ">cases", "agreement with the model", "bar"), cells)


def _agreement(row: ComparisonStep) -> str:
    if row.mask_iou_mean is not None:
        return f"IoU {row.mask_iou_mean:.6f}, min {row.mask_iou_min:.6f}"
    return f"cos {row.cosine:.9f}, max {row.max_abs:.0e}"


def _download_progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=errors_console(),
        transient=True,
    )
