# SPDX-License-Identifier: Apache-2.0
import errno
import hashlib
import os
import threading

import pytest

import segship.files as files
from segship.errors import InputError, OutputError
from segship.files import atomic_file, open_regular, read_bytes, sha256_of, write_directory, write_file


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
    with pytest.raises(OutputError, match="exists; ask for it to be overwritten") as caught:
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


def test_failure_while_replacing_keeps_the_old_folder(tmp_path, monkeypatch):
    write_directory(tmp_path / "out", fill_two)
    rename = files._Directory.rename

    def fail(directory, old, new):
        if old.endswith(".partial") and new == "out" and "new" in names(tmp_path / old):
            raise OSError(errno.EIO, "Input/output error")
        rename(directory, old, new)

    monkeypatch.setattr(files._Directory, "rename", fail)
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
