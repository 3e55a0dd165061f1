# SPDX-License-Identifier: Apache-2.0
"""Downloads against a server that resets, lies, redirects and ignores."""

import hashlib
import io
import random
import shutil
import socket
import ssl
import threading
import time
import urllib.error
from contextlib import contextmanager, suppress
from urllib.request import OpenerDirector, Request

import pytest

from segship.errors import FetchError
from segship.fetch import download as module
from segship.fetch.download import Download, download
from tests.loopback import serving

CONTENT = random.Random(7).randbytes(3_000_000)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with serving(CONTENT) as behaviour:
        yield behaviour


def wanted(server, folder, url=None, timeout=5.0):
    return Download(
        url=url or f"{server.address}/file.bin",
        part=folder / "file.bin.part",
        target=folder / "file.bin",
        bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        timeout=timeout,
        by_hand="get it by hand",
    )


def fetch(server, folder, **changes):
    seen = []
    download(wanted(server, folder, **changes), lambda done, total: seen.append((done, total)))
    assert (folder / "file.bin").read_bytes() == CONTENT
    assert not (folder / "file.bin.part").exists()
    return seen


def refuse(server, folder, code, **changes):
    with pytest.raises(FetchError) as refusal:
        download(wanted(server, folder, **changes), lambda done, total: None)
    assert refusal.value.code == code
    assert not (folder / "file.bin").exists()
    return str(refusal.value)


def test_a_file_is_fetched_with_progress(server, tmp_path):
    seen = fetch(server, tmp_path)
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert "range" not in server.requests[0] and server.requests[0]["accept-encoding"] == "identity"


def test_a_part_of_an_earlier_call_is_taken_up(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1_234_567])
    seen = fetch(server, tmp_path)
    assert seen[0] == (1_234_567, len(CONTENT))
    assert [request["range"] for request in server.requests] == ["bytes=1234567-"]


def test_a_whole_part_needs_no_request(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(server, tmp_path)
    assert server.requests == []


def test_a_reset_connection_goes_on_where_it_stopped(server, tmp_path):
    server.cut_after = [1_000_000, 500_000]
    fetch(server, tmp_path)
    assert [request.get("range") for request in server.requests] == [None, "bytes=1000000-", "bytes=1500000-"]
    assert [request.get("if-range") for request in server.requests] == [None, '"one"', '"one"']


def test_a_weak_etag_is_not_sent_back(server, tmp_path):
    server.cut_after, server.etag = [1000], 'W/"one"'
    fetch(server, tmp_path)
    assert "if-range" not in server.requests[1]


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1_000_000])
    server.ranges = False
    fetch(server, tmp_path)
    assert len(server.requests) == 1


def test_a_range_that_was_not_asked_for_starts_anew(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1_000_000])
    server.content_range = f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}"
    fetch(server, tmp_path)
    assert [request.get("range") for request in server.requests] == ["bytes=1000000-", None]


def test_a_part_of_wrong_content_is_found_by_its_digest_and_fetched_anew(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"wrong" * 1000)
    fetch(server, tmp_path)
    assert [request.get("range") for request in server.requests] == ["bytes=5000-", None]


@pytest.mark.parametrize("extra", [0, 1, 100_000])
def test_a_part_that_is_wrong_and_long_starts_anew(server, tmp_path, extra):
    (tmp_path / "file.bin.part").write_bytes(bytes(len(CONTENT) + extra))
    fetch(server, tmp_path)


def test_a_lost_connection_keeps_the_part_for_the_next_call(server, tmp_path):
    server.cut_after = [1000, 1000, 1000]
    message = refuse(server, tmp_path, "connection_lost")
    assert "lost 3 times" in message and "3000 of 3000000 bytes are kept" in message and "by hand" in message
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:3000]
    assert fetch(server, tmp_path)[0] == (3000, len(CONTENT))


def test_a_short_body_without_a_length_is_noticed(server, tmp_path):
    server.length, server.cut_after = False, [10, 10, 10]
    assert "the body ended early" in refuse(server, tmp_path, "connection_lost")


def test_wrong_bytes_are_removed(server, tmp_path):
    server.content = bytes(len(CONTENT))
    message = refuse(server, tmp_path, "wrong_digest")
    assert hashlib.sha256(CONTENT).hexdigest() in message and "mirror" in message
    assert list(tmp_path.iterdir()) == []


def test_one_flipped_bit_is_wrong(server, tmp_path):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    refuse(server, tmp_path, "wrong_digest")


