# SPDX-License-Identifier: Apache-2.0
"""A file server on 127.0.0.1 that can misbehave in every way that a download has to survive."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """What the server does; tests change it."""

    content: bytes
    ranges: bool = True
    etag: str | None = '"one"'
    status: int | None = None
    location: str | None = None
    length: bool = True
    cut_after: list[int] = field(default_factory=list)
    """For each request in turn, the body bytes after which the connection is closed."""
    headers: dict[str, str] = field(default_factory=dict)
    content_range: str | None = None
    requests: list[dict[str, str]] = field(default_factory=list)
    address: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        behaviour: Behaviour = self.server.behaviour  # type: ignore[attr-defined]
        behaviour.requests.append({"path": self.path, **{key.lower(): value for key, value in self.headers.items()}})
        self.close_connection = True
        if behaviour.location is not None and self.path == "/file.bin":
            self.answer(302, b"", {"Location": behaviour.location})
        elif behaviour.status is not None:
            self.answer(behaviour.status, b"no", {})
        else:
            self.serve(behaviour)

    def serve(self, behaviour: Behaviour) -> None:
        asked = self.headers.get("Range")
        headers = dict(behaviour.headers)
        if behaviour.etag:
            headers["ETag"] = behaviour.etag
        fresh = self.headers.get("If-Range") in (None, behaviour.etag)
        start, status, total = 0, 200, len(behaviour.content)
        if asked and behaviour.ranges and fresh:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            if start >= total:
                return self.answer(416, b"", {})
            headers["Content-Range"] = behaviour.content_range or f"bytes {start}-{total - 1}/{total}"
        self.answer(status, behaviour.content[start:], headers, behaviour)

    def answer(self, status: int, body: bytes, headers: dict[str, str], behaviour: Behaviour | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if behaviour is None or behaviour.length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if behaviour is not None and behaviour.cut_after:
            body = body[: behaviour.cut_after.pop(0)]
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""


class _Server(ThreadingHTTPServer):
    """Says nothing of a client that hangs up in the middle, which several tests are about."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(content: bytes) -> Iterator[Behaviour]:
    """Serve ``content`` under every path and yield the switchboard."""
    server = _Server(("127.0.0.1", 0), _Handler)
    behaviour = Behaviour(content)
    server.behaviour = behaviour  # type: ignore[attr-defined]
    behaviour.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield behaviour
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
