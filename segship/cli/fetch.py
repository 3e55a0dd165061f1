# SPDX-License-Identifier: Apache-2.0
"""``segship fetch``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from segship.catalog import KNOWN_GRAPHS
from segship.cli.options import Json, command
from segship.cli.output import megabytes, plain, print_json, progress_bar, results_console
from segship.errors import FetchError
from segship.fetch import fetch_checkpoint, known_checkpoint


@command
def fetch(
    name: str,
    /,
    *,
    from_file: Annotated[Path | None, Parameter(name="--from")] = None,
    mirror: str | None = None,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    json: Json = False,
) -> None:
    """Fetch a published checkpoint and check its SHA-256.

    An interrupted download goes on where it stopped. The semantic models (semask_...) can only be downloaded by a
    browser: the command says where, and checks the file. Of a published encoder and decoder (osam_...) it makes the
    bundle as well.

    Parameters
    ----------
    name
        vit_b, vit_l, vit_h or vit_t; or semask_s_cityscapes or osam_vit_b_quantized and their like, see `segship
        models`.
    from_file
        Take this file, fetched by hand, instead of downloading.
    mirror
        Base address to fetch from instead of the published one; also SEGSHIP_MIRROR.
    out
        Folder for the file; the cache folder when left out.

    Examples
    --------
    segship fetch vit_b
    segship fetch semask_s_cityscapes --from downloaded.pth
    """
    take = _import if name in KNOWN_GRAPHS else _take_by_hand if known_checkpoint(name).by_hand else _fetch
    document = take(name, from_file, mirror, out)
    checked = document.get("checked") or f"sha256 {document['sha256'][:12]} checked"
    if json:
        print_json(document)
    else:
        results_console().print(f"{plain(document['path'])}  {megabytes(document['bytes'])}, {plain(checked)}")


def _fetch(name: str, from_file: Path | None, mirror: str | None, out: Path | None) -> dict[str, Any]:
    with progress_bar(name, of_bytes=True) as tick:
        path = fetch_checkpoint(name, destination=out, mirror=mirror, from_file=from_file, progress=tick)
    known = known_checkpoint(name)
    return {"name": name, "path": str(path), "bytes": known.bytes, "sha256": known.sha256}


def _import(name: str, from_file: Path | None, mirror: str | None, out: Path | None) -> dict[str, Any]:
    from segship.ship.importing import fetch_bundle

    if from_file is not None:
        message = f"{name} is two files; make a bundle of copies that you have with `segship import`"
        raise FetchError(message, code="two_files")
    with progress_bar(name, of_bytes=True) as tick:
        bundle = fetch_bundle(name, destination=out, mirror=mirror, progress=tick)
    artifacts = bundle.manifest.artifacts
    return {
        "name": name,
        "path": str(bundle.path),
        "bytes": sum(artifact.bytes for artifact in artifacts),
        "sha256": artifacts[0].sha256,
        "checked": "both SHA-256 checked, seen to answer as their contract says; not compared with a torch model",
    }


def _take_by_hand(name: str, from_file: Path | None, mirror: str | None, out: Path | None) -> dict[str, Any]:
    from segship.ship.by_hand import take_by_hand

    if mirror is not None:
        raise FetchError(
            f"no digest of {name} is published, so what a mirror gives could not be checked; download the file "
            "yourself and name it with --from",
            code="no_published_digest",
        )
    found = take_by_hand(name, from_file=from_file, destination=out)
    return {
        "name": name,
        "path": str(found.path),
        "bytes": found.bytes,
        "sha256": found.sha256,
        "checked": found.checked,
    }
