# SPDX-License-Identifier: Apache-2.0
"""From samples and predictions to counts: added in order, kept in a file, and taken up again after a crash.

The file is always whole, and tied to what was scored on what. Counts of one model must never be added to those of
another, so a file of another run is refused, not overwritten.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segship.arrays import IntArray
from segship.datasets.folders import DATA_SETS, FailedSample, Sample
from segship.errors import InputError, way
from segship.evaluation.report import ConfusionMatrix, Evaluation
from segship.evaluation.sources import Outcome, Source
from segship.files import read_bytes, write_file
from segship.machine import count_workers

Progress = Callable[[int, int], None]
"""Called with how many samples are done, and of how many."""

SECONDS_BETWEEN_SAVES = 5.0
# How many failures a message lists.
_SHOWN = 5
_FORMAT = "segship evaluation state 1"
_FRESH = way("fresh=True", "--fresh")
_MAX_STATE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Counts after ``done`` samples, in the order of the data set, were scored or failed; see `ConfusionMatrix`."""

    done: int
    counts: IntArray
    failed: tuple[FailedSample, ...] = ()


@dataclass(frozen=True, slots=True)
class StateFile:
    """The file of one run's snapshots; ``identity`` is what the counts depend on: digest of the model, split, ..."""

    path: Path
    identity: Mapping[str, str]

    def load(self) -> Snapshot | None:
        """Return the last snapshot; None when there is no file.

        A damaged file is refused as ``bad_state``, and that of another run as ``state_of_another_run``.
        """
        if not self.path.exists():
            return None
        try:
            document = json.loads(read_bytes(self.path, limit=_MAX_STATE_BYTES))
            if document["format"] != _FORMAT:
                raise ValueError(document["format"])
            identity = dict(document["identity"])
            counts = np.array(document["counts"], np.int64)
            snapshot = Snapshot(
                int(document["done"]), counts, tuple(FailedSample(**entry) for entry in document["failed"])
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            message = f"{self.path} is no state of an evaluation ({error!r}); start anew with {_FRESH}, or remove it"
            raise InputError(message, code="bad_state") from error
        self._check(identity)
        return snapshot

    def _check(self, identity: Mapping[str, Any]) -> None:
        names = sorted(identity.keys() | self.identity.keys())
        other = [name for name in names if identity.get(name) != self.identity.get(name)]
        if other:
            differences = "; ".join(f"{name} was {identity.get(name)}, now {self.identity.get(name)}" for name in other)
            message = (
                f"{self.path} holds the counts of another run: {differences}; repeat that run to finish it, "
                f"start anew with {_FRESH}, or choose another {way('out', '--out')}"
            )
            raise InputError(message, code="state_of_another_run")

    def save(self, snapshot: Snapshot) -> None:
        """Replace the file by a snapshot, whole or not at all."""
        document = {
            "format": _FORMAT,
            "identity": dict(self.identity),
            "done": snapshot.done,
            "failed": [asdict(failure) for failure in snapshot.failed],
            "counts": snapshot.counts.tolist(),
        }
        write_file(self.path, json.dumps(document, ensure_ascii=False).encode(), overwrite=True)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)


