# SPDX-License-Identifier: Apache-2.0
"""The zip container: what torch writes passes, every departure is refused."""

import io
import os
import struct
import time
import zipfile

import pytest
import torch

from segship.errors import CheckpointError
from segship.ship.checkpoints import archive as module
from segship.ship.checkpoints.archive import check_crc, read_archive, read_pickle, require_little_endian
from tests.ship.checkpoints.containers import state_dict, tensor, write_archive

GOOD = state_dict(tensor())


def saved(contents=None):
    buffer = io.BytesIO()
    torch.save(contents if contents is not None else {"weight": torch.arange(6.0)}, buffer)
    return bytearray(buffer.getvalue())


def read(data):
    return read_archive(io.BytesIO(data), len(data))


def refuse(data, words, code="bad_container"):
    with pytest.raises(CheckpointError, match=words) as refusal:
        stream = io.BytesIO(data)
        found = read_archive(stream, len(data))
        require_little_endian(stream, found)
        read_pickle(stream, found)
    assert refusal.value.code == code


def zipped(names, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in names:
            archive.writestr(name, data)
    return bytearray(buffer.getvalue())


def central(data):
    return data.index(b"PK\1\2")


def test_members_of_torch_save_are_found_where_zipfile_finds_them():
    data = saved({"a": torch.arange(100.0), "b": torch.ones(3, dtype=torch.int64)})
    members = read(data).members
    with zipfile.ZipFile(io.BytesIO(data)) as expected:
        assert {name.partition("/")[2] for name in expected.namelist()} == set(members)
        for info in expected.infolist():
            member = members[info.filename.partition("/")[2]]
            assert data[member.start : member.start + member.bytes] == expected.read(info)
            check_crc(io.BytesIO(data), member)
    assert {key: size for key, (_, size) in read(data).storages.items()} == {"0": 400, "1": 24}


def test_the_root_folder_may_have_any_name(tmp_path):
    path = tmp_path / "größe 大.pth"
    torch.save({"weight": torch.ones(2)}, path)
    assert "data.pkl" in read(path.read_bytes()).members


def test_containers_without_zip64_records_are_read(tmp_path):
    path = write_archive(tmp_path / "small.pth", GOOD, {"data/0": bytes(16), "version": b"3\n"})
    stream = io.BytesIO(path.read_bytes())
    assert read_pickle(stream, read_archive(stream, path.stat().st_size)) == GOOD


def test_every_truncation_is_refused():
    data = saved()
    for size in range(0, len(data), 7):
        with pytest.raises(CheckpointError):
            read(data[:size])


def test_no_changed_byte_crashes_the_reader():
    data = saved()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0xFF
        try:
            stream = io.BytesIO(changed)
            found = read_archive(stream, len(changed))
            for member in found.members.values():
                check_crc(stream, member)
        except CheckpointError:
            continue
        # What is left are bytes that mean nothing: times, versions, padding.
        assert read_pickle(stream, found) == read_pickle(io.BytesIO(data), read(data))


def test_two_members_of_one_name_are_refused():
    with pytest.warns(UserWarning, match="Duplicate"):
        data = zipped([("a/data.pkl", GOOD), ("a/data.pkl", b"other")])
    refuse(data, "'a/data.pkl' stands in it 2 times")


def test_a_compressed_member_is_refused():
    refuse(zipped([("a/data.pkl", GOOD * 9)], compression=zipfile.ZIP_DEFLATED), "compressed")


@pytest.mark.parametrize("flag", [0x0001, 0x0040, 0x2000])
def test_encryption_flags_are_refused(flag):
    data = saved()
    struct.pack_into("<H", data, central(data) + 8, 0x0808 | flag)
    refuse(data, "encrypted")


@pytest.mark.parametrize("flag", [0x0002, 0x0020, 0x8000])
def test_other_flags_are_refused(flag):
    data = saved()
    struct.pack_into("<H", data, central(data) + 8, 0x0808 | flag)
    refuse(data, "strange flags")


def test_headers_that_disagree_are_refused():
    data = saved()
    data[30:32] = b"xx"
    refuse(data, "two headers of its member")


def test_a_wrong_crc_of_the_pickle_is_refused():
    data = saved()
    member = read(data).members["data.pkl"]
    data[member.start + 5] ^= 1
    refuse(data, "CRC of its member archive/data.pkl is wrong")


def test_bytes_before_or_behind_the_container_are_refused():
    refuse(b"MZ" * 50 + saved(), "end record")
    refuse(saved() + b"tail", "record")


def test_bytes_hidden_between_members_are_refused(tmp_path):
    path = write_archive(tmp_path / "x.pth", GOOD, {"data/0": bytes(4096)})
    data = bytearray(path.read_bytes())
    start = central(data)
    # The last member's central record claims that it is shorter, which leaves its end to nobody.
    last = data.rindex(b"PK\1\2")
    assert start < last
    struct.pack_into("<2L", data, last + 20, 16, 16)
    refuse(data, "hidden")


def test_members_that_overlap_are_refused(tmp_path):
    data = bytearray(write_archive(tmp_path / "x.pth", GOOD, {"data/0": bytes(64)}).read_bytes())
    struct.pack_into("<2L", data, central(data) + 20, len(GOOD) + 60, len(GOOD) + 60)
    refuse(data, "overlaps")


def test_an_archive_comment_is_refused(tmp_path):
    data = zipped([("a/data.pkl", GOOD)])
    struct.pack_into("<H", data, len(data) - 2, 4)
    refuse(data + b"note", "record")


def test_more_members_claimed_than_there_are_is_refused():
    data = zipped([("a/data.pkl", GOOD)])
    struct.pack_into("<2H", data, len(data) - 14, 2, 2)
    refuse(data, "record .* is missing")


def test_names_that_are_no_utf8_are_refused():
    data = zipped([("a/data.pkl", GOOD), ("a/data/xxxx", b"")])
    refuse(data.replace(b"xxxx", b"\xff\xfe\xff\xfe"), "not UTF-8")


@pytest.mark.parametrize("name", ["a/evil.py", "a/data/0/1", "a/../data/0", "a/data\\0"])
def test_members_that_no_checkpoint_has_are_refused(name):
    refuse(zipped([("a/data.pkl", GOOD), (name, b"")]), "none of a checkpoint")


@pytest.mark.parametrize("name", ["b/data/0", "b/data.pkl", "data.pkl"])
def test_a_second_root_folder_is_refused(name):
    refuse(zipped([("a/data.pkl", GOOD), (name, b"")]), "more than one root folder|none of a checkpoint")


def test_a_big_endian_checkpoint_is_refused():
    refuse(zipped([("a/data.pkl", GOOD), ("a/byteorder", b"big")]), "not little-endian")


def test_a_pickle_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_PICKLE_BYTES", len(GOOD) - 1)
    refuse(zipped([("a/data.pkl", GOOD)]), f"pickle has {len(GOOD)} bytes")


def test_a_directory_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_DIRECTORY_BYTES", 60)
    refuse(saved(), "directory has .* bytes")


def test_a_zip_of_something_else_is_no_checkpoint():
    refuse(zipped([("word/document.xml", b"<x/>")]), "without data.pkl", code="not_a_checkpoint")
    refuse(zipped([]), "without data.pkl", code="not_a_checkpoint")


def test_a_torchscript_archive_is_refused_by_name():
    data = zipped([("a/data.pkl", GOOD), ("a/code/__torch__.py", b""), ("a/constants.pkl", b"")])
    refuse(data, "TorchScript", code="torchscript")


@pytest.mark.parametrize("name", ["m/archive_format", "m/models/model.json", "m/serialized_exported_program.json"])
def test_a_torch_export_archive_is_refused_by_name(name):
    refuse(zipped([(name, b"pt2"), ("m/data.pkl", GOOD)]), "torch.export", code="torch_export")


def test_a_real_torch_export_archive_is_refused_by_name(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, tmp_path / "x.pt2")
    refuse((tmp_path / "x.pt2").read_bytes(), "torch.export", code="torch_export")


def test_zip64_sizes_are_read_past_four_gigabytes(tmp_path):
    path = tmp_path / "large.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", GOOD)
        with archive.open(zipfile.ZipInfo("a/data/0"), "w", force_zip64=True) as member:
            member.write(bytes(16))
    data = path.read_bytes()
    assert read(data).storages["0"][1] == 16
    # The same numbers, moved to the zip64 field as for a file that needs them there.
    at = data.rindex(b"PK\1\2")
    name_size = struct.unpack_from("<H", data, at + 28)[0]
    packed, plain = struct.unpack_from("<2L", data, at + 20)
    record = bytearray(data[at : at + 46 + name_size])
    struct.pack_into("<2L", record, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", record, 30, 20)
    extra = struct.pack("<2H2Q", 1, 16, plain, packed)
    end = bytearray(data[-22:])
    struct.pack_into("<L", end, 12, struct.unpack_from("<L", end, 12)[0] + 20)
    assert read(data[:at] + record + extra + end).storages["0"][1] == 16
    struct.pack_into("<H", record, 30, 4)
    struct.pack_into("<L", end, 12, struct.unpack_from("<L", end, 12)[0] - 16)
    refuse(data[:at] + record + struct.pack("<2H", 1, 0) + end, "zip64 size is missing")


def test_sixty_thousand_members_are_refused_in_time():
    data = zipped([("a/data.pkl", GOOD)] + [(f"a/data/{index}", b"") for index in range(30_000)])
    began = time.perf_counter()
    read(data)
    assert time.perf_counter() - began < 2


def test_random_bytes_are_refused():
    for size in (0, 1, 21, 22, 97, 98, 5000):
        with pytest.raises(CheckpointError):
            read(os.urandom(size))
