# SPDX-License-Identifier: Apache-2.0
"""Idle training is one group of processes at the lowest priority, and a pause leaves nothing of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes.tiny.idle import Idle

# With a child, as the training has.
SLEEPER = [sys.executable, "-c", "import os, time; os.fork(); time.sleep(60)"]


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Idle]:
    monkeypatch.delenv("CI", raising=False)
    idle = Idle(tmp_path / "runs")
    yield idle
    idle.pause()


def test_a_second_start_finds_the_first(idle: Idle) -> None:
    assert idle.group() is None
    group = idle.start(SLEEPER)
    assert idle.start(SLEEPER) == idle.group() == group == os.getpgid(group)


def test_it_has_the_lowest_priority(idle: Idle) -> None:
    group = idle.start(SLEEPER)
    assert os.getpriority(os.PRIO_PROCESS, group) == 19
    if hasattr(os, "SCHED_IDLE"):
        assert os.sched_getscheduler(group) == os.SCHED_IDLE


def test_a_pause_ends_it_and_a_start_goes_on(idle: Idle) -> None:
    first = idle.start(SLEEPER)
    assert idle.pause() and idle.group() is None and not idle.pause()
    assert idle.start(SLEEPER) != first


def test_a_number_left_by_a_crash_is_not_taken_for_a_run(idle: Idle) -> None:
    idle.runs.mkdir()
    idle.number.write_text(f"{os.getpid()}\n")
    assert not idle.pause()


def test_continuous_integration_is_refused(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit, match="CI is set"):
        idle.start(SLEEPER)
    assert idle.group() is None
