# SPDX-License-Identifier: Apache-2.0
"""Published models on this machine by their names: files fetched and checked, and a bundle made of them. No torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from segship.bundle import Bundle
from segship.catalog import KNOWN_GRAPHS, KnownCheckpoint, bundle_folder
from segship.errors import BundleError, ExportError, FetchError, way
from segship.fetch import fetch_checkpoint, known_checkpoint
from segship.fetch.download import Progress, exclusive_lock
from segship.files import explained, make_directory, tidy_directory
from segship.ship.by_hand import take_by_hand
from segship.ship.families import family_module
from segship.ship.importing import fetch_bundle
from segship.ship.templates import template_targets
from segship.ship.templates.bundling import BundleOptions, bundle_checkpoint


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A published model that is on this machine.

    Attributes
    ----------
    path
        The checkpoint; of a published encoder and decoder the bundle that was made of them.
    bytes, sha256
        Of the checkpoint; of an encoder and a decoder the bytes of both, and the encoder's digest.
    checked
        What was checked, in words.
    bundle
        What `segship.load` opens by the name; None where it was not asked for, or needs torch to be made.
    kept
        The bundle was there already, and is as it was.
    """

    name: str
    path: Path
    bytes: int
    sha256: str
    checked: str
    bundle: Path | None = None
    kept: bool = False


def fetch_model(
    name: str,
    *,
    destination: Path | None = None,
    mirror: str | None = None,
    from_file: Path | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] = lambda what: None,
) -> FetchedModel:
    """Fetch a published model and make its bundle where `segship.load` finds it by its name; needs no torch.

    A bundle that is there already is kept; one that is damaged is made anew. Two processes may fetch the same name: the
    second waits and takes what the first made.

    Parameters
    ----------
    name
        A key of `segship.catalog.KNOWN_CHECKPOINTS` or `segship.catalog.KNOWN_GRAPHS`.
    destination
        Folder of the user's own for the checkpoint, which is all that is fetched then.
    mirror, from_file, progress
        As `segship.fetch.fetch_checkpoint` takes them.
    tell
        Called with what begins once the files are there.

    Raises
    ------
    FetchError
        As `segship.fetch.fetch_checkpoint`, and `segship.ship.by_hand.take_by_hand` for semantic models.
    BundleError, CheckpointError, ExportError, OutputError
        As `segship.ship.templates.bundling.bundle_checkpoint`; the checkpoint stays where it is then.
    """
    if name in KNOWN_GRAPHS:
        return _fetch_graphs(name, destination, mirror, from_file, progress)
    if known_checkpoint(name).by_hand:
        fetched = _take_by_hand(name, destination, mirror, from_file)
    else:
        fetched = _fetch_checkpoint(name, destination, mirror, from_file, progress)
    if destination is not None:
        return fetched
    bundle, kept = _bundle(name, fetched.path, tell)
    return replace(fetched, bundle=bundle, kept=kept)


def needs_torch(known: KnownCheckpoint) -> bool:
    """Return whether the bundle of a published checkpoint is made by an export alone: it has no template."""
    configs = family_module(known.family).template_configs().items()
    return not all(template_targets(name) for name, config in configs if config.architecture == known.architecture)


def _fetch_checkpoint(
    name: str, destination: Path | None, mirror: str | None, from_file: Path | None, progress: Progress | None
) -> FetchedModel:
    path = fetch_checkpoint(name, destination=destination, mirror=mirror, from_file=from_file, progress=progress)
    known = known_checkpoint(name)
    assert known.sha256 is not None
    return FetchedModel(name, path, known.bytes, known.sha256, f"sha256 {known.sha256[:12]} checked")


def _take_by_hand(name: str, destination: Path | None, mirror: str | None, from_file: Path | None) -> FetchedModel:
    if mirror is not None:
        message = (
            f"no digest of {name} is published, so what a mirror gives could not be checked; download the file "
            f"yourself and name it with {way('from_file=', '--from')}"
        )
        raise FetchError(message, code="no_published_digest")
    found = take_by_hand(name, from_file=from_file, destination=destination)
    return FetchedModel(name, found.path, found.bytes, found.sha256, found.checked)


def _fetch_graphs(
    name: str, destination: Path | None, mirror: str | None, from_file: Path | None, progress: Progress | None
) -> FetchedModel:
    if from_file is not None:
        message = f"{name} is two files; make a bundle of copies that you have with `segship import`"
        raise FetchError(message, code="two_files")
    kept = os.path.isdir(bundle_folder(name))
    bundle = fetch_bundle(name, destination=destination, mirror=mirror, progress=progress)
    artifacts = bundle.manifest.artifacts
    checked = "both SHA-256 checked, seen to answer as their contract says; not compared with a torch model"
    size = sum(artifact.bytes for artifact in artifacts)
    return FetchedModel(name, bundle.path, size, artifacts[0].sha256, checked, bundle.path, kept)


def _bundle(name: str, checkpoint: Path, tell: Callable[[str], None]) -> tuple[Path | None, bool]:
    """Make the bundle of a checkpoint that was fetched, unless it is there; return it, and whether it was."""
    folder = bundle_folder(name)
    make_directory(folder.parent)
    with explained(folder), exclusive_lock(folder.with_name(f".{name}.lock")):
        tidy_directory(folder.parent)
        # Another process may have made it while this one waited.
        damaged = False
        if os.path.isdir(folder):
            try:
                Bundle.open(folder)
                return folder, True
            except BundleError as error:
                tell(f"the bundle that is there is damaged ({error.code}) and made anew")
                damaged = True
        tell(f"making the bundle of {name}")
        options = BundleOptions(licence=known_checkpoint(name).licence, force=damaged)
        try:
            bundle_checkpoint(checkpoint, folder, options)
        except ExportError as error:
            if error.code != "no_template":
                raise
            return None, False
    return folder, False