@pytest.mark.parametrize("change", [-1, 1, 50_000])
def test_a_file_of_another_size_is_refused_before_it_streams(server, tmp_path, change):
    server.content = bytes(len(CONTENT) + change)
    assert f"{len(CONTENT) + change} bytes" in refuse(server, tmp_path, "file_changed")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_file_is_refused_while_resuming(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server.content = CONTENT + b"more"
    refuse(server, tmp_path, "file_changed")


def test_more_bytes_than_published_are_refused_while_streaming(server, tmp_path):
    server.content, server.length = CONTENT + bytes(1 << 22), False
    assert "more than the published 3000000 bytes" in refuse(server, tmp_path, "too_many_bytes")
    assert list(tmp_path.iterdir()) == []


def test_a_compressed_answer_is_refused(server, tmp_path):
    server.headers = {"Content-Encoding": "gzip"}
    assert "encoding gzip" in refuse(server, tmp_path, "file_changed")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_an_http_error_is_named(server, tmp_path, status):
    server.status = status
    message = refuse(server, tmp_path, "http_error")
    assert str(status) in message and "by hand" in message
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.status = 503
    assert "503" in refuse(server, tmp_path, "connection_lost")
    assert len(server.requests) == module.ATTEMPTS


def test_a_range_refused_of_an_empty_part_is_an_error(server, tmp_path):
    server.status = 416
    assert "ranges that were not asked for" in refuse(server, tmp_path, "http_error")


def test_a_redirect_over_http_is_followed(server, tmp_path):
    server.location = "/elsewhere.bin"
    fetch(server, tmp_path)
    assert [request["path"] for request in server.requests] == ["/file.bin", "/elsewhere.bin"]


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "gopher://127.0.0.1/"])
def test_a_redirect_to_anything_else_is_refused(server, tmp_path, location):
    server.location = location
    message = refuse(server, tmp_path, "bad_redirect")
    assert location in message and "only http and https" in message
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "location",
    ["http://[::1/x", "http://[v1]/x", "http://a:99999/x", "http://a:0/x", "http://a:b/x", ""],
)
def test_a_malformed_redirect_is_refused_and_leaves_nothing(server, tmp_path, location):
    server.location = location
    refuse(server, tmp_path, "bad_redirect" if location else "http_error")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "a" * 300, "\N{SNOWMAN}" * 80, "a b"])
def test_a_host_that_cannot_be_asked_is_an_error_and_leaves_nothing(tmp_path, host):
    with pytest.raises(FetchError) as refusal:
        download(wanted(None, tmp_path, url=f"http://{host}/file.bin"), lambda done, total: None)
    assert refusal.value.code in ("bad_address", "no_network") and list(tmp_path.iterdir()) == []


@contextmanager
def trickling(head, pause=0.02):
    """Serve a head, then a byte after every pause, to everybody, for ever."""
    stopped = threading.Event()

    def serve(connection):
        with connection, suppress(OSError):
            connection.sendall(head)
            while not stopped.wait(pause):
                connection.sendall(b"x")

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/file.bin"
        stopped.set()


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nX: ", f"HTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\n\r\n".encode()]
)
def test_a_server_that_trickles_is_given_up(tmp_path, head):
    started = time.monotonic()
    with trickling(head) as url:
        refuse(None, tmp_path, "connection_lost", url=url, timeout=0.3)
    assert time.monotonic() - started < 5


def test_a_file_that_takes_too_long_is_given_up_and_its_part_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHORTEST_DEADLINE", 0.3)
    monkeypatch.setattr(module, "SLOWEST_BYTES_PER_SECOND", 1e9)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\n\r\n".encode()
    with trickling(head) as url:
        assert "run the same command again" in refuse(None, tmp_path, "too_slow", url=url)
    assert (tmp_path / "file.bin.part").stat().st_size > 0


def test_another_name_of_a_users_file_is_not_written_through(server, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "file.bin.part").hardlink_to(tmp_path / "mine.txt")
    fetch(server, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_range_without_a_total_is_taken_up(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server.content_range = f"bytes 1000-{len(CONTENT) - 1}/*"
    assert fetch(server, tmp_path)[0] == (1000, len(CONTENT)) and len(server.requests) == 1


def test_a_range_of_absurd_numbers_starts_anew(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server.content_range = f"bytes {'9' * 5000}-1/2"
    assert fetch(server, tmp_path)[0] == (1000, len(CONTENT)) and len(server.requests) == 2


def test_a_redirect_from_https_to_http_is_refused():
    with pytest.raises(FetchError, match="never from https to http") as refusal:
        module._Redirects().redirect_request(Request("https://a/x"), io.BytesIO(), 302, "", {}, "http://a/x")
    assert refusal.value.code == "bad_redirect"


def test_a_redirect_loop_is_an_http_error(server, tmp_path):
    server.location = "/file.bin"
    assert "302" in refuse(server, tmp_path, "http_error")


def test_no_network_says_the_address_and_the_way_by_hand(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/file.bin"
    message = refuse(None, tmp_path, "no_network", url=url)
    assert url in message and "by hand" in message
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        assert "timed out" in refuse(None, tmp_path, "connection_lost", url=url, timeout=0.1)


def test_a_bad_certificate_is_not_called_no_network(server, tmp_path, monkeypatch):
    def fail(self, request, timeout):
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(OpenerDirector, "open", fail)
    assert "self-signed" in refuse(server, tmp_path, "bad_certificate")


def test_a_full_disk_is_noticed_before(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    assert "5 bytes free and 3000000 are needed" in refuse(server, tmp_path, "disk_full")
    assert server.requests == []


def test_a_planted_link_at_the_part_is_not_followed(server, tmp_path):
    (tmp_path / "file.bin.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        download(wanted(server, tmp_path), lambda done, total: None)
    assert not (tmp_path / "elsewhere").exists()


def test_a_stop_by_the_user_keeps_the_part(server, tmp_path):
    def stop(done, total):
        if done >= 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(wanted(server, tmp_path), stop)
    assert fetch(server, tmp_path)[0][0] >= 1_000_000
