# SPDX-License-Identifier: Apache-2.0
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

import segship.files as files
from segship.errors import InputError, OutputError
from segship.files import (
    atomic_file,
    open_regular,
    read_bytes,
    sha256_of,
    tidy_directory,
    write_directory,
    write_file,
    write_together,
)
from tests.kills import each_kill, forks, in_child, make_old


def fill_two(folder):
    (folder / "a").write_bytes(b"1")
    (folder / "sub").mkdir()
    (folder / "sub" / "b").write_bytes(b"2")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_whole_under_its_name_alone(tmp_path):
    write_file(tmp_path / "out", [b"ab", b"c"])
    assert (tmp_path / "out").read_bytes() == b"abc"
    assert names(tmp_path) == ["out"]


def test_file_is_invisible_until_the_block_ends(tmp_path):
    with atomic_file(tmp_path / "out") as stream:
        stream.write(b"abc")
        stream.flush()
        assert "out" not in names(tmp_path)
    assert names(tmp_path) == ["out"]


def test_failure_inside_the_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), atomic_file(tmp_path / "out") as stream:
        stream.write(b"half")
        raise KeyError("stop")
    assert names(tmp_path) == []


def test_failure_keeps_the_old_file(tmp_path):
    write_file(tmp_path / "out", b"old")
    with pytest.raises(KeyError), atomic_file(tmp_path / "out", overwrite=True) as stream:
        stream.write(b"half")
        raise KeyError("stop")
    assert (tmp_path / "out").read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_existing_file_is_replaced_only_on_request(tmp_path):
    write_file(tmp_path / "out", b"old")
    with pytest.raises(OutputError, match="exists; replace it with overwrite=True") as caught:
        write_file(tmp_path / "out", b"new")
    assert caught.value.code == "output_exists"
    write_file(tmp_path / "out", b"new", overwrite=True)
    assert (tmp_path / "out").read_bytes() == b"new"


@pytest.mark.parametrize("overwrite", [False, True])
def test_link_at_the_target_is_never_followed(tmp_path, overwrite):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out").symlink_to("precious")
    with pytest.raises(OutputError, match="is a link, and links are not written through") as caught:
        write_file(tmp_path / "out", b"new", overwrite=overwrite)
    assert caught.value.code == "output_is_link"
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_link_to_nothing_is_refused_too(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a link"):
        write_file(tmp_path / "out", b"new", overwrite=True)
    assert not (tmp_path / "elsewhere").exists()


def test_hard_link_at_the_target_keeps_its_other_name(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    os.link(tmp_path / "precious", tmp_path / "out")
    write_file(tmp_path / "out", b"new", overwrite=True)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_link_planted_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / ".out.guessed.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="cannot write"):
        write_file(tmp_path / "out", b"new")
    assert not (tmp_path / "precious").exists()


def test_file_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(OutputError, match="exists"), atomic_file(tmp_path / "out") as stream:
        stream.write(b"late")
        (tmp_path / "out").write_bytes(b"early")
    assert (tmp_path / "out").read_bytes() == b"early"
    assert names(tmp_path) == ["out"]


def test_file_system_without_hard_links_is_served(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "out", b"abc")
    assert names(tmp_path) == ["out"]


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="is a folder or a special file") as caught:
        write_file(tmp_path / "out", b"", overwrite=True)
    assert caught.value.code == "output_wrong_kind"


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(OutputError, match="there is no directory .*absent; make it first") as caught:
        write_file(tmp_path / "absent" / "out", b"")
    assert caught.value.code == "output_directory_missing"


@pytest.mark.parametrize("path", ["", "..", "a/..", "a\0b"])
def test_path_without_a_name_is_refused(path):
    with pytest.raises(OutputError, match="does not name a file or folder"):
        write_file(path, b"")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_names_that_no_file_system_takes_are_refused_at_every_door(tmp_path, name):
    path = tmp_path / name
    for write in (
        lambda: write_file(path, b""),
        lambda: write_file(path / "file", b""),
        lambda: write_directory(path, fill_two),
        lambda: write_together(tmp_path, {"fine": b"", name: b""}),
        lambda: files.check_target(path),
        lambda: files.make_directory(path),
    ):
        with pytest.raises(OutputError, match="cannot (write|make)") as caught:
            write()
        assert caught.value.code == "cannot_write"
    for read in (open_regular, sha256_of, lambda path: read_bytes(path, limit=1)):
        with pytest.raises(InputError, match="none can be called so") as caught:
            read(path)
        assert caught.value.code == "file_missing"
    assert tidy_directory(path) == [] and names(tmp_path) == []


def test_name_that_is_too_long_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="File name too long") as caught:
        write_together(tmp_path, {"fine": b"", "x" * 256: b""})
    assert caught.value.code == "cannot_write" and names(tmp_path) == []
    assert tidy_directory(tmp_path / ("x" * 256)) == []


