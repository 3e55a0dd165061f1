# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints that only browsers can download: checked as far as that goes, and put into the cache.

Where no digest is published, what a file says of itself is checked: that it can be read safely, and that it has the
architecture and the sizes of its name. It cannot be checked that its numbers are the published ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from segship.catalog import CHECKPOINT_SUFFIXES, KnownCheckpoint
from segship.errors import FetchError
from segship.fetch import by_hand_error, checkpoint_path, known_checkpoint
from segship.files import CHUNK_BYTES, make_directory, open_regular, real_path, write_file
from segship.ship.checkpoints.survey import Survey, survey_checkpoint
from segship.ship.families import recogniser


@dataclass(frozen=True, slots=True)
class HandFetched:
    """A checkpoint that was got by hand and checked, and where it lies now."""

    path: Path
    bytes: int
    sha256: str
    """Nothing is published that it could be compared with."""
    found: Mapping[str, object]
    """What it was recognised as, by the names that `segship inspect` uses."""

    @property
    def checked(self) -> str:
        """What was checked, in words."""
        return f"readable, {_in_words(self.found)}; no digest is published to compare with"


def take_by_hand(name: str, *, from_file: Path | None = None, destination: Path | None = None) -> HandFetched:
    """Check a checkpoint that was downloaded by hand, and put it where its name finds it.

    Parameters
    ----------
    name
        A key of `segship.catalog.KNOWN_CHECKPOINTS`.
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
    if from_file is None and not os.path.isfile(target):
        raise by_hand_error(known)
    source = from_file or target
    if not os.path.isfile(source):
        message = f"there is no file {source}; give the path of the file that the browser downloaded"
        raise FetchError(message, code="file_missing")
    if source.suffix not in CHECKPOINT_SUFFIXES:
        message = (
            f"{source} does not end in {', '.join(CHECKPOINT_SUFFIXES)}; give the file that the browser downloaded"
        )
        raise FetchError(message, code="wrong_checkpoint")
    survey = survey_checkpoint(source)
    found = _check(known, survey, source)
    if real_path(source) != real_path(target):
        _put(source, survey, target)
    return HandFetched(target, survey.bytes, survey.sha256, found)


def _check(known: KnownCheckpoint, survey: Survey, source: Path) -> dict[str, object]:
    """Return what a file is, if it is what its name says."""
    family = recogniser(known.family)
    config = family.recognise(survey.shapes)
    if config is None:
        message = f"{source} is no {known.family} model, which {known.name} is; download {known.url}"
        raise FetchError(message, code="wrong_checkpoint")
    found = {name: value for name, value in family.describe(config).items() if name != "task"}
    wanted = {"architecture": known.architecture, **known.sizes}
    if any(found[name] != value for name, value in wanted.items()):
        message = (
            f"{source} has {_in_words(found)}, and {known.name} has {_in_words(wanted)}; it is another model, download "
            f"{known.url}"
        )
        raise FetchError(message, code="wrong_checkpoint")
    return found


def _in_words(sizes: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sizes.items())


def _put(source: Path, survey: Survey, target: Path) -> None:
    if os.path.exists(target):
        if survey_checkpoint(target).sha256 == survey.sha256:
            return
        message = f"{target} is there and is another file; move it away and fetch again"
        raise FetchError(message, code="file_differs")
    make_directory(target.parent)
    with open_regular(real_path(source)) as stream:
        write_file(target, iter(lambda: stream.read(CHUNK_BYTES), b""))
