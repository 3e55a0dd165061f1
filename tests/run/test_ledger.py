# SPDX-License-Identifier: Apache-2.0
"""The ledger: whatever ends a driver, and wherever, what is committed is whole, and everything gets done once."""

import errno
import hashlib
import json
import os

import pytest

from segship.errors import BackendUnavailable, BundleError, OutputError
from segship.run.ledger import Commit, Ledger, Quarantined, merkle_root
from segship.run.storage import DiskFolder, RealDisk, open_folder
from tests.run.disks import FailingDisk, Killed, LossyDisk, draw_from

SHARDS = 4


def table(shard):
    return f"table of {shard} ".encode() * (10 + shard)


def work(disk):
    """What a driver does with shards whose work is trivial, from wherever the run stands."""
    ledger = Ledger(DiskFolder(disk), SHARDS)
    for shard in ledger.state().open:
        ledger.begin(shard)
        lost = [Quarantined("q", "name", "truncated", "it ends early")] if shard == 2 else []
        ledger.commit(shard, table(shard), shard, [f"item {shard}"], lost)
    return ledger.seal("fingerprint")


def check(disk):
    """What must hold at any moment: commits are readable, and their tables are theirs."""
    ledger = Ledger(DiskFolder(disk), SHARDS)
    state = ledger.state()
    for shard in state.committed:
        assert ledger.check(ledger.read_commit(shard)) == table(shard)
    return state


@pytest.fixture(scope="module")
def expected():
    return work(LossyDisk())


def operations():
    disk = FailingDisk(LossyDisk())
    work(disk)
    return disk.count


HOW = ("kill before", "kill after", "no space", "broken")


@pytest.mark.parametrize("how", HOW)
def test_every_point_at_which_a_driver_can_end(how, expected):
    for at in range(operations()):
        disk = LossyDisk()
        try:
            assert work(FailingDisk(disk, at, how)) == expected
        except (Killed, OutputError) as error:
            assert not isinstance(error, OutputError) or error.code == (
                "no_space" if how == "no space" else "cannot_write"
            )
        check(disk)
        assert work(disk) == expected
        check(disk)


@pytest.mark.parametrize("seed", range(int(os.environ.get("SEGSHIP_POWER_SEEDS", "50"))))
def test_loss_of_power_at_any_moment(seed, expected):
    draw, disk = draw_from(seed), LossyDisk()
    for _ in range(draw.randint(1, 4)):
        try:
            work(FailingDisk(disk, draw.randrange(operations()), draw.choice(HOW[:2])))
        except Killed:
            pass
        disk.lose_power(draw)
        check(disk)
    assert work(disk) == expected
    disk.lose_power(draw)
    # What was sealed is certain.
    assert len(check(disk).committed) == SHARDS
    assert json.loads(disk.read("manifest.json")) == expected


def test_a_disk_that_does_not_sync_is_found_out(expected):
    """The proof of the proof: without syncs commits point at torn tables."""

    class Lazy(LossyDisk):
        def sync(self, name):
            pass

    found = 0
    for seed in range(200):
        draw, disk = draw_from(seed), Lazy()
        try:
            work(FailingDisk(disk, draw.randrange(operations()), "kill before"))
        except Killed:
            pass
        disk.lose_power(draw)
        try:
            check(disk)
        except BundleError:
            found += 1
    assert found > 20


def test_of_two_commits_the_first_holds(tmp_path):
    ledger = Ledger(open_folder(tmp_path), 1)
    first = ledger.commit(0, b"abc", 1, ["a"], [])
    assert ledger.commit(0, b"abc", 1, ["a"], []) == first
    with pytest.raises(BackendUnavailable) as caught:
        ledger.commit(0, b"xyz", 1, ["a"], [])
    assert caught.value.code == "not_deterministic"
    assert [path.name for path in (tmp_path / "data").iterdir()] == [first.file.removeprefix("data/")]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_driver_whose_lease_ran_out_before_it_published_changes_nothing(expected):
    """It sleeps until others have done all, and what it had written was taken for nobody's."""

    class Late(LossyDisk):
        def rename(self, name, target):
            self.rename = super().rename
            assert work(self) == expected
            self.remove(name)
            raise FileNotFoundError(errno.ENOENT, f"no such file: {name}")

    disk = Late()
    with pytest.raises(OutputError) as caught:
        work(disk)
    assert caught.value.code == "cannot_write" and len(check(disk).committed) == SHARDS
    assert work(disk) == expected and len(DiskFolder(disk).names("data")) == SHARDS


def test_attempts_and_deaths_are_counted(tmp_path):
    ledger = Ledger(open_folder(tmp_path), 3)
    assert [ledger.begin(1), ledger.begin(1), ledger.begin(2)] == [1, 2, 1]
    ledger.note_death(1, 2, {"signal": 9})
    state = ledger.state()
    assert state.attempts == {1: 2, 2: 1} and state.deaths == {1: 1} and state.open == [0, 1, 2]
    ledger.commit(1, b"", 0, [], [])
    assert ledger.state().open == [0, 2]
    with pytest.raises(BundleError, match="2 of 3 shards"):
        ledger.seal("f")


def test_a_table_that_was_changed_is_told(tmp_path):
    ledger = Ledger(open_folder(tmp_path), 1)
    commit = ledger.commit(0, b"abc", 1, ["a"], [])
    assert ledger.check(commit) == b"abc"
    (tmp_path / commit.file).write_bytes(b"abd")
    with pytest.raises(BundleError):
        ledger.check(commit)
    (tmp_path / commit.file).unlink()
    with pytest.raises(BundleError):
        ledger.check(commit)


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"shard": 0}', b"\xff"])
def test_what_is_no_commit_is_refused(data):
    with pytest.raises(BundleError) as caught:
        Commit.from_bytes(data, "commits/00000000.json")
    assert caught.value.code == "bad_commit"


def test_garbage_goes_only_when_all_is_sealed(tmp_path):
    ledger = Ledger(open_folder(tmp_path), 1)
    ledger.commit(0, b"abc", 1, ["a"], [])
    (tmp_path / "data" / "part-00000000-0000.parquet").write_bytes(b"of a loser")
    assert ledger.garbage() == []
    ledger.seal("f")
    assert ledger.garbage() == ["data/part-00000000-0000.parquet"]


def test_folders_are_made_and_errors_are_told(tmp_path):
    disk = RealDisk(tmp_path)
    folder = DiskFolder(disk)
    assert folder.create("a/b/c", b"1") and not folder.create("a/b/c", b"2")
    assert folder.read("a/b/c") == b"1" and folder.names("a/b") == ["c"] and folder.exists("a/b/c")
    assert folder.names("nowhere") == [] and not folder.exists("nowhere/x")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError) as caught:
        folder.create("file/x", b"")
    assert caught.value.code == "cannot_write" and "file/x" in str(caught.value)


def test_roots_are_those_of_the_rfc():
    leaf = [hashlib.sha256(bytes([number])).digest() for number in range(5)]

    def inner(left, right):
        return hashlib.sha256(b"\x01" + left + right).digest()

    hashed = [hashlib.sha256(b"\x00" + one).digest() for one in leaf]
    four = inner(inner(hashed[0], hashed[1]), inner(hashed[2], hashed[3]))
    assert merkle_root(leaf) == inner(four, hashed[4]).hex()
    assert merkle_root(leaf[:1]) == hashed[0].hex()
    assert merkle_root(leaf) != merkle_root(leaf[::-1])
