# SPDX-License-Identifier: Apache-2.0
"""``segship bundle``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from segship.cli.export import checkpoint_file, default_bundle, is_known, parse_pair, parse_scale, with_licence_of
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
from segship.cli.output import megabytes, plain, print_json, progress_console, results_console
from segship.files import tidy_directory
from segship.ship.templates.bundling import BundleOptions, bundle_checkpoint

FIELDS = Fields(
    **in_group(PROMPTABLE_GROUP, "target", "clean_masks", edges=EDGES),
    **in_group(
        SEMANTIC_GROUP,
        "classes",
        "semantic_window",
        size=Option(
            parse=lambda text: parse_pair("--size", "HEIGHT,WIDTH such as 1024,2048", text), metavar="HEIGHT,WIDTH"
        ),
        scale=Option(parse=parse_scale, metavar="LONG,SHORT"),
    ),
    force=OVERWRITE,
)


@command
def bundle(
    checkpoint: str,
    /,
    *,
    options: Annotated[BundleOptions, FIELDS],
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    json: Json = False,
) -> None:
    """Make a bundle of a checkpoint in seconds, without torch.

    The architecture must be a known one, published or fine-tuned, with any number of classes. The graphs are those of
    `segship export`, filled with these weights. They are checked against each other, not against the torch model;
    `segship verify` does that where torch is.

    Parameters
    ----------
    checkpoint
        A .pth, .pt, .safetensors or .ckpt file, or a known name that was fetched (vit_b, semask_s_cityscapes, ...).
    out
        Folder to make; for a known name the bundle goes to the cache folder when left out.

    Examples
    --------
    segship bundle fine_tuned_vit_b.pth -o mine
    """
    source, folder = checkpoint_file(checkpoint), out or default_bundle(checkpoint)
    for line in tidy_directory(folder.parent):
        progress_console().print(plain(line), soft_wrap=True)
    started = time.perf_counter()
    with progress_console().status(f"making a bundle of {plain(source.name)}"):
        made = bundle_checkpoint(source, folder, with_licence_of(checkpoint, source, options))
    manifest, seconds = made.manifest, time.perf_counter() - started
    assert manifest.template is not None
    size = sum(artifact.all_bytes for artifact in manifest.artifacts)
    if json:
        document = {"path": str(folder), "architecture": manifest.architecture, "bytes": size}
        print_json({**document, "template": manifest.template.name, "proven": manifest.template.proven})
        return
    console = results_console()
    console.print(f"{manifest.architecture}, {megabytes(size)}, written to {plain(str(folder))} in {seconds:.1f} s")
    console.print("its graphs agree with each other; to compare it with torch: segship verify", style="dim")
    used = "semantic street.png" if manifest.task == "semantic" else "segment photo.jpg --point X,Y"
    model = checkpoint if out is None and is_known(checkpoint) else str(folder)
    console.print(f"use it: segship {used} --model {plain(model)}")
