# SPDX-License-Identifier: Apache-2.0
"""Pictures of a command line: which they are, where their files go, what became of each, and all of that told.

The places of all files are settled and looked at before a model is opened (`settle_pictures`), so that an hour of work
is not refused at its end. `each_picture` does the work and `report_outcomes` tells of it.
"""

from __future__ import annotations

import functools
import glob
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated, Any, Generic, Protocol, TypeVar

from cyclopts import Parameter

from segship.cli.main import EXIT_INTERRUPTED, exit_code
from segship.cli.options import INPUT_GROUP, OUTPUT_GROUP, Fields, Option
from segship.cli.output import (
    STANDARD_INPUT,
    plain,
    print_error,
    print_failure,
    print_json,
    print_json_line,
    progress_console,
    read_standard_input,
    results_console,
)
from segship.errors import ImageError, InputError, OutputError, PromptError, SegshipError
from segship.files import check_directory, tidy_directory, walk_folder
from segship.images import ImageLimits
from segship.images.file_bytes import PICTURE_SUFFIXES
from segship.jobs import JobOptions
from segship.promptable.everything.search import NOTES as SEARCH_NOTES
from segship.promptable.predictor import Predictor
from segship.promptable.prompts import NOTES as PROMPT_NOTES
from segship.semantic.predictor import NOTES as SEMANTIC_NOTES
from segship.semantic.predictor import SemanticPredictor
from segship.writers import WRITERS, ClassMapResult, Source, output_paths
from segship.writers.merged import MERGED, check_merged, is_data_set, merge_results
from segship.writers.names import compared, output_places, safe_stem

NOTES = {**SEMANTIC_NOTES, **PROMPT_NOTES, **SEARCH_NOTES}
# The pictures among the files that we write.
_ENDINGS = [writer.extension for writers in WRITERS.values() for writer in writers.values() if "." in writer.extension]
_WRITTEN = re.compile(rf"(.+?)\.({'|'.join(map(re.escape, _ENDINGS))}|(object\d+\.)?mask\d+\.png)", re.DOTALL)
# The folders of pictures among them.
_WRITTEN_FOLDER = re.compile(r"(.+)\.(masks|panoptic)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """How the pictures of a command line are worked through.

    Attributes
    ----------
    recursive
        Pictures in the folders of a folder too; their files go into folders of the same names.
    skip_existing
        Leave out pictures whose files are all there: goes on where a run has stopped.
    out
        Folder for the files.
    json
        Print one JSON document.
    jsonl
        Print a line of JSON for each picture as it is done, and one for the run.
    """

    recursive: bool = False
    skip_existing: bool = False
    out: Path = Path("segship-output")
    json: bool = False
    jsonl: bool = False

    def __post_init__(self) -> None:
        if self.json and self.jsonl:
            raise InputError("--json and --jsonl were given; give one of them", code="bad_option")


Merge = Annotated[bool, Parameter(group=OUTPUT_GROUP)]
Batch = Annotated[
    BatchOptions,
    Fields(
        None,
        OUTPUT_GROUP,
        recursive=Option(name=("--recursive", "-r"), group=INPUT_GROUP),
        out=Option(name=("--out", "-o")),
    ),
]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture: its name as it was given or found, and the folder and the stem of its files."""

    name: str
    folder: Path
    stem: str
    done: bool = False


def find_pictures(words: Sequence[str], batch: BatchOptions) -> list[Picture]:
    """Return the pictures that the words mean, in their order, and where their files go.

    A folder stands for the pictures right in it, by name, or in all folders below it; a pattern such as ``day*/*.png``
    that is no file for those it fits. Hidden files are left out unless they are named, and so is what segship has
    written: see `_drop_written`. Any other word stays as it is, and is refused when it is read. A file is taken once.
    No word at all, and a folder or pattern without a picture, are refused as ``no_images``.
    """
    if not words:
        raise InputError("no image was given; name one or more files, or - for standard input", code="no_images")
    once: dict[str, tuple[str, PurePath]] = {}
    for word in _without_expanded(words):
        for picture in _meant_by(word, batch):
            once.setdefault(os.path.abspath(picture[0]), picture)
    found = list(once.values())
    places = output_places(found)
    return [Picture(name, batch.out / place.parent, place.name) for (name, _), place in zip(found, places, strict=True)]


def _meant_by(word: str, batch: BatchOptions) -> list[tuple[str, PurePath]]:
    """Return the pictures a word means, each with the part of its path that names its files."""
    if os.path.isdir(word):
        return [(str(path), path.relative_to(word)) for path in _in_folder(Path(word), batch)]
    if word in (STANDARD_INPUT, ""):
        return [(word, PurePath("-"))]
    if os.path.isfile(word) or not glob.has_magic(word):
        return [(word, PurePath(PurePath(word).name))]
    root = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), PurePath(word).parts))
    fitting = {Path(name): name for name in sorted(glob.glob(word, recursive=True)) if _is_picture(Path(name))}
    found = _drop_written(root, list(fitting), batch.out)
    if not found:
        but = " but files that segship wrote; name them one by one" if fitting else "; check the pattern"
        raise InputError(f"no picture fits {word!r}{but}", code="no_images")
    return [(fitting[path], PurePath(path.name)) for path in found]


