# SPDX-License-Identifier: Apache-2.0
"""What the machine is, and worker processes: answers in order, bounded, and clear words when one dies."""

import json
import os

import pytest

from segship import machine
from segship.errors import BackendUnavailable, InputError
from segship.machine import count_workers, describe_machine, in_order, usable_cores

CPUINFO = """processor : 0
cpu family : 26
model : 2
model name : Some Processor
flags : fpu avx2 avx512_bf16

processor : 1
model name : Another
"""


def test_fields_come_from_the_systems_list(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    found = describe_machine()
    assert (found.cpu, found.cpu_family, found.cpu_model) == ("Some Processor", 26, 2)
    assert found.features == ("avx2", "avx512_bf16")
    assert "Some Processor (family 26, model 2)" in str(found)
    json.dumps(found.to_dict())


def test_a_system_without_the_list_is_described_too(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "none")
    found = describe_machine()
    assert found.cpu_family is None and found.features == () and found.usable_cores >= 1
    assert "family" not in str(found)


def tell_process(item):
    return item, os.getpid()


def die(item):
    os._exit(1)


@pytest.mark.parametrize("workers", [0, 2])
def test_answers_come_in_order_and_from_as_many_processes_as_were_asked_for(workers):
    answers = list(in_order(tell_process, range(9), workers))
    assert [item for item, _ in answers] == list(range(9))
    others = {process for _, process in answers} - {os.getpid()}
    assert len(others) <= workers and bool(others) == bool(workers)


def test_without_processes_nothing_is_done_ahead():
    asked = []
    answers = in_order(asked.append, range(9), 0)
    next(answers)
    assert asked == [0]


def test_a_process_that_ends_is_named():
    with pytest.raises(BackendUnavailable, match="fewer workers") as caught:
        list(in_order(die, range(3), 1))
    assert caught.value.code == "worker_died"


def test_numbers_of_workers(monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    assert count_workers(None, 100) == 4 and count_workers(None, 40) == 0
    assert count_workers(0, 100) == 0 and count_workers(6, 100) == 6 and count_workers(6, 2) == 2
    for cores, expected in ((100, 8), (1, 0)):
        monkeypatch.setattr(machine, "usable_cores", lambda cores=cores: cores)
        assert count_workers(None, 1000) == expected
    for asked in (-1, 65):
        with pytest.raises(InputError, match=f"workers is {asked}"):
            count_workers(asked, 10)


def test_usable_cores_follow_the_affinity(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert usable_cores() == 1
