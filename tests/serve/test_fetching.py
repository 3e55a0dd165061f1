# SPDX-License-Identifier: Apache-2.0
"""Pictures come from the one Label Studio, whatever a task says: every spelling of another place, hops and stalls."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

import segship
from segship import BackendUnavailable, ImageError, InputError
from segship.serve import fetching
from segship.serve.errors import Refusal
from segship.serve.fetching import Fetcher
from tests.serve.test_labelling import point, question

PHOTOGRAPH = segship.demo_photograph().read_bytes()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n\r\n"
PATH = "/data/upload/1/photo.jpg"


@contextmanager
def answering(*parts, pause=0.0, host="127.0.0.1"):
    """A place that sends these bytes to whoever comes, part by part; what it was asked, one entry a connection."""
    asked, listener, over = [], socket.create_server((host, 0)), threading.Event()

    def answer(line):
        with line:
            line.settimeout(5)
            request = b""
            try:
                while b"\r\n\r\n" not in request and (data := line.recv(65536)):
                    request += data
                asked.append(request)
                for part in parts:
                    if over.wait(pause):
                        return
                    line.sendall(part)
            except OSError:
                pass

    def serve():
        while not over.is_set():
            try:
                line, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(line,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{listener.getsockname()[1]}", asked
    finally:
        over.set()
        listener.close()


def fetch(address, text=PATH, token=None, most=2**20):
    return asyncio.run(Fetcher(address, token, most).fetch(text))


def test_pictures_come_by_path_or_address_with_the_token():
    with answering(HEAD, PHOTOGRAPH) as (address, asked):
        assert fetch(address, token="t0ken") == PHOTOGRAPH == fetch(address + "/", address + PATH)
    first, second = asked
    assert first.startswith(b"GET /data/upload/1/photo.jpg HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Token t0ken\r\n" in first and b"Authorization" not in second


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/data/upload/1/ein süßes Foto.jpg", "/data/upload/1/ein%20s%C3%BC%C3%9Fes%20Foto.jpg"),
        ("/data/upload/1/a%20b.jpg", "/data/upload/1/a%20b.jpg"),
        ("/data/local-files/?d=x/y.png", "/data/local-files/?d=x/y.png"),
        ("/tasks/3/resolve/?fileuri=czM6Ly9h", "/tasks/3/resolve/?fileuri=czM6Ly9h"),
    ],
)
def test_paths_of_pictures(text, path):
    assert Fetcher("http://localhost:8081", None, 9).path_of(text) == path


ELSEWHERE = [
    "", "a.jpg", "//evil.example/data/a.jpg", "///data/a.jpg", "http://evil.example/data/a.jpg", "http:/data/a.jpg",
    "http:///data/a.jpg", "https://localhost:8081/data/a.jpg", "http://localhost/data/a.jpg",
    "http://localhost:8082/data/a", "http://localhost:80810/data/a.jpg",
    "http://localhost:8081.evil.example/data/a.jpg", "http://localhost:8081@evil.example/data/a",
    "http://evil.example@localhost:8081/data/a.jpg", "http://user:pass@localhost:8081/data/a.jpg",
    "http://LOCALHOST:8081/data/a", "HTTP://localhost:8081/data/a.jpg", "http://localhost.:8081/data/a.jpg",
    "http://127.0.0.1:8081/data/a.jpg", "http://127.1:8081/data/a.jpg", "http://2130706433:8081/data/a.jpg",
    "http://0x7f000001:8081/data/a.jpg", "http://0x7f.0.0.1:8081/data/a", "http://0177.0.0.1:8081/data/a",
    "http://017700000001:8081/data/a", "http://0:8081/data/a", "http://0.0.0.0:8081/data/a.jpg",
    "http://[::1]:8081/data/a.jpg", "http://[::]:8081/data/a.jpg", "http://[::ffff:127.0.0.1]:8081/data/a",
    "http://[::ffff:7f00:1]:8081/data/a", "http://[0:0:0:0:0:0:0:1]:8081/data/a",
    "http://[64:ff9b::7f00:1]:8081/data/a", "http://[2002:7f00:1::]:8081/data/a",
    "http://[2001:0:7f00:1::]:8081/data/a", "http://[fe80::1%25eth0]:8081/data/a",
    "http://[fe80::1%eth0]:8081/data/a", "http://169.254.169.254/data/meta",
    "http://169.254.169.254/latest/meta-data/", "http://metadata.google.internal/data/", "http://10.0.0.1/data/a",
    "http://192.168.0.1/data/a", "http://100.64.0.1/data/a", "http://localhost:8081\\@evil.example/data/a",
    "http://localhost:8081\\data\\a.jpg", "\\\\evil.example\\data\\a.jpg", "/\\evil.example/data/a",
    "/data\\..\\..\\api\\users", "http:\\\\evil.example\\data", "http://localhost:8081 /data/a.jpg", " /data/a.jpg",
    "\t/data/a.jpg", "http://localhost:8081\t/data/a.jpg", "http://localhost:8081\r\n/data/a.jpg",
    "http://localhost:8081#@evil.example/data/a", "http://localhost:8081?@evil.example/data/a",
    "http://localhost:8081/api/users", "/api/users/", "/api/projects/1/tasks", "/user/account", "/data/../api/users",
    "/data/./a.jpg", "/data/%2e%2e/api/users", "/data/%2E%2E/api", "/data/..%2fapi/users", "/data/..%5capi",
    "/data/a/../../api", "/data", "/data/", "/static/a.png", "/DATA/a.jpg", "/data/a.jpg\nHost: x/..",
    "/data/\x00a.jpg", "/data/" + "a" * 2001, "file:///data/a.jpg", "file://localhost:8081/data/a.jpg",
    "ftp://localhost:8081/data/a.jpg", "gopher://localhost:8081/data/a", "dict://localhost:8081/data/a",
    "s3://bucket/data/a.jpg", "gs://bucket/data/a.jpg", "javascript:/data/a.jpg", "blob:http://localhost:8081/data/a",
    "view-source:http://localhost:8081/data/a", "http://localhost:8081.", "http://ⓛocalhost:8081/data/a",
    "http://lоcalhost:8081/data/a",
]  # fmt: skip


@pytest.mark.parametrize("text", ELSEWHERE, ids=range(len(ELSEWHERE)))
def test_every_other_place_is_refused(text):
    assert len(ELSEWHERE) >= 80
    with pytest.raises(InputError) as caught:
        Fetcher("http://localhost:8081", "t", 9).path_of(text)
    assert caught.value.code == "foreign_address" and "t0ken" not in str(caught.value)


HOPS = [
    "http://{other}/data/a.jpg",
    "//{other}/data/a.jpg",
    "/data/upload/1/b.jpg",
    "https://{other}/",
    "",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("hop", HOPS)
def test_no_redirect_is_followed(status, hop):
    with answering(HEAD, PHOTOGRAPH) as (other, reached):
        place = hop.format(other=other.removeprefix("http://"))
        moved = f"HTTP/1.1 {status} Moved\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n".encode()
        with answering(moved) as (address, asked), pytest.raises(BackendUnavailable) as caught:
            fetch(address, token="t")
    assert caught.value.code == "not_fetched" and len(asked) == 1 and not reached


def test_no_proxy_is_asked(monkeypatch):
    with answering(HEAD, PHOTOGRAPH) as (address, asked), answering(HEAD, b"no") as (proxy, reached):
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        assert fetch(address) == PHOTOGRAPH and len(asked) == 1 and not reached


def test_a_name_is_looked_up_once(monkeypatch):
    real, looked_up = socket.getaddrinfo, []

    def alternating(host, *rest, **more):
        looked_up.append(host)
        return real("127.0.0.1" if len(looked_up) == 1 else "127.0.0.2", *rest, **more)

    with answering(HEAD, b"one") as (address, asked):
        monkeypatch.setattr(socket, "getaddrinfo", alternating)
        fetcher = Fetcher(address.replace("127.0.0.1", "localhost"), None, 9)
        assert [asyncio.run(fetcher.fetch(PATH)) for _ in range(3)] == [b"one"] * 3
    assert looked_up == ["localhost"] and len(asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 503])
def test_refusals_of_label_studio(status):
    with answering(f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno".encode()) as (address, _):
        with pytest.raises(BackendUnavailable) as caught:
            fetch(address)
    assert caught.value.code == "not_fetched" and str(status) in str(caught.value)


@pytest.mark.parametrize("garbage", [b"", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"])
def test_what_is_no_answer(garbage):
    with answering(garbage) as (address, _), pytest.raises(BackendUnavailable) as caught:
        fetch(address)
    assert caught.value.code == "not_fetched"


def test_nobody_there():
    with answering() as (address, _):
        pass
    with pytest.raises(BackendUnavailable):
        fetch(address)


@pytest.mark.parametrize("length", [b"", b"Content-Length: 1000001\r\n", b"Content-Length: 99999999999999\r\n"])
def test_bytes_are_bounded(length):
    head = HEAD.replace(b"Connection", length + b"Connection")
    with answering(head, *[bytes(50_000)] * 40) as (address, _), pytest.raises(ImageError) as caught:
        fetch(address, most=1_000_000)
    assert caught.value.code == "too_many_bytes"
    with answering(HEAD, bytes(1_000_000)) as (address, _):
        assert len(fetch(address, most=1_000_000)) == 1_000_000


@pytest.mark.parametrize(
    "parts", [[b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 99], [HEAD, *[b"x"] * 99]], ids=["head", "body"]
)
def test_one_that_sends_a_byte_now_and_then_is_given_up(monkeypatch, parts):
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 0.6)

    async def ask(fetcher):
        began = time.monotonic()
        with pytest.raises((Refusal, BackendUnavailable)):
            await fetcher.fetch(PATH)
        assert time.monotonic() - began < 2
        # And its place is free again, long before all bytes would have come.
        while fetcher._running and time.monotonic() - began < 5:
            await asyncio.sleep(0.02)
        assert not fetcher._running

    with answering(*parts, pause=0.2) as (address, _):
        asyncio.run(ask(Fetcher(address, None, 999)))


def test_few_are_fetched_at_once(monkeypatch):
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 1.0)

    async def ask_many(fetcher):
        found = await asyncio.gather(*(fetcher.fetch(PATH) for _ in range(11)), return_exceptions=True)
        return [getattr(error, "code", error) for error in found]

    with answering(HEAD, *[b"x"] * 99, pause=0.2) as (address, asked):
        codes = asyncio.run(ask_many(Fetcher(address, None, 999)))
    assert codes.count("overloaded") == 3 and len(asked) == 8


@pytest.mark.parametrize(
    "address",
    ["localhost:8081", "ftp://a", "http://", "http://a/b", "http://a?b", "http://u@a", "http://a:99999", "http://a#b"],
)
def test_addresses_of_no_label_studio(address):
    with pytest.raises(InputError) as caught:
        Fetcher(address, None, 9)
    assert caught.value.code == "bad_option"


def test_a_server_fetches_from_the_label_studio_it_was_started_for(serve):
    with answering(HEAD, PHOTOGRAPH) as (address, asked), answering(HEAD, PHOTOGRAPH) as (other, reached):
        server = serve("--label-studio", address, environment={"SEGSHIP_LABEL_STUDIO_TOKEN": "t0ken"})
        answer = server.post("/predict", question(point(365, 290), address=PATH))
        assert answer.status == 200 and answer.json["results"][0]["result"][0]["type"] == "brushlabels"
        assert b"Authorization: Token t0ken" in asked[0]
        refused = server.post("/predict", question(point(365, 290), address=f"{other}{PATH}"))
        assert (refused.status, refused.code) == (422, "foreign_address") and not reached
    gone = server.post("/predict", question(point(365, 290), address=PATH))
    assert (gone.status, gone.code) == (503, "not_fetched")
    assert "t0ken" not in json.dumps([answer.json, refused.json, gone.json]) + server.log.read_text()