def score_samples(
    data_set: str,
    samples: Sequence[Sample],
    source: Source,
    *,
    workers: int | None = 0,
    strict: bool = False,
    state: StateFile | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score predictions.

    Parameters
    ----------
    samples
        From `segship.datasets.folders.find_samples`, of that data set.
    source
        Where predictions come from.
    workers
        Processes that read and, for written class maps, count; see `segship.machine.count_workers`.
    strict
        The first sample that cannot be used is an error; else it is listed.
    state
        Where counts are kept, and taken up again; None keeps none. The file stays until `StateFile.remove`.

    Raises
    ------
    InputError
        ``nothing_scored`` when no sample could be used; with ``strict`` the code of the first one that could not; or
        what `StateFile.load` raises.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from segship.datasets.folders import find_samples
    >>> from recipes.streets.scenes import write_cityscapes
    >>> from segship.evaluation import ModelSource
    >>> all_road = ModelSource(lambda pixels: np.zeros(pixels.shape[:2], np.uint8))
    >>> with tempfile.TemporaryDirectory() as root:
    ...     write_cityscapes(root, {"val": 2}, size_hw=(32, 64))
    ...     evaluation = score_samples("cityscapes", find_samples("cityscapes", root), all_road)
    >>> 5 < evaluation.rows()[0][1] < 60
    True
    """
    if strict:
        _refuse_incomplete(samples)
    started = time.monotonic()
    classes = len(DATA_SETS[data_set].table.classes)
    begin = _begin(classes, len(samples), state)
    outcomes = source.score(samples, begin.done, data_set, count_workers(workers, len(samples) - begin.done))
    outcomes = _raise_first(outcomes) if strict else outcomes
    with closing(outcomes):
        end = _add_up(outcomes, begin, state, lambda done: progress(done, len(samples)) if progress else None)
    if len(end.failed) == len(samples):
        raise InputError(f"none of {len(samples)} samples could be used: {_list(end.failed)}", code="nothing_scored")
    return Evaluation(
        table=DATA_SETS[data_set].table,
        matrix=ConfusionMatrix(classes, end.counts),
        samples=len(samples),
        failed=end.failed,
        identity={} if state is None else state.identity,
        resumed=begin.done,
        seconds=time.monotonic() - started,
    )


def digest_of_samples(samples: Iterable[Sample], root: Path) -> str:
    """Return a SHA-256 that tells whether a split has the same pictures and files of truth as before."""
    digest = hashlib.sha256()
    for sample in samples:
        for path in (sample.image, sample.truth):
            digest.update(f"{sample.name}\0{path and path.relative_to(root).as_posix()}\0".encode())
    return digest.hexdigest()


def _begin(classes: int, samples: int, state: StateFile | None) -> Snapshot:
    kept = state.load() if state is not None else None
    if kept is None:
        return Snapshot(0, ConfusionMatrix(classes).counts)
    # Refuses counts of another shape.
    ConfusionMatrix(classes, kept.counts)
    if not len(kept.failed) <= kept.done <= samples:
        message = f"the state says {kept.done} of {samples} samples are done; start anew with {_FRESH}"
        raise InputError(message, code="bad_state")
    return kept


def _raise_first(outcomes: Generator[Outcome]) -> Generator[Outcome]:
    with closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome, FailedSample):
                raise InputError(outcome.both, code=outcome.code)
            yield outcome


def _add_up(
    outcomes: Iterable[Outcome], now: Snapshot, state: StateFile | None, tell: Callable[[int], None]
) -> Snapshot:
    saved, saved_at = now, time.monotonic()
    try:
        for outcome in outcomes:
            if isinstance(outcome, FailedSample):
                now = Snapshot(now.done + 1, now.counts, (*now.failed, outcome))
            else:
                now = Snapshot(now.done + 1, now.counts + outcome, now.failed)
            if state is not None and time.monotonic() - saved_at >= SECONDS_BETWEEN_SAVES:
                state.save(now)
                saved, saved_at = now, time.monotonic()
            tell(now.done)
    finally:
        # Also when somebody interrupts, or a runtime fails: a snapshot is one value, so it is never half of a sample.
        if state is not None and now is not saved:
            state.save(now)
    return now


def _refuse_incomplete(samples: Sequence[Sample]) -> None:
    """Refuse samples without truth at once, not after an hour."""
    incomplete = [sample for sample in samples if sample.truth is None]
    if incomplete:
        names = ", ".join(sample.name for sample in incomplete[:_SHOWN])
        raise InputError(f"{len(incomplete)} of {len(samples)} samples have no truth: {names}", code="missing_truth")


def _list(failed: Sequence[FailedSample]) -> str:
    more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
    return "; ".join(failure.both for failure in failed[:_SHOWN]) + more
