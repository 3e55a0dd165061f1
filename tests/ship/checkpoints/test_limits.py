# SPDX-License-Identifier: Apache-2.0
"""Files that were made to unfold: refused soon, in little memory and few words, by a process of its own."""

import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from segship.errors import CheckpointError
from segship.machine import _LIMITED
from segship.ship.checkpoints import survey as module
from segship.ship.checkpoints.survey import survey_checkpoint
from segship.ship.graph.wire import varint
from tests.ship.checkpoints.containers import state_dict, tensor, text, write_archive

MOST_BYTES, MOST_SECONDS, LONGEST_MESSAGE = 200e6, 2.0, 1200
PICKLE = b"\x80\x02"


def long_number(value):
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(raw)) + raw


def ordered_dicts(copied, times):
    return PICKLE + copied + b"q\x00ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * times + b"."


def used_as_key(key):
    return PICKLE + key + b"q\x00}q\x01" + b"h\x01h\x00K\x01s0" * 80_000 + b"."


def items(count=20_000):
    return [text(f"k{index}") + b"K\x00" for index in range(count)]


def keys():
    return [text(f"k{index}") + b"h\x00" for index in range(60_000)]


# Each is made for its own test: all of them take seconds and a hundred megabytes.
PICKLES = {
    "copies of a dict": lambda: ordered_dicts(b"}(" + b"".join(items()) + b"u", 5000),
    "copies of a list of pairs": lambda: ordered_dicts(
        b"](" + b"".join(item + b"\x86" for item in items()) + b"e", 5000
    ),
    "copies of a small dict": lambda: ordered_dicts(b"}(" + b"".join(items(40)) + b"u", 120_000),
    "tuples in tuples": lambda: PICKLE + b")" + b"\x85" * 450_000 + b".",
    "a long number as a key": lambda: used_as_key(long_number(2 ** (8 * 3_000_000) - 1)),
    "a long tuple as a key": lambda: used_as_key(b"(" + b"K\x01" * 100_000 + b"t"),
    "a dict in another many times": lambda: (
        PICKLE + b"}(" + b"".join(items()) + b"uq\x000}(" + b"".join(keys()) + b"u."
    ),
    "small dicts": lambda: PICKLE + b"(" + b"}K\x01K\x01s" * 120_000 + b"t.",
    "ordered dicts": lambda: PICKLE + b"ccollections\nOrderedDict\nq\x010(" + b"h\x01)R" * 160_000 + b"t.",
    "opaque values": lambda: PICKLE + b"cargparse\nNamespace\nq\x010(" + b"h\x01)\x81" * 160_000 + b"t.",
    "many tensors": lambda: PICKLE + b"(" + tensor((0,), (1,), 0, 4) * 4_000 + b"t.",
    "a name of megabytes": lambda: state_dict(tensor(), "x" * 3_900_000),
    "a global of megabytes": lambda: PICKLE + b"c" + b"a" * 1_900_000 + b"\n" + b"b" * 1_900_000 + b"\n.",
    "a storage of megabytes": lambda: state_dict(tensor(key="s" * 3_900_000)),
    "a key of 10^6000": lambda: PICKLE + b"}" + long_number(10**6000) + b"K\x01s.",
    "a place of 4,200 digits": lambda: PICKLE + b"g" + b"9" * 4200 + b"\n.",
}


