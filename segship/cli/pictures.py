# SPDX-License-Identifier: Apache-2.0
"""Pictures of a command line: files, folders and patterns that no shell has expanded, worked through and told."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from segship.cli.output import STANDARD_INPUT, errors_console, plain, print_error, print_json, results_console
from segship.errors import InputError, SegshipError
from segship.images import ImageLimits
from segship.promptable.predictor import Predictor
from segship.semantic.predictor import NOTES, SemanticPredictor
from segship.writers.names import output_stems

EXIT_BAD_INPUT = 3

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")


def expand_pictures(words: Sequence[str]) -> list[str]:
    """Return the pictures that the words mean, in their order.

    A folder stands for the pictures right in it, by name; a pattern such as ``day*/*.png`` that is no file for those it
    fits. Any other word stays as it is, and is refused when it is read. No word at all, and a folder or pattern without
    a picture, are refused as ``no_images``.
    """
    if not words:
        raise InputError("no image was given; name one or more files, or - for standard input", code="no_images")
    return [picture for word in words for picture in _meant_by(word)]


def _meant_by(word: str) -> list[str]:
    if word == STANDARD_INPUT or os.path.isfile(word):
        return [word]
    if os.path.isdir(word):
        found = sorted(str(file) for file in Path(word).iterdir() if _is_picture(file))
        if not found:
            message = f"{word} holds no picture ({', '.join(PICTURE_SUFFIXES)}); name its files, or another folder"
            raise InputError(message, code="no_images")
        return found
    if not glob.has_magic(word):
        return [word]
    found = sorted(name for name in glob.glob(word, recursive=True) if _is_picture(Path(name)))
    if not found:
        raise InputError(f"no picture fits {word!r}; check the pattern", code="no_images")
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


class Outcome(Protocol):
    """An image that was done."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a JSON document says of it."""


Done = TypeVar("Done", bound=Outcome)


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that could not be used, and why."""

    image: str
    code: str
    message: str


def each_picture(
    pictures: Sequence[str], limits: ImageLimits, job: Callable[..., Done], *, description: str = ""
) -> Iterator[Done | FailedImage]:
    """Do a job for one picture after the other; one that cannot be used is told and does not stop the others.

    The job is called with the picture's source, its ``name``, and the ``stem`` of its files. The description stands
    beside the bar that is shown for several pictures; without it there is none.
    """
    stems = output_stems("-" if picture == STANDARD_INPUT else picture for picture in pictures)
    for picture, stem in zip(_with_progress(pictures, description), stems, strict=True):
        # One byte more at most than the limits allow.
        source = sys.stdin.buffer.read(limits.bytes + 1) if picture == STANDARD_INPUT else picture
        try:
            yield job(source, name=picture, stem=stem)
        except SegshipError as error:
            if len(pictures) == 1:
                raise
            yield FailedImage(picture, error.code, str(error))


def _with_progress(pictures: Sequence[str], description: str) -> Iterable[str]:
    if len(pictures) == 1 or not description:
        return pictures
    # Imported here, since one picture needs no bar.
    from rich.progress import track

    return track(pictures, description=description, console=errors_console(), transient=True)


def report_outcomes(
    predictor: Predictor | SemanticPredictor,
    model: str,
    outcomes: Iterable[Done | FailedImage],
    print_image: Callable[[Done], None],
    *,
    as_json: bool,
    more: Mapping[str, Any] | None = None,
) -> int:
    """Print outcomes as they come, so that no picture is kept, and return the exit code.

    ``more`` is what else a JSON document says of the run.
    """
    documents: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for outcome in outcomes:
        if isinstance(outcome, FailedImage):
            failed.append(asdict(outcome))
            print_error(outcome.image, outcome.code, outcome.message)
        elif as_json:
            documents.append(outcome.to_dict())
        else:
            print_image(outcome)
    if as_json:
        print_json({**describe_run(predictor, model), **(more or {}), "images": documents, "failed": failed})
    else:
        results_console().print(f"[dim]{plain(model)} in {plain(predictor.description)}[/]")
    return EXIT_BAD_INPUT if failed else 0


def describe_run(predictor: Predictor | SemanticPredictor, model: str) -> dict[str, Any]:
    """Return what a JSON document says of the model and of what ran it."""
    return {
        "model": model,
        "architecture": predictor.manifest.architecture,
        "backend": predictor.backend,
        "precision": predictor.precision,
        "backend_reason": predictor.backend_reason,
        "runs_on": predictor.description,
    }


def print_head(name: str, size_hw: tuple[int, int], milliseconds: Mapping[str, float]) -> None:
    """Print the first line of an image: name, size, times."""
    times = ", ".join(f"{stage} {value:.0f} ms" for stage, value in milliseconds.items())
    results_console().print(f"[bold]{plain(name)}[/] {size_hw[1]} x {size_hw[0]}: {times}")


def print_tail(notes: Iterable[str], files: Iterable[Path]) -> None:
    """Print the last lines of an image: what was noticed, what was written."""
    console = results_console()
    for note in dict.fromkeys(notes):
        console.print(f"note: {plain(note)}" + (f": {plain(NOTES[note])}" if note in NOTES else ""))
    for path in files:
        console.print(f"  {plain(str(path))}")
