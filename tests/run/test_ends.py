# SPDX-License-Identifier: Apache-2.0
"""Whatever ends a picture, a worker, a driver or a disk: each picture once, and the same bytes."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from segship.cli.main import EXIT_INTERRUPTED
from segship.errors import InputError, OutputError
from segship.run.ledger import Ledger
from segship.run.local import LocalExecutor
from segship.run.plan import make_plan
from segship.run.running import collect_garbage, read_starts, start, status, verify
from segship.run.storage import RealDisk, open_folder
from tests.run.runs import OPTIONS, PICTURES, picture, refused, tables
from tests.run.test_ledger import check, work

DRIVER = "import sys; from segship.run.running import start; start(sys.argv[1], workers=2)"


def drive(place, *command):
    command = command or ("-c", DRIVER)
    return subprocess.Popen(
        [sys.executable, *command, str(place)], start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(
    "workers, schedule, shuffled", [(2, "task", False), (3, "pipeline", True), (8, "serial", True)]
)
def test_one_root_whoever_works_and_in_any_order(source, by_stub, tmp_path, stub, workers, schedule, shuffled):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    executor, shards = LocalExecutor(workers, schedule), list(range(5))
    if shuffled:
        random.Random(workers).shuffle(shards)
    executor.run(str(tmp_path), shards, lambda shard: None)
    assert start(tmp_path).root == by_stub[0].root and tables(tmp_path) == by_stub[1]
    assert set(executor.occupancy.busy) == {"read", "look", "answer"}


@pytest.mark.parametrize("seed", range(3))
def test_kills_of_anything_at_any_time(source, by_stub, tmp_path, stub, seed):
    draw = random.Random(seed)
    make_plan(source, open_folder(tmp_path), OPTIONS)
    for _ in range(3):
        driver = drive(tmp_path)
        time.sleep(draw.uniform(0.2, 1.5))
        victim = draw.choice(["driver", "worker", "all"])
        workers = subprocess.run(["pgrep", "-P", str(driver.pid)], capture_output=True, text=True).stdout.split()
        if victim == "worker" and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(draw.choice(workers)), signal.SIGKILL)
            time.sleep(0.2)
        if victim == "driver":
            driver.kill()
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()
    done = start(tmp_path, workers=2)
    assert (done.done, done.quarantined) == (PICTURES, {})
    assert done.root == by_stub[0].root and tables(tmp_path) == by_stub[1]
    verify(tmp_path)


def test_two_drivers_at_once_make_one_set_of_commits(source, by_stub, tmp_path, stub):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    drivers = [drive(tmp_path) for _ in range(2)]
    for driver in drivers:
        driver.communicate(timeout=120)
    assert [driver.returncode for driver in drivers] == [0, 0]
    assert verify(tmp_path)["root"] == by_stub[0].root and tables(tmp_path) == by_stub[1]
    assert collect_garbage(tmp_path) == []


def with_one_more(source, folder, text):
    shutil.copytree(source, folder)
    (folder / "z.png").write_bytes(picture(99) + text)
    return folder


def quarantine_of(place):
    commits = [json.loads(path.read_bytes()) for path in (place / "commits").iterdir()]
    return [entry for commit in commits for entry in commit["quarantined"]]


@pytest.mark.parametrize("schedule", ["serial", "pipeline"])
def test_a_picture_that_kills_its_worker_is_left_out_alone(source, tmp_path, stub, schedule):
    make_plan(with_one_more(source, tmp_path / "source", b"deadly"), open_folder(tmp_path / "run"), OPTIONS)
    done = start(tmp_path / "run", workers=1, schedule=schedule)
    assert (done.done, done.quarantined) == (PICTURES, {"worker_died": 1})
    # Side by side the first death is nobody's: what was begun last need not be the one.
    notes = [json.loads(path.read_bytes())["item"] for path in sorted((tmp_path / "run" / "deaths").iterdir())]
    assert [note and note["name"] for note in notes] == [None] * (schedule == "pipeline") + ["z.png"] * 2
    verify(tmp_path / "run")
    (lost,) = quarantine_of(tmp_path / "run")
    assert (lost["name"], lost["attempts"]) == ("z.png", 2) and "SIGSEGV" in lost["message"]


@pytest.mark.parametrize("schedule", ["serial", "task"])
def test_a_picture_that_never_ends_is_left_out_alone(source, tmp_path, stub, schedule):
    make_plan(with_one_more(source, tmp_path / "source", b"endless"), open_folder(tmp_path / "run"), OPTIONS)
    done = start(tmp_path / "run", workers=1, schedule=schedule, item_timeout=1.5)
    assert (done.done, done.quarantined) == (PICTURES, {"timed_out": 1})
    (lost,) = quarantine_of(tmp_path / "run")
    assert (lost["name"], lost["attempts"], lost["message"]) == ("z.png", 2, "it took more than 1.5 seconds")
    verify(tmp_path / "run")


def test_too_much_in_quarantine_ends_a_run_early(source, tmp_path, stub):
    there = tmp_path / "source"
    shutil.copytree(source, there)
    for number in range(12):
        (there / f"bad{number}.png").write_bytes(b"no")
    run = tmp_path / "run"
    plan = make_plan(there, open_folder(run), OPTIONS)
    with pytest.raises(InputError) as caught:
        start(run, workers=1, max_quarantine=0.1)
    assert caught.value.code == "too_many_quarantined" and "unknown_format" in str(caught.value)
    assert "--max-quarantine allows 3" in caught.value.on_command_line
    stands = status(run)
    assert not stands.sealed and 3 < sum(stands.quarantined.values()) <= 3 + OPTIONS.shard_items
    assert stands.committed < plan.shards and stands.per_hour > 0 and stands.seconds_left > 0
    # As long as nobody says otherwise, at once.
    assert refused(InputError, start, run, max_quarantine=3) == "too_many_quarantined"
    assert status(run).committed == stands.committed
    assert start(run, workers=2, max_quarantine=12).quarantined == {"unknown_format": 12}
    assert [one["ended"] for one in read_starts(open_folder(run))] == ["too_many_quarantined", "done"]


@pytest.mark.parametrize(
    "options", [{"max_quarantine": -1}, {"max_quarantine": 2.5}, {"item_timeout": 0}, {"item_timeout": float("inf")}]
)
def test_bounds_that_cannot_be_are_refused(tmp_path, options):
    assert refused(InputError, start, tmp_path, **options) == "bad_option"


def test_an_interrupt_ends_a_run_in_seconds_and_it_goes_on(source, by_stub, tmp_path, stub):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    stub.setenv("SEGSHIP_STUB_SECONDS", "0.3")
    driver = drive(tmp_path, "-m", "segship", "run", "start", "--workers", "2")
    wait_for(lambda: (tmp_path / "commits").exists() and list((tmp_path / "commits").iterdir()))
    time.sleep(0.3)
    began = time.monotonic()
    # As a terminal does: to all of them.
    os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=30)
    assert driver.returncode == EXIT_INTERRUPTED and time.monotonic() - began < 5
    assert f"segship run start {tmp_path}" in said and "Traceback" not in said
    ledger = Ledger(open_folder(tmp_path), 5)
    state = ledger.state()
    assert 0 < len(state.committed) < 5 and not state.deaths
    for shard in state.committed:
        ledger.check(ledger.read_commit(shard))
    assert [one["ended"] for one in read_starts(open_folder(tmp_path))] == ["interrupted"]
    stub.setenv("SEGSHIP_STUB_SECONDS", "0")
    assert start(tmp_path, workers=2).root == by_stub[0].root and tables(tmp_path) == by_stub[1]


def test_a_second_interrupt_does_not_wait_for_a_commit(source, tmp_path, stub):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    stub.setenv("SEGSHIP_STUB_COMMIT", str(tmp_path / "committing"))
    driver = drive(tmp_path, "-m", "segship", "run", "start", "--workers", "1")
    wait_for((tmp_path / "committing").exists)
    os.killpg(driver.pid, signal.SIGINT)
    time.sleep(1.0)
    assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGINT)
    began = time.monotonic()
    driver.communicate(timeout=30)
    assert driver.returncode != 0 and time.monotonic() - began < 5
    assert status(tmp_path).committed == 0 and not (tmp_path / "deaths").exists()


@contextlib.contextmanager
def small_disk(place, kilobytes):
    """A file system in memory of its own size; only who may mount has one."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_full_anywhere_tears_nothing(tmp_path):
    full = 0
    with small_disk(tmp_path / "disk", 256) as place:
        # Files take 4 KiB each at least; with the least of free space nothing goes, with the most all.
        for free in range(0, 160, 4):
            (place / "ballast").write_bytes(bytes((256 - free) * 1024))
            run = place / "run"
            try:
                work(RealDisk(run))
            except OutputError as error:
                assert error.code == "no_space"
                full += 1
            check(RealDisk(run))
            (place / "ballast").unlink()
            work(RealDisk(run))
            assert len(check(RealDisk(run)).committed) == 4 and open_folder(run).names("tmp") == []
            shutil.rmtree(run)
    assert 5 < full < 40


def test_a_full_disk_stops_a_run_that_goes_on_later(source, by_stub, tmp_path, stub):
    with small_disk(tmp_path / "disk", 88) as place:
        run = place / "run"
        make_plan(source, open_folder(run), OPTIONS)
        command = [sys.executable, "-m", "segship", "run", "start", str(run), "--workers", "1", "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 6 and json.loads(done.stdout)["error"]["code"] == "no_space", done.stderr
        assert "nothing is lost" in done.stderr
        check_of = Ledger(open_folder(run), 5)
        committed = check_of.state().committed
        assert len(committed) < 5 and open_folder(run).names("tmp") == []
        for shard in committed:
            check_of.check(check_of.read_commit(shard))
        subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
        assert start(run, workers=2).root == by_stub[0].root and tables(run) == by_stub[1]