def test_full_disk_says_so(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; free some space") as caught:
        write_file(tmp_path / "out", b"abc")
    assert caught.value.code == "disk_full"
    assert names(tmp_path) == []


def test_directory_that_forbids_writing_is_explained(tmp_path, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files._Directory, "open", forbidden)
    with pytest.raises(OutputError, match="Permission denied; choose another place") as caught:
        write_file(tmp_path / "out", b"abc")
    assert caught.value.code == "cannot_write"


def test_name_of_full_length_can_be_written(tmp_path):
    write_file(tmp_path / ("ä" * 127), b"abc")
    assert names(tmp_path) == ["ä" * 127]


def test_folder_appears_whole(tmp_path):
    write_directory(tmp_path / "out", fill_two)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "sub" / "b").read_bytes() == b"2"


def test_failure_while_filling_leaves_nothing(tmp_path):
    def fail(folder):
        fill_two(folder)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        write_directory(tmp_path / "out", fail)
    assert names(tmp_path) == []


def test_folder_is_replaced_only_on_request(tmp_path):
    write_directory(tmp_path / "out", fill_two)
    with pytest.raises(OutputError, match="exists"):
        write_directory(tmp_path / "out", fill_two)
    write_directory(tmp_path / "out", lambda folder: (folder / "new").touch(), overwrite=True)
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.fixture(params=[True, False], ids=["exchange", "renames"])
def has_exchange(request, monkeypatch):
    """The system has renameat2, or is one that has not."""
    if not request.param:
        monkeypatch.setattr(files, "_renameat2", lambda: None)
    elif files._renameat2() is None:
        pytest.skip("this system has no renameat2")
    return request.param


def test_failure_while_replacing_keeps_the_old_folder(tmp_path, monkeypatch, has_exchange):
    write_directory(tmp_path / "out", fill_two)
    place = "exchange" if has_exchange else "rename_new"
    real = getattr(files._Directory, place)

    def fail(directory, old, new):
        if new == "out":
            raise OSError(errno.EIO, "Input/output error")
        return real(directory, old, new)

    monkeypatch.setattr(files._Directory, place, fail)
    with pytest.raises(OutputError, match="Input/output error"):
        write_directory(tmp_path / "out", lambda folder: (folder / "new").touch(), overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a", "sub"]


def test_link_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    with pytest.raises(OutputError, match="is a link"):
        write_directory(tmp_path / "out", fill_two, overwrite=True)
    assert names(tmp_path / "real") == []


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="is a file"):
        write_directory(tmp_path / "out", fill_two, overwrite=True)


@pytest.mark.parametrize("target", [".", "absent"])
def test_link_inside_a_filled_folder_is_refused(tmp_path, target):
    with pytest.raises(InputError, match="is a link"):
        write_directory(tmp_path / "out", lambda folder: (folder / "a").symlink_to(target))
    assert names(tmp_path) == []