def tensors(count):
    header = {f"a{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(count)}
    return json.dumps(header, separators=(",", ":")).encode()


def entry(shape=b"2", begin=b"0", end=b"8", name=b"x"):
    rest = b'"shape": [' + shape + b'], "data_offsets": [' + begin + b", " + end + b"]}}"
    return b'{"' + name + b'": {"dtype": "F32", ' + rest


HEADERS = {
    "110,000 empty tensors": lambda: tensors(110_000),
    "lists": lambda: b'{"a":[' + b"[]," * 2_700_000 + b"[]]}",
    "pairs": lambda: b'{"a":{' + b",".join(b'"%x":1' % index for index in range(750_000)) + b"}}",
    "a header of one name": lambda: b'{"' + b"x" * 6_000_000 + b'":7}',
    "offsets of 4,300 digits": lambda: entry(begin=b"-" + b"9" * 4300, end=b"9" * 4300),
    "a shape of 4,300 digits": lambda: entry(shape=b"9" * 4300),
    "half a character": lambda: entry(name=b"image_encoder.\\ud800"),
}


def ckpt_entry(name, shape=b"\x08\x00"):
    tensor = shape + b"\x12\x07Float32\x1a\x00"
    content = b"\x0a" + varint(len(name)) + name + b"\x12" + varint(len(tensor)) + tensor
    return b"\x0a" + varint(len(content)) + content


CKPTS = {
    "entries of one name": lambda: ckpt_entry(b"x") * 500_000,
    "entries of many names": lambda: b"".join(ckpt_entry(b"%x" % index) for index in range(300_000)),
    "an entry of a long name": lambda: ckpt_entry(b"x" * 6_000_000),
    "an entry of many axes": lambda: ckpt_entry(b"x", b"\x08\x01" * 2_000_000),
    "long names of entries": lambda: b"".join(ckpt_entry(b"%x" % index * 700) for index in range(30_000)),
}


def write(folder, kind):
    if kind in CKPTS:
        (folder / "model.ckpt").write_bytes(CKPTS[kind]())
        return folder / "model.ckpt"
    if kind == "zip64":
        with zipfile.ZipFile(folder / "model.pth", "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02}.")
            for index in range(62):
                member = zipfile.ZipInfo(f"archive/data/{index}")
                member.extra = struct.pack("<HH", 9, 0) * 16_374
                archive.writestr(member, b"")
        return folder / "model.pth"
    if kind in HEADERS:
        path = folder / "model.safetensors"
        header = HEADERS[kind]()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        return path
    return write_archive(folder / "model.pth", PICKLES[kind](), {"data/0": bytes(16)})


MEASURE = """
import time
# Of the processes' table: the resource module counts what the process that started this one held.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, time.process_time(), file=sys.stderr)
"""


@pytest.mark.parametrize("kind", [*PICKLES, *HEADERS, *CKPTS, "zip64"])
def test_a_file_that_unfolds_is_refused_within_200_megabytes_and_2_seconds(tmp_path, kind):
    path = write(tmp_path, kind)
    arguments = [
        str(Path(module.__file__).parents[2]),
        f"{module.__name__}:survey_as_json",
        str(path),
        "1000000000",
        "9",
    ]
    command = [sys.executable, "-I", "-S", "-c", _LIMITED + MEASURE, *arguments]
    done = subprocess.run(command, capture_output=True, check=True)
    found, (memory, seconds) = done.stdout, map(float, done.stderr.split())
    document = json.loads(found)
    assert memory < MOST_BYTES and seconds < MOST_SECONDS
    assert "error" in document and len(document["error"]) < LONGEST_MESSAGE + len(str(path))
    with pytest.raises(CheckpointError) as refusal:
        survey_checkpoint(path)
    assert (str(refusal.value), refusal.value.code) == (document["error"], document["code"])


def test_an_ordinary_file_is_read_apart_in_half_a_second(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pth")
    survey_checkpoint(tmp_path / "model.pth")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    survey_checkpoint(tmp_path / "model.pth")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("limit", ["MOST_MEMORY", "LEAST_SECONDS"])
def test_the_process_that_reads_is_stopped_at_its_limits(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(module, limit, 24 << 20 if limit == "MOST_MEMORY" else 0)
    monkeypatch.setattr(module, "_SLOWEST_BYTES", 1 << 40)
    path = write(tmp_path, "tuples in tuples")
    with pytest.raises(CheckpointError, match="reading it was stopped") as refusal:
        survey_checkpoint(path)
    assert refusal.value.code == "reading_stopped" and str(path) in str(refusal.value)


def test_the_process_that_reads_sees_neither_the_folder_nor_the_environment(tmp_path, monkeypatch):
    for name in ("json.py", "zlib.py", "sitecustomize.py", "usercustomize.py"):
        (tmp_path / name).write_text("raise SystemExit(3)")
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pth")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path))
    assert survey_checkpoint("model.pth").shapes == {"weight": (2,)}


def test_names_of_files_are_handed_on_as_they_are(tmp_path):
    path = tmp_path / os.fsdecode(b"n\xff \n'.pth")
    torch.save({"weight": torch.ones(2)}, path)
    assert survey_checkpoint(path).path == path.resolve()
    with pytest.raises(CheckpointError):
        survey_checkpoint(tmp_path / "a\0.pth")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    with pytest.raises(CheckpointError):
        survey_checkpoint(tmp_path / "loop.pth")