def _in_folder(folder: Path, batch: BatchOptions) -> list[Path]:
    there = [path for path in walk_folder(folder, deep=batch.recursive) if _is_picture(path)]
    found = _drop_written(folder, there, batch.out)
    if not found:
        but = " but files that segship wrote" if there else ""
        deeper = "" if batch.recursive else "; --recursive reads the folders in it too"
        message = (
            f"{folder} holds no picture ({', '.join(PICTURE_SUFFIXES)}){but}{deeper}; name its files, or another folder"
        )
        raise InputError(message, code="no_images")
    return found


def _drop_written(root: Path, pictures: Sequence[Path], out: Path) -> list[Path]:
    """Return pictures found below a root without those that segship wrote, in this folder for files or in another.

    Those are what lies in a folder for files below the root, or in a data set; and, where the root is that folder or
    beside a picture of that stem, or where one was found, names such as ``STEM.overlay.jpg`` and ``STEM.masks/0.png``.
    """
    here, out = Path(os.path.realpath(root)), Path(os.path.realpath(out))
    is_ours = functools.cache(is_data_set)
    beside = functools.cache(lambda folder: _stems(path for path in walk_folder(folder) if _is_picture(path)))
    all_stems = functools.cache(lambda: _stems(pictures))

    def is_written(path: Path) -> bool:
        if here != out and here in out.parents and out in Path(os.path.realpath(path)).parents:
            return True
        folders = [root / folder for folder in path.relative_to(root).parents][:-1]
        if any(map(is_ours, folders)):
            return True
        for entry, names in ((path, _WRITTEN), *((folder, _WRITTEN_FOLDER) for folder in folders)):
            if match := names.fullmatch(entry.name):
                stem = compared(match[1])
                if (here == out and entry == path) or stem in all_stems() or stem in beside(entry.parent):
                    return True
        return False

    return [path for path in pictures if not is_written(path)]


def _without_expanded(words: Sequence[str]) -> list[str]:
    """Return the words without files that segship wrote and that stand beside their own picture, and tell of these.

    A shell makes such words of a pattern; a written file that is named without its picture is meant.
    """
    folders: dict[str, list[str]] = defaultdict(list)
    for word in words:
        folders[os.path.dirname(word)].append(word)
    stems = {folder: _stems(map(Path, inside)) for folder, inside in folders.items()}
    written = [
        word
        for word in words
        if (match := _WRITTEN.fullmatch(os.path.basename(word))) and compared(match[1]) in stems[os.path.dirname(word)]
    ]
    if written:
        more = f" and {len(written) - 1} more" if len(written) > 1 else ""
        message = f"left out, since segship wrote it: {plain(written[0])}{more}; named without its picture it is taken"
        progress_console().print(message)
    return [word for word in words if word not in written]


def _stems(pictures: Iterable[Path]) -> frozenset[str]:
    """Return the stems that files written of pictures may have."""
    names = ((path.name, f"{path.name}.x") for path in pictures if path.suffix.lower() in PICTURE_SUFFIXES)
    return frozenset(compared(safe_stem(name)) for both in names for name in both)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()


