# SPDX-License-Identifier: Apache-2.0
"""Fetching known checkpoints: cache, mirror, files of the user, several at once."""

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from segship.catalog import KNOWN_CHECKPOINTS
from segship.errors import FetchError
from segship.fetch import DEFAULT_TIMEOUT, checkpoint_path, download, fetch_checkpoint
from tests.loopback import serving

CONTENT = random.Random(8).randbytes(2_000_000)
FILE = "small model.pth"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A checkpoint small enough to serve, and a cache folder of its own."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    known = replace(
        KNOWN_CHECKPOINTS["vit_b"],
        name="small",
        file=FILE,
        url="http://127.0.0.1:9/x",
        bytes=len(CONTENT),
        sha256=digest,
    )
    monkeypatch.setitem(KNOWN_CHECKPOINTS, "small", known)
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("SEGSHIP_CACHE", str(tmp_path / "cache"))
    for name in ("SEGSHIP_MIRROR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with serving(CONTENT) as behaviour:
        yield behaviour


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != FILE)


def test_a_mirror_takes_the_file_name(server, tmp_path):
    path = fetch_checkpoint("small", mirror=f"{server.address}/models/")
    assert path == tmp_path / "cache" / "checkpoints" / FILE == checkpoint_path("small")
    assert path.read_bytes() == CONTENT
    assert server.requests[0]["path"] == "/models/small%20model.pth"
    assert leftovers(path.parent) == []


def test_the_mirror_may_stand_in_the_environment(server, monkeypatch):
    monkeypatch.setenv("SEGSHIP_MIRROR", server.address)
    assert fetch_checkpoint("small").read_bytes() == CONTENT


def test_the_mirror_may_be_a_folder(tmp_path):
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / FILE).write_bytes(CONTENT)
    assert fetch_checkpoint("small", mirror=(tmp_path / "share").as_uri()).read_bytes() == CONTENT


def test_another_folder_may_be_asked_for(server, tmp_path):
    path = fetch_checkpoint("small", mirror=server.address, destination=tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / FILE
    assert path.read_bytes() == CONTENT


def test_a_fetched_file_is_returned_without_the_network(server):
    first = fetch_checkpoint("small", mirror=server.address)
    seen = []
    assert fetch_checkpoint("small", progress=lambda *state: seen.append(state)) == first
    assert len(server.requests) == 1 and seen == []


def test_a_link_to_the_right_file_counts(server, tmp_path):
    (tmp_path / "copy.pth").write_bytes(CONTENT)
    checkpoint_path("small").parent.mkdir(parents=True)
    checkpoint_path("small").symlink_to(tmp_path / "copy.pth")
    assert fetch_checkpoint("small", mirror=server.address).is_symlink()
    assert server.requests == []


@pytest.mark.parametrize("wrong", [b"", b"mine", bytes(len(CONTENT))])
def test_a_wrong_file_of_that_name_is_never_replaced(server, wrong):
    path = checkpoint_path("small")
    path.parent.mkdir(parents=True)
    path.write_bytes(wrong)
    with pytest.raises(FetchError, match="move it away") as refusal:
        fetch_checkpoint("small", mirror=server.address)
    assert refusal.value.code == "file_differs"
    assert path.read_bytes() == wrong and server.requests == []


def test_no_network_says_where_the_file_belongs_and_how_it_is_checked():
    with pytest.raises(FetchError) as refusal:
        fetch_checkpoint("small", mirror="http://127.0.0.1:9/base")
    message = str(refusal.value)
    assert refusal.value.code == "no_network"
    assert "http://127.0.0.1:9/base/small%20model.pth" in message
    assert "segship fetch small --from FILE" in message and str(checkpoint_path("small")) in message


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(FetchError, match="vit_b, vit_l, vit_h, vit_t") as refusal:
        fetch_checkpoint("vit_x")
    assert refusal.value.code == "unknown_checkpoint"


@pytest.mark.parametrize(
    "mirror",
    [
        "ftp://127.0.0.1/x",
        "models",
        "https://",
        "javascript:x",
        "http://[::1",
        "http://a:99999",
        "http://a:0",
        "http://a:b",
    ],
)
def test_a_mirror_that_is_no_address_is_refused(mirror):
    with pytest.raises(FetchError, match="begins with https://") as refusal:
        fetch_checkpoint("small", mirror=mirror)
    assert refusal.value.code == "bad_mirror"
    assert not checkpoint_path("small").parent.exists() or not list(checkpoint_path("small").parent.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FetchError, match="choose another folder") as refusal:
        fetch_checkpoint("small", destination=tmp_path / "file" / "folder")
    assert refusal.value.code == "cannot_write"


def test_a_copy_of_the_users_is_checked_and_taken(tmp_path):
    (tmp_path / "downloaded.bin").write_bytes(CONTENT)
    # Of a copy that was killed two days ago.
    left = checkpoint_path("small").with_name(f".small.{'0' * 16}.partial")
    left.parent.mkdir(parents=True, exist_ok=True)
    left.touch()
    os.utime(left, (time.time() - 48 * 3600,) * 2)
    seen = []
    path = fetch_checkpoint("small", from_file=tmp_path / "downloaded.bin", progress=lambda *state: seen.append(state))
    assert path.read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT))
    assert (tmp_path / "downloaded.bin").exists() and not left.exists()


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (CONTENT[:-1], "wrong_size", "has 1999999 bytes"),
        (CONTENT + b"x", "wrong_size", "has 2000001 bytes"),
        (bytes(len(CONTENT)), "wrong_digest", "has the SHA-256"),
        (None, "file_missing", "there is no file"),
    ],
)
def test_a_wrong_copy_of_the_users_is_refused_and_leaves_nothing(tmp_path, content, code, words):
    if content is not None:
        (tmp_path / "downloaded.bin").write_bytes(content)
    with pytest.raises(FetchError, match=words) as refusal:
        fetch_checkpoint("small", from_file=tmp_path / "downloaded.bin")
    assert refusal.value.code == code
    assert list(checkpoint_path("small").parent.iterdir()) == []


def test_threads_that_fetch_at_once_share_one_download(server):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch_checkpoint("small", mirror=server.address)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 and results[0].read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert leftovers(results[0].parent) == []


PROGRAM = """
import sys
from segship.fetch import fetch_checkpoint
from dataclasses import replace
from segship.catalog import KNOWN_CHECKPOINTS
mirror, file, size, digest = sys.argv[1:]
vit_b = KNOWN_CHECKPOINTS["vit_b"]
KNOWN_CHECKPOINTS["small"] = replace(vit_b, name="small", file=file, bytes=int(size), sha256=digest)
print(fetch_checkpoint("small", mirror=mirror))
"""


def test_processes_that_fetch_at_once_share_one_download(server):
    digest = hashlib.sha256(CONTENT).hexdigest()
    command = [sys.executable, "-c", PROGRAM, server.address, FILE, str(len(CONTENT)), digest]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0 and Path(out.decode().strip()).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_fetching_needs_no_torch_and_reads_no_environment_at_import():
    code = "import sys, segship.fetch, segship.catalog; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"HOME": ""}).returncode == 0
    assert DEFAULT_TIMEOUT == 30.0
