# SPDX-License-Identifier: Apache-2.0
"""Bytes that are no good HTTP, too many or too slow: answered with what is wrong, never with a failure."""

import json
import re
import socket
import time
from pathlib import Path

import pytest

import segship
from tests.serve.serving import serving

LIMITS = {"body_bytes": 100_000, "json_bytes": 4_000, "header_bytes": 8_000, "header_fields": 40, "chunks": 200}
OPTIONS = [part for name, value in LIMITS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
HOST = b"Host: localhost\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = (*OPTIONS, "--head-seconds", "1.5", "--body-seconds", "2", "--log", "json")
    with serving(*options, log=tmp_path_factory.mktemp("protocol") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def image(server):
    return server.post("/v1/images", small()).json["id"]


def small():
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.open(segship.demo_photograph()).resize((60, 40)).save(stream, "PNG")
    return stream.getvalue()


def parsed(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    return status, json.loads(body)["error"] if status >= 400 else body


def test_a_client_that_reads_nothing_holds_no_connection(server):
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", server.port))
        ends = f":{server.port:04X}", f":{line.getsockname()[1]:04X}"

        def is_held():
            """Whether the server's end belongs to a process still, as the system's table has it."""
            rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
            return any(row[1].endswith(ends[0]) and row[2].endswith(ends[1]) and row[9] != "0" for row in rows)

        # More answers than the buffers of a system hold.
        line.sendall(b"GET /openapi.json HTTP/1.1\r\n%s\r\n" % HOST * 400)
        began, was_held = time.monotonic(), False
        while (held := is_held()) or not was_held:
            was_held |= held
            assert time.monotonic() - began < 15, "it is still held" if held else "it was never there"
            time.sleep(0.05)
    assert time.monotonic() - began > 1


BAD = {
    "nonsense": b"hello\r\n\r\n",
    "binary": bytes(range(256)),
    "no version": b"GET /\r\n\r\n",
    "version 3": b"GET / HTTP/3.0\r\n" + HOST + b"\r\n",
    "method with space": b"GE T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "lower case method": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "field without colon": b"GET / HTTP/1.1\r\n" + HOST + b"nothing\r\n\r\n",
    "field with null": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\x00c\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n",
    "folded field": b"GET / HTTP/1.1\r\nA: b\r\n c\r\n" + HOST + b"\r\n",
    "two lengths": b"POST /v1/images HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "negative length": b"POST /v1/images HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
    "length in words": b"POST /v1/images HTTP/1.1\r\n" + HOST + b"Content-Length: many\r\n\r\n",
    "huge length": b"POST /v1/images HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "length and chunks": b"POST /v1/images HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk in words": b"POST /v1/images HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "negative chunk": b"POST /v1/images HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "huge chunk": b"POST /v1/images HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "other coding": b"POST /v1/images HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_what_is_no_http_is_answered_with_400(server, data):
    answer = server.raw(data, timeout=5)
    status, error = parsed(answer)
    assert 400 <= status < 500 and error["code"] and b"onnection: close" in answer, answer
    assert server.get("/v2/health/live").status == 200


STRANGE = ("/%00", "/..%2f..%2fetc/passwd", "/page/..%2f..%2foptions.py", "/page/__init__.py", "//evil.example/")
STRANGE += ("/" + "a" * 5_000, "/page/%F0%28%8C%28", "/v1/images/%2e%2e/masks")


@pytest.mark.parametrize("path", STRANGE)
def test_strange_paths_are_nowhere(server, path):
    answer = server.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert parsed(answer)[0] in (400, 404, 405)


def head_of(size):
    fixed = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"Connection: close\r\nA: "
    return fixed + b"a" * (size - len(fixed)) + b"\r\n\r\n"


@pytest.mark.parametrize("size, status", [(6_000, 200), (20_000, 431), (8_000_000, 431)])
def test_bytes_of_a_head_are_bounded(server, size, status):
    answer = server.raw(head_of(size))
    assert parsed(answer)[0] == status
    if status == 431:
        assert parsed(answer)[1]["limit"]["name"] == "header_bytes"


@pytest.mark.parametrize("count, status", [(38, 200), (39, 431), (38_000, 431)])
def test_fields_of_a_head_are_bounded(server, count, status):
    fields = b"".join(b"A%d: b\r\n" % number for number in range(count))
    answer = server.raw(b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"Connection: close\r\n" + fields + b"\r\n")
    assert parsed(answer)[0] == status


@pytest.mark.parametrize(
    "size, code", [(100_000, "unknown_format"), (100_001, "body_too_large"), (10**8, "body_too_large")]
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_bytes_of_a_body_are_bounded(server, size, code, is_chunked):
    if is_chunked:
        pieces = [b"%x\r\n" % min(5_000, size - start) + b"x" * min(5_000, size - start) + b"\r\n"
                  for start in range(0, min(size, 600_000), 5_000)]  # fmt: skip
        body, field = b"".join(pieces) + b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"
    else:
        body, field = b"x" * min(size, 600_000), b"Content-Length: %d\r\n" % size
    answer = server.raw(b"POST /v1/images HTTP/1.1\r\nConnection: close\r\n" + HOST + field + b"\r\n" + body)
    status, error = parsed(answer)
    assert (status, error["code"]) == (422 if code == "unknown_format" else 413, code)
    if status == 413:
        assert error["limit"]["name"] == "body_bytes" and error["limit"]["accepted"] == 100_000


@pytest.mark.parametrize("size, status", [(4_000, 200), (4_001, 413), (4_000_000, 413)])
def test_bytes_of_prompts_are_bounded(server, image, size, status):
    body = b'{"points": [[5, 5]]' + b" " * (size - 20) + b"}"
    assert len(body) == size
    answer = server.post(f"/v1/images/{image}/masks", body)
    assert answer.status == status


@pytest.mark.parametrize("count, status", [(64, 200), (65, 422), (150, 422)])
def test_points_and_objects_are_bounded(server, image, count, status):
    for body in ({"points": [[5, 5]] * count}, {"objects": [{"points": [[5, 5]]}] * count}):
        assert server.post(f"/v1/images/{image}/masks", json.dumps(body).encode()).status == status


@pytest.mark.parametrize("depth, code", [(16, "no_prompts"), (17, "json_too_deep"), (1_500, "json_too_deep")])
def test_depth_is_bounded(server, image, depth, code):
    body = b'{"points": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    assert server.post(f"/v1/images/{image}/masks", body).code == code


@pytest.mark.parametrize("count, status", [(199, 422), (201, 413), (200_000, 413)])
def test_chunks_are_bounded(server, count, status):
    body = b"1\r\nx\r\n" * count + b"0\r\n\r\n"
    answer = server.raw(
        b"POST /v1/images HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n" + HOST + b"\r\n" + body
    )
    assert parsed(answer)[0] == status


def test_bodies_are_not_inflated(server):
    answer = server.post("/v1/images", b"x", Content_Encoding="gzip")
    assert (answer.status, answer.code) == (415, "encoded_body")


POST = b"POST /v1/images HTTP/1.1\r\n" + HOST
SLOW = [(b"", 1.5), (b"GET / HT", 1.5), (POST, 1.5), (POST + b"Content-Length: 9\r\n\r\nabc", 2.0)]


@pytest.mark.parametrize("data, seconds", SLOW)
def test_what_comes_too_slowly_is_ended(server, data, seconds):
    began = time.monotonic()
    answer = server.raw(data)
    assert parsed(answer)[0] == 408 and parsed(answer)[1]["code"] == "too_slow"
    assert seconds - 0.2 < time.monotonic() - began < seconds + 2


def test_slowness_of_a_second_request_is_ended_too(server):
    whole = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        for _ in range(2):
            line.sendall(whole)
            found = b""
            while not found.endswith(b"}"):
                found += line.recv(65536)
            assert found.startswith(b"HTTP/1.1 200")
            # Between requests nobody is in a hurry.
            time.sleep(2.5)
        line.sendall(whole[:20])
        assert line.recv(65536).startswith(b"HTTP/1.1 408")


def test_requests_may_follow_each_other_without_a_pause(server):
    one = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n"
    last = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    answer = server.raw(one * 20 + last)
    assert answer.count(b"HTTP/1.1 200") == 21


def test_nothing_of_the_server_is_told(server, image):
    """After all of the above: no address, path or trace in the log."""
    log = Path(server.log).read_text()
    assert not re.search(r"0x[0-9a-f]{6,}|Traceback|/segship/|/tmp/|internal", log)