def settle_pictures(
    words: Sequence[str], batch: BatchOptions, options: JobOptions, of: type[Source | ClassMapResult]
) -> list[Picture]:
    """Return the pictures that the words mean; refuses now what could not be written later.

    ``of`` is the type of what will be written.

    Raises
    ------
    InputError
        As `find_pictures`; ``bad_option`` for ``--skip-existing`` beside ``--overwrite``.
    OutputError
        ``output_exists``, or what `segship.files.check_directory` says about the folder.
    """
    if batch.skip_existing and options.overwrite:
        message = "--skip-existing leaves files as they are and --overwrite replaces them; give one of them"
        raise InputError(message, code="bad_option")
    pictures = find_pictures(words, batch)
    for folder in dict.fromkeys(picture.folder for picture in pictures):
        check_directory(folder)
        for line in tidy_directory(folder):
            progress_console().print(plain(line))
    if options.overwrite:
        return pictures
    settled, taken = [], []
    for picture in pictures:
        paths = output_paths(of, picture.folder, picture.stem, options.formats)
        there = [path for path in paths if os.path.lexists(path)]
        # A picture without a mask has no file of this format, and those of the others come with it.
        sure = [path for path in paths if not path.name.endswith("mask0.png")] or paths
        done = batch.skip_existing and set(sure) <= set(there)
        settled.append(replace(picture, done=done))
        if there and not done:
            taken.append(there[0])
    if taken:
        raise _taken(taken, len(pictures), batch)
    return settled


def _taken(taken: Sequence[Path], pictures: int, batch: BatchOptions) -> OutputError:
    more = f" (and files of {len(taken) - 1} more of {pictures} pictures)" if len(taken) > 1 else ""
    if batch.skip_existing:
        advice = "other formats of it are not there; leave its format out, replace it with --overwrite"
    else:
        advice = "leave out what is done with --skip-existing, replace it with --overwrite"
    message = f"{taken[0]} exists{more}, and nothing was done; {advice}, or choose another folder with --out"
    return OutputError(message, code="output_exists")


class Answer(Protocol):
    """What is known of an image that was done."""

    def to_dict(self) -> dict[str, Any]:
        """Return what a JSON document says of it."""


Done = TypeVar("Done", bound=Answer)
Job = TypeVar("Job", bound=JobOptions)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Done]):
    """What became of a picture: done, or an error, or neither where it was left out."""

    picture: Picture
    done: Done | None = None
    error: SegshipError | None = None

    @property
    def path(self) -> str:
        """What JSON calls it: the path as it was given."""
        return "-" if self.picture.name == STANDARD_INPUT else self.picture.name

    def to_dict(self) -> dict[str, Any]:
        """Return what a line of JSON says of it."""
        path = self.path
        if self.error is not None:
            return {"path": path, "error": {"code": self.error.code, "message": self.error.on_command_line}}
        return {"path": path, **({"skipped": True} if self.done is None else self.done.to_dict())}


def each_picture(
    pictures: Sequence[Picture], limits: ImageLimits, job: Callable[..., Done], *, description: str = ""
) -> Iterator[Outcome[Done]]:
    """Do a job for one picture after the other; one that cannot be used does not stop the others.

    The job is called with the picture's source, its ``name``, and the ``directory`` and the ``stem`` of its files. The
    description stands beside the bar that is shown for several pictures; without it there is none.
    """
    for picture in _with_progress(pictures, description):
        if picture.done:
            yield Outcome(picture)
            continue
        try:
            # Of standard input one byte more at most than the limits allow.
            source = read_standard_input(limits.bytes + 1) if picture.name == STANDARD_INPUT else picture.name
            done = job(source, name=picture.name, directory=picture.folder, stem=picture.stem)
        except SegshipError as error:
            yield Outcome(picture, error=_name_picture(error, picture.name))
        else:
            yield Outcome(picture, done)


def split_merged(options: Job, batch: BatchOptions, *, merge: bool) -> tuple[Job, tuple[str, ...]]:
    """Return the options of what each picture gets for itself, and the formats that all of them become together.

    Refuses now what `each_merged` would refuse after all work.
    """
    merged = tuple(name for name in options.formats if merge and name in MERGED)
    if merge and not merged:
        message = f"--merge makes one data set of {', '.join(MERGED)}; name one of them in --format"
        raise InputError(message, code="bad_option")
    if merge and batch.skip_existing:
        message = "--merge needs all pictures in one run, and --skip-existing leaves some out; give one of them"
        raise InputError(message, code="bad_option")
    check_merged(batch.out, merged, overwrite=options.overwrite)
    return replace(options, formats=tuple(name for name in options.formats if name not in merged)), merged


def each_merged(
    report: Report,
    pictures: Sequence[Picture],
    formats: tuple[str, ...],
    options: JobOptions,
    job: Callable[..., Done],
    *,
    description: str = "",
) -> Iterator[Outcome[Done]]:
    """Do what `each_picture` does, the job with ``merged`` besides, and make the data sets when all is done.

    Pictures are called in them by their paths below the folder that they have in common.
    """
    if not formats:
        yield from each_picture(pictures, options.limits, job, description=description)
        return
    report.after_interrupt = "data sets are made of all pictures in one run, and these were not kept"
    places = [os.path.dirname(os.path.abspath(picture.name)) for picture in pictures]
    out, outlines = report.batch.out, options.outlines
    root = os.path.commonpath(places)
    with merge_results(out, formats, root=root, overwrite=options.overwrite, outlines=outlines) as merged:
        yield from each_picture(pictures, options.limits, partial(job, merged=merged), description=description)
    report.merged = [str(path) for path in merged.files]