def test_works_without_directory_descriptors(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_HAS_DIRECTORY_DESCRIPTORS", False)
    write_file(tmp_path / "file", b"abc")
    write_directory(tmp_path / "folder", fill_two)
    assert names(tmp_path) == ["file", "folder"]


def as_version(version):
    """Three files and a folder that say which version they are, as one run writes them."""

    def fill(folder):
        (folder / "0.png").write_text(version)
        (folder / "metadata.csv").write_text(version)

    return {"a.jpg": version.encode(), "a.json": version.encode(), "a.masks": fill, "a.npz": version.encode() * 1000}


def versions(folder):
    """The version of every file that is in place."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_text()[:3] for name, path in found.items() if not name.parts[0].startswith(".")}


WHOLE = {"a.jpg", "a.json", "a.masks/0.png", "a.masks/metadata.csv", "a.npz"}


@forks
@pytest.mark.parametrize("replaces", [True, False])
def test_files_killed_at_any_step_are_of_one_version_and_the_next_run_finishes_them(
    tmp_path, monkeypatch, has_exchange, replaces
):
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    out = tmp_path / "out"
    old = dict.fromkeys([*WHOLE, "a.mask7.png"], "old") if replaces else {}
    new = dict.fromkeys(WHOLE, "new")

    def start_again():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if replaces:
            write_together(out, {**as_version("old"), "a.mask7.png": b"old"})

    start_again()
    ends, halves = [], 0
    gone = ["a.mask7.png"] if replaces else []
    for step in each_kill(lambda: write_together(out, as_version("new"), overwrite=replaces, gone=gone)):
        found = versions(out)
        assert len(set(found.values())) <= 1, f"new beside old at step {step}: {found}"
        halves += found not in (old, new)
        tidy_directory(out)
        found = versions(out)
        assert found in (old, new), f"half at step {step}"
        ends.append(found == new)
        make_old(out)
        tidy_directory(out)
        assert not list(out.glob(".*")), f"left at step {step}"
        start_again()
    assert ends == sorted(ends) and set(ends) == {False, True}, "from some step on it is the new one, and not before"
    assert halves >= 3, "it was never killed between two files"
    assert versions(out) == new


@forks
def test_folder_killed_at_any_step_of_its_replacement_is_there(tmp_path, monkeypatch, has_exchange):
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    target = tmp_path / "bundle"
    seen = set()
    write_directory(target, lambda folder: (folder / "which").write_text("old"))
    for step in each_kill(
        lambda: write_directory(target, lambda folder: (folder / "which").write_text("new"), overwrite=True)
    ):
        if has_exchange:
            assert (target / "which").exists(), f"lost at step {step}, before anything mended it"
        # What a next run does first.
        files.check_target(target, overwrite=True, folder=True)
        seen.add((target / "which").read_text())
        make_old(tmp_path)
        tidy_directory(tmp_path)
        assert names(tmp_path) == ["bundle"]
        write_directory(target, lambda folder: (folder / "which").write_text("old"), overwrite=True)
    assert seen == {"old", "new"}
    assert (target / "which").read_text() == "new"


@forks
def test_fifty_kills_under_overwrite_leave_no_new_file_beside_an_old_one(tmp_path):
    def write_on():
        for version in range(100, 10_000):
            write_together(tmp_path, as_version(str(version)), overwrite=True)

    chance = random.Random(0)
    for _ in range(50):
        child = in_child(write_on)
        time.sleep(chance.uniform(0.005, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(set(versions(tmp_path).values())) <= 1
        tidy_directory(tmp_path)
        assert len(set(versions(tmp_path).values())) <= 1 and set(versions(tmp_path)) in (set(), WHOLE)


@forks
@pytest.mark.parametrize("has_locks", [True, False])
def test_two_processes_never_mix_their_files(tmp_path, monkeypatch, has_exchange, has_locks):
    if not has_locks:
        monkeypatch.setattr(files, "fcntl", None)

    def write_as(version):
        for _ in range(10):
            write_together(tmp_path, as_version(version), overwrite=True)

    for _ in range(5):
        children = [in_child(lambda version=version: write_as(version)) for version in ("one", "two", "six")]
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert len(set(versions(tmp_path).values())) == 1 and set(versions(tmp_path)) == WHOLE
        assert not list(tmp_path.glob(".*"))


@forks
def test_of_two_processes_that_may_not_replace_one_writes_all_and_the_other_nothing(tmp_path):
    def write_as(version):
        try:
            write_together(tmp_path, as_version(version))
        except OutputError as error:
            os._exit(0 if error.code == "output_exists" else 3)
        os._exit(7)

    for _ in range(10):
        children = [in_child(lambda version=version: write_as(version)) for version in ("one", "two")]
        assert sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children) == [0, 7]
        assert len(set(versions(tmp_path).values())) == 1 and set(versions(tmp_path)) == WHOLE
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_error_between_two_files_takes_all_back(tmp_path, monkeypatch, overwrite):
    if overwrite:
        write_together(tmp_path, as_version("old"))
    before = versions(tmp_path)
    real = files._Directory.rename_new

    def fail(directory, old, new):
        if new == "a.masks":
            raise OSError(errno.EIO, "Input/output error")
        real(directory, old, new)

    monkeypatch.setattr(files._Directory, "rename_new", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        write_together(tmp_path, as_version("new"), overwrite=overwrite)
    assert versions(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_file_that_comes_in_between_is_kept_and_all_is_taken_back(tmp_path, monkeypatch):
    real = files._Directory.sync

    def intrude(directory):
        (tmp_path / "a.masks").write_text("mine")
        real(directory)

    monkeypatch.setattr(files._Directory, "sync", intrude)
    with pytest.raises(OutputError, match=r"a\.masks exists") as caught:
        write_together(tmp_path, as_version("new"))
    assert caught.value.code == "output_exists"
    assert versions(tmp_path) == {"a.masks": "min"} and not list(tmp_path.glob(".*"))


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="only root may mount a small disk")
def test_full_disk_leaves_none_of_the_files(tmp_path):
    script = """
import sys
from pathlib import Path
from segship.errors import OutputError
from segship.files import write_together
out = Path(sys.argv[1])
for sizes in ((100, 100, 300_000), (300_000, 100, 100)):
    try:
        write_together(out, {f"a{index}": b"new" * size for index, size in enumerate(sizes)}, overwrite=True)
    except OutputError as error:
        print(error.code, sorted(path.name for path in out.iterdir()), (out / "a0").read_text())
"""
    mount = f"mount -t tmpfs -o size=256k tmpfs {tmp_path}"
    command = f"{mount} && echo old > {tmp_path}/a0 && {sys.executable} -c '{script}' {tmp_path}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout == "disk_full ['a0'] old\n\n" * 2, done.stderr


def test_file_in_the_way_of_what_was_killed_is_named_and_kept(tmp_path):
    left = tmp_path / files.PUBLISHING / "new"
    left.mkdir(parents=True)
    (left / "a.json").write_text("new")
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(OutputError, match=r"a\.json came in the way of a run that was killed; move it away") as caught:
        write_together(tmp_path, {"b": b""})
    assert caught.value.code == "output_exists" and (tmp_path / "a.json").read_text() == "mine"
    (tmp_path / "a.json").unlink()
    assert tidy_directory(tmp_path) == [f"{tmp_path}: files that a killed run had half put in place are in place now"]
    assert (tmp_path / "a.json").read_text() == "new"


def test_planted_folder_of_what_is_to_be_put_in_place_is_not_followed(tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / files.PUBLISHING).symlink_to(elsewhere)
    with pytest.raises(OutputError, match="is not of this user"):
        write_together(out, {"a": b"", "b": b""})
    (out / files.PUBLISHING).unlink()
    (out / files.PUBLISHING).mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(OutputError, match="is not of this user"):
        tidy_directory(out)
    assert names(out) == [files.PUBLISHING]


def test_partials_are_told_and_removed_after_a_day(tmp_path):
    young, old = tmp_path / f".a.{'0' * 16}.partial", tmp_path / f".b.{'f' * 16}.partial"
    for folder in (young, old):
        folder.mkdir()
        (folder / "file").touch()
    (tmp_path / ".mine.partial").touch()
    (tmp_path / f".c.{'1' * 16}.partial").touch()
    for path in (old / "file", old, young):
        os.utime(path, (time.time() - 25 * 3600,) * 2)
    young_one, removed, file = tidy_directory(tmp_path)
    assert young_one == f"{young} is of a run that was killed or still writes; it is removed when a day old"
    assert removed == f"{old} was removed, which a killed run left 25 hours ago" and ".c." in file
    assert names(tmp_path) == [young.name, f".c.{'1' * 16}.partial", ".mine.partial"]
    assert tidy_directory(tmp_path / "absent") == []


def test_fifo_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    raised = []

    def read():
        with pytest.raises(InputError, match="not a regular file") as caught:
            open_regular(tmp_path / "pipe")
        raised.append(caught.value.code)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(5)
    assert raised == ["file_wrong_kind"]


def test_reader_refuses_what_is_no_plain_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(InputError, match="link is a link; name the real file"):
        open_regular(tmp_path / "link")
    with pytest.raises(InputError, match="not a regular file"):
        open_regular(tmp_path)
    with pytest.raises(InputError, match="there is no file"):
        open_regular(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot read"):
        open_regular(tmp_path / "file" / "below")


def test_reader_stops_at_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert read_bytes(tmp_path / "file", limit=3) == b"abc"
    with pytest.raises(InputError, match="has 3 bytes, and at most 2 are read") as caught:
        read_bytes(tmp_path / "file", limit=2)
    assert caught.value.code == "file_too_large"


def test_sha256_is_that_of_the_bytes(tmp_path):
    data = os.urandom(3 * files.CHUNK_BYTES + 17)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()
