# SPDX-License-Identifier: Apache-2.0
"""How far an evaluation has come, in a file that is always whole: a run that stopped goes on from it.

The file is tied to what was scored on what. Counts of one model must never be added to those of another, so a file of
another run is refused, not overwritten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.datasets.folders import FailedSample
from segship.errors import InputError
from segship.files import read_bytes, write_file

FORMAT = "segship evaluation state 1"
MAX_STATE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Counts after a number of samples.

    Attributes
    ----------
    done
        Samples, in the order of the data set, that were scored or failed.
    counts
        (K, K + 1) int64, see `segship.evaluation.report.ConfusionMatrix`.
    failed
        Those that could not be used.
    """

    done: int
    counts: NDArray[np.int64]
    failed: tuple[FailedSample, ...] = ()


@dataclass(frozen=True, slots=True)
class StateFile:
    """Where snapshots of one run are kept.

    Attributes
    ----------
    path
        The file.
    identity
        What the counts depend on: digest of the model, data set, split, options, ...
    """

    path: Path
    identity: Mapping[str, str]

    def load(self) -> Snapshot | None:
        """Return the last snapshot; None when there is no file.

        Raises
        ------
        InputError
            ``bad_state`` when the file is damaged, ``state_of_another_run`` when it belongs to another one.
        """
        if not self.path.exists():
            return None
        try:
            document = json.loads(read_bytes(self.path, limit=MAX_STATE_BYTES))
            if document["format"] != FORMAT:
                raise ValueError(document["format"])
            identity = dict(document["identity"])
            counts = np.array(document["counts"], np.int64)
            snapshot = Snapshot(
                int(document["done"]), counts, tuple(FailedSample(**entry) for entry in document["failed"])
            )
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            message = f"{self.path} is no state of an evaluation ({error!r}); start anew with --fresh, or remove it"
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
                "start anew with --fresh, or choose another --out"
            )
            raise InputError(message, code="state_of_another_run")

    def save(self, snapshot: Snapshot) -> None:
        """Replace the file by a snapshot, whole or not at all."""
        document = {
            "format": FORMAT,
            "identity": dict(self.identity),
            "done": snapshot.done,
            "failed": [asdict(failure) for failure in snapshot.failed],
            "counts": snapshot.counts.tolist(),
        }
        write_file(self.path, json.dumps(document, ensure_ascii=False).encode(), overwrite=True)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)