def _name_picture(error: SegshipError, name: str) -> SegshipError:
    """Return the error with the name of its picture, where its message does not say it."""
    if not isinstance(error, ImageError | PromptError) or name in str(error):
        return error
    return type(error)(f"{name}: {error.on_command_line}", code=error.code)


def _with_progress(pictures: Sequence[Picture], description: str) -> Iterable[Picture]:
    if len(pictures) == 1 or not description:
        return pictures
    # Imported here, since one picture needs no bar.
    from rich.progress import track

    console = progress_console()
    hidden = console.quiet or not console.is_terminal
    return track(pictures, description=description, console=console, transient=True, disable=hidden)


class Report:
    """What became of the pictures of a run, printed as it comes, so that no picture is kept.

    Parameters
    ----------
    pictures
        All pictures of the run.
    batch
        What is printed, and where the files go.
    run
        What a JSON document says of the run.
    """

    def __init__(self, pictures: Sequence[Picture], batch: BatchOptions, run: Mapping[str, Any]) -> None:
        self.total, self.batch, self.run = len(pictures), batch, run
        self.done = 0
        self.exit_code = 0
        self.documents: list[dict[str, Any]] = []
        self.failed: list[dict[str, str]] = []
        self.skipped: list[str] = []
        self.merged: list[str] = []
        self.after_interrupt = "run again with --skip-existing"

    def tell(self, outcome: Outcome[Done], print_image: Callable[[Done], None]) -> None:
        """Print one; the first that failed says with which code the command ends."""
        name, error = outcome.picture.name, outcome.error
        if self.batch.jsonl:
            print_json_line(outcome.to_dict())
        if error is not None:
            said = {"code": error.code, "message": error.on_command_line}
            self.failed.append({"image": name, "path": outcome.path, **said})
            self.exit_code = self.exit_code or exit_code(error)
            print_error(name, error.code, error.on_command_line)
        elif outcome.done is None:
            self.skipped.append(name)
        else:
            self.done += 1
            if self.batch.json:
                self.documents.append(outcome.to_dict())
            elif not self.batch.jsonl:
                print_image(outcome.done)

    def end(self, *, interrupted: bool = False) -> int:
        """Print the numbers, and return the exit code."""
        told = self.done + len(self.skipped) + len(self.failed)
        counts = {"done": self.done, "skipped": len(self.skipped), "failed": len(self.failed)}
        message = f"interrupted after {told} of {self.total}; {self.after_interrupt}"
        stopped = {"error": {"code": "interrupted", "message": message}} if interrupted else {}
        summary = {**counts, "out": str(self.batch.out), **({"merged": self.merged} if self.merged else {})}
        if self.batch.jsonl:
            print_json_line({**self.run, "summary": summary, **stopped})
        elif self.batch.json:
            lists = {"images": self.documents, "skipped": self.skipped, "failed": self.failed}
            print_json({**self.run, **lists, "summary": summary, **stopped})
        else:
            results_console().print(f"[dim]{plain(self.run['model'])} in {plain(self.run['runs_on'])}[/]")
            for path in self.merged:
                results_console().print(f"  {plain(path)}")
            if self.total > 1 or self.skipped:
                numbers = ", ".join(f"{number} {what}" for what, number in counts.items())
                has_files = told > len(self.failed) and "dry_run" not in self.run
                where = f"; files in {plain(str(self.batch.out))}" if has_files else ""
                results_console().print(f"[bold]{numbers}[/]{where}")
        if interrupted:
            print_failure("interrupted", message)
            return EXIT_INTERRUPTED
        return self.exit_code


def report_outcomes(report: Report, outcomes: Iterable[Outcome[Done]], print_image: Callable[[Done], None]) -> int:
    """Print outcomes as they come and return the exit code; the error of a single picture is that of the command."""
    try:
        for outcome in outcomes:
            if outcome.error is not None and report.total == 1:
                raise outcome.error
            report.tell(outcome, print_image)
    except KeyboardInterrupt:
        return report.end(interrupted=True)
    return report.end()


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
