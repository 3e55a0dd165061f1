# SPDX-License-Identifier: Apache-2.0
"""The file of a run that stopped."""

import json

import numpy as np
import pytest

from segship.datasets.folders import FailedSample
from segship.errors import InputError
from segship.evaluation import Snapshot, StateFile

SNAPSHOT = Snapshot(
    7, np.arange(6, dtype=np.int64).reshape(2, 3) * 10**12, (FailedSample("a/ä", "truncated", "it ends"),)
)


def test_a_snapshot_comes_back(tmp_path):
    state = StateFile(tmp_path / "run.state", {"model": "a"})
    assert state.load() is None
    state.save(Snapshot(1, SNAPSHOT.counts))
    state.save(SNAPSHOT)
    loaded = state.load()
    assert (loaded.done, loaded.failed) == (7, SNAPSHOT.failed)
    assert loaded.counts.dtype == np.int64 and np.array_equal(loaded.counts, SNAPSHOT.counts)
    assert [path.name for path in tmp_path.iterdir()] == ["run.state"]
    state.remove()
    assert state.load() is None


def test_counts_of_another_run_are_refused_and_the_difference_named(tmp_path):
    StateFile(tmp_path / "run.state", {"model": "a", "split": "val"}).save(SNAPSHOT)
    with pytest.raises(InputError, match="model was a, now b; window was None, now 3") as caught:
        StateFile(tmp_path / "run.state", {"model": "b", "split": "val", "window": "3"}).load()
    assert caught.value.code == "state_of_another_run" and "fresh=True" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"counts": [[1], [2, 3]]},
        {"counts": [["x"]]},
        {"counts": [[10**30]]},
        {"done": None},
        {"failed": [{"name": "a"}]},
        {"identity": 3},
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change):
    state = StateFile(tmp_path / "run.state", {})
    state.save(SNAPSHOT)
    document = json.loads(state.path.read_text()) | change
    state.path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="fresh=True") as caught:
        state.load()
    assert caught.value.code == "bad_state"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_what_is_no_state_is_refused(tmp_path, text):
    state = StateFile(tmp_path / "run.state", {})
    state.path.write_text(text)
    with pytest.raises(InputError, match="no state"):
        state.load()
