# SPDX-License-Identifier: Apache-2.0
"""The lock between processes."""

import os
import subprocess
import sys
import threading
import time

from segship.fetch.download import exclusive_lock

HOLD = """
import sys, time
from pathlib import Path
from segship.fetch.download import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=10)


def test_one_thread_at_a_time_holds_it(tmp_path):
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(3):
            with exclusive_lock(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.01)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not (tmp_path / "lock").exists()


def test_another_process_waits_for_it(tmp_path):
    process = holder(tmp_path / "lock")
    taken = threading.Event()

    def wait():
        with exclusive_lock(tmp_path / "lock"):
            taken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not taken.wait(0.3)
    end(process)
    assert taken.wait(5)
    thread.join()


def test_a_killed_holder_leaves_no_lock(tmp_path):
    process = holder(tmp_path / "lock")
    process.kill()
    end(process)
    began = time.perf_counter()
    with exclusive_lock(tmp_path / "lock"):
        assert time.perf_counter() - began < 1


def test_a_planted_link_is_not_followed(tmp_path):
    os.symlink(tmp_path / "elsewhere", tmp_path / "lock")
    try:
        with exclusive_lock(tmp_path / "lock"):
            raise AssertionError("the lock was taken through a link")
    except OSError:
        assert not (tmp_path / "elsewhere").exists()
