# SPDX-License-Identifier: Apache-2.0
"""``segship import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segship.cli.options import OVERWRITE, Fields, Json, command
from segship.cli.output import plain, print_json, progress_console, results_console
from segship.files import tidy_directory
from segship.ship.importing import ImportOptions, import_graphs


@command
def import_(
    encoder: Path,
    decoder: Path,
    /,
    *,
    options: Annotated[ImportOptions, Fields(force=OVERWRITE)],
    out: Annotated[Path, Parameter(name=("--out", "-o"))],
    json: Json = False,
) -> None:
    """Make a bundle of ONNX graphs that another program exported.

    The encoder and the decoder go into the bundle as they are. How they are driven is found by names, by shapes and by
    running them, and stands in its manifest. Needs no torch.

    Parameters
    ----------
    encoder
        An ONNX file, from an image to its embedding.
    decoder
        An ONNX file, from embedding and prompts to masks.
    out
        Folder to make.

    Examples
    --------
    segship import sam_vit_b.encoder.onnx sam_vit_b.decoder.onnx -o sam_vit_b
    """
    for line in tidy_directory(out.parent):
        progress_console().print(plain(line), soft_wrap=True)
    with progress_console().status(f"importing {plain(encoder.name)}") as status:
        bundle = import_graphs(encoder, decoder, out, options, lambda what: status.update(f"{plain(what)}"))
    foreign, manifest = bundle.manifest.foreign, bundle.manifest  # type: ignore[attr-defined]  # Of promptable models.
    masks = manifest.decoder_masks  # type: ignore[attr-defined]
    if json:
        document = {"path": str(out), "contract": foreign.contract, "masks": masks, "rules": list(foreign.rules)}
        print_json({**document, "licence": manifest.checkpoint.licence, "known": manifest.checkpoint.known})
        return
    given = "one mask, which its graph chooses" if masks == 1 else f"{masks} masks"
    console = results_console()
    console.print(f"contract {foreign.contract}: an object has {given}")
    for rule in foreign.rules:
        console.print(f"  {plain(rule)}", soft_wrap=True)
    console.print("seen to answer as its contract says; not compared with a torch model")
    console.print(f"written to {plain(str(out))}")
