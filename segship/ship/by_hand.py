# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints that only browsers can download: checked as far as that goes, and put into the cache.

No size and no digest of the semantic models is published. What a file says of itself is checked: that it can be read
safely, that it is the architecture of its name, and that it has the classes of its data set. It cannot be checked that
its numbers are the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segship.catalog import CHECKPOINT_SUFFIXES, KnownCheckpoint
from segship.errors import FetchError
from segship.fetch import by_hand_error, checkpoint_path, known_checkpoint
from segship.files import CHUNK_BYTES, open_regular, write_file
from segship.ship.checkpoints.survey import Survey, survey_checkpoint
from segship.ship.families.semask.config import SemaskConfig
from segship.ship.families.semask.recognise import recognise

CLASS_COUNTS = {"cityscapes": (19, 19), "ade20k": (150, 150), "cocostuff": (171, 150)}
"""Data set -> classes of the head, and of the semantic layers; those of COCO-Stuff were left at ADE20K's number."""


@dataclass(frozen=True, slots=True)
class HandFetched:
    """A checkpoint that was got by hand and checked, and where it lies now."""

    path: Path
    bytes: int
    sha256: str
    """Nothing is published that it could be compared with."""
    config: SemaskConfig
    """What it was recognised as."""

    @property
    def checked(self) -> str:
        """What was checked, in words."""
        config = self.config
        return (
            f"readable, {config.architecture}, {config.classes} classes, {config.semantic_classes} semantic classes, "
            f"windows in {config.semantic_window} stages by the published rule; no digest is published to compare with"
        )


def take_by_hand(name: str, *, from_file: Path | None = None, destination: Path | None = None) -> HandFetched:
    """Check the checkpoint of a semantic model that was downloaded by hand, and put it where its name finds it.

    Parameters
    ----------
    name
        That of a semantic model in `segship.catalog.KNOWN_CHECKPOINTS`.
    from_file
        The download, which is copied; without it, what lies at its place already is checked.
    destination
        Folder for the file; the cache folder's ``checkpoints`` when left out.

    Raises
    ------
    FetchError
        ``fetch_by_hand`` when there is no file yet, saying how to get it; ``wrong_checkpoint`` when it is of another
        model; ``file_differs`` when another file has its place.
    CheckpointError
        When the file cannot be read safely, or is a web page instead.
    """
    known = known_checkpoint(name)
    target = checkpoint_path(name, destination)
    if from_file is None and not target.is_file():
        raise by_hand_error(known)
    source = from_file or target
    if not source.is_file():
        message = f"there is no file {source}; give the path of the file that the browser downloaded"
        raise FetchError(message, code="file_missing")
    if source.suffix not in CHECKPOINT_SUFFIXES:
        message = (
            f"{source} does not end in {', '.join(CHECKPOINT_SUFFIXES)}; give the file that the browser downloaded"
        )
        raise FetchError(message, code="wrong_checkpoint")
    survey = survey_checkpoint(source)
    config = _check(known, survey, source)
    if source.resolve() != target.resolve():
        _put(source, survey, target)
    return HandFetched(target, survey.bytes, survey.sha256, config)


def _check(known: KnownCheckpoint, survey: Survey, source: Path) -> SemaskConfig:
    """Return what a file is, if it is what its name says."""
    config = recognise(survey.shapes)
    if config is None:
        message = f"{source} is no SeMask-FPN; download {known.url}"
        raise FetchError(message, code="wrong_checkpoint")
    found = (config.architecture, config.classes, config.semantic_classes)
    wanted = (known.architecture, *CLASS_COUNTS[known.data_set or ""])
    if found != wanted:
        message = (
            f"{source} is {found[0]} with {found[1]} classes and {found[2]} semantic classes, and {known.name} is "
            f"{wanted[0]} with {wanted[1]} and {wanted[2]}; it is another model, download {known.url}"
        )
        raise FetchError(message, code="wrong_checkpoint")
    return config


def _put(source: Path, survey: Survey, target: Path) -> None:
    if target.exists():
        if survey_checkpoint(target).sha256 == survey.sha256:
            return
        message = f"{target} is there and is another file; move it away and fetch again"
        raise FetchError(message, code="file_differs")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open_regular(source.resolve()) as stream:
        write_file(target, iter(lambda: stream.read(CHUNK_BYTES), b""))
