# SPDX-License-Identifier: Apache-2.0
"""Connections within limits: a request's head and body arrive in time and are no larger than agreed.

uvicorn bounds neither, so that one slow client would hold a connection for ever. Handlers are cancelled as soon as
their client has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from segship.serve.errors import Refusal, too_large
from segship.serve.options import ServeLimits

BODY = "segship.body"
"""Under this name a request's scope has its body, if that was read already."""
CONNECTION = "segship.connection"
"""Under this name a request's scope has its `Connection`."""

# A chunk may be short, but not all of a large body.
_LEAST_MEAN_CHUNK = 1024
_FREE_BYTES = 1 << 20
# After SIGTERM, for those that come before the word has gone round.
_STRAGGLERS_SECONDS = 2.0
# For a client that still sends what will not be read.
_LINGER_SECONDS = 2.0

logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def connection_class(limits: ServeLimits) -> type[HttpToolsProtocol]:
    """Return the protocol of connections with these limits."""
    return type("Connection", (Connection,), {"limits": limits})


class Connection(HttpToolsProtocol):
    """One connection; the methods are callbacks of asyncio and of the parser."""

    limits = ServeLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect the first request's head."""
        super().connection_made(cast("asyncio.Transport", _Lingering(transport, self)))
        self.running: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._is_refused = self.is_lingering = False
        self._stage = "between"
        self._begin_request()
        if len(self.connections) > self.limits.connections:
            message = f"there are {self.limits.connections} connections already; ask again"
            self.refuse(Refusal(503, "too_many_connections", message, retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what is done for a client that has gone."""
        self._unset()
        if self._stall is not None:
            self._stall.cancel()
        super().connection_lost(exc)
        if self.running is not None and self.cycle is not None and not self.cycle.response_complete:
            self.running.cancel()

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless enough is enough."""
        if self._is_refused or self.is_lingering:
            return
        # The first byte of a request that follows another.
        if self._stage == "between":
            self._begin_request()
        if self._stage == "head":
            self._head_bytes += len(data)
            # The last part of a head may bring much of its body.
            if self._head_bytes > self.limits.header_bytes and b"\r\n\r\n" not in data[: self.limits.header_bytes]:
                self._refuse_head("header_bytes", self.limits.header_bytes, self._head_bytes)
                return
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self.refuse(Refusal(400, "bad_request", "this is not HTTP as it should be", close=True))

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        if self._stage == "between":
            self._begin_request()
        cast("dict[str, Any]", self.scope)[CONNECTION] = self

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field of the head."""
        super().on_header(name, value)
        self._fields_bytes += len(name) + len(value) + 4
        if len(self.headers) > self.limits.header_fields:
            self._refuse_head("header_fields", self.limits.header_fields, len(self.headers))
        elif self._fields_bytes > self.limits.header_bytes:
            self._refuse_head("header_bytes", self.limits.header_bytes, self._fields_bytes)

    def on_headers_complete(self) -> None:
        """Expect the body."""
        self._stage = "body"
        if self._is_refused:
            return
        self._expect(self.limits.body_seconds, "body")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; the parser gives each chunk by itself."""
        self._chunks += 1
        self._body_bytes += len(body)
        most = self.limits.chunks
        is_fine = self._body_bytes < _FREE_BYTES or self._body_bytes >= _LEAST_MEAN_CHUNK * self._chunks
        if self._chunks > most or not is_fine:
            message = f"the body came in {self._chunks:,} chunks, most of them tiny; send larger ones"
            self.refuse(Refusal(413, "too_many_chunks", message, limit=("chunks", most, self._chunks), close=True))
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect nothing more of this request."""
        self._unset()
        self._stage = "between"
        if not self._is_refused:
            super().on_message_complete()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever: it holds a connection that others want."""
        super().pause_writing()
        self._stall = self.loop.call_later(self.limits.body_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    @property
    def is_sent_whole(self) -> bool:
        """Whether everything of the last request has arrived."""
        return self._stage == "between"

    def refuse(self, refusal: Refusal) -> None:
        """Answer without asking anybody, and end the connection."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._unset()
        if self.running is not None:
            self.running.cancel()
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            body = refusal.body("")
            fields = [*refusal.headers(), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
            lines = b"".join(b"%s: %s\r\n" % field for field in dict(fields).items())
            self.transport.write(b"HTTP/1.1 %d \r\n%s\r\n%s" % (refusal.status, lines, body))
        if self.cycle is not None:
            # What was begun for it says nothing any more.
            self.cycle.disconnected = True
        self.transport.close()

    def _begin_request(self) -> None:
        self._stage = "head"
        self._head_bytes = self._fields_bytes = self._chunks = self._body_bytes = 0
        self._expect(self.limits.head_seconds, "head")

    def _refuse_head(self, name: str, accepted: int, found: int) -> None:
        message = f"the head of the request is too large: {name} is {found:,}; at most {accepted:,} are accepted"
        self.refuse(Refusal(431, "head_too_large", message, limit=(name, accepted, found), close=True))

    def _expect(self, seconds: float, what: str) -> None:
        self._unset()
        self._timer = self.loop.call_later(seconds, self._too_slow, what, seconds)

    def _unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self, what: str, seconds: float) -> None:
        message = f"the {what} of the request did not arrive within {seconds:g} seconds"
        self.refuse(Refusal(408, "too_slow", message, close=True))


class _Lingering:
    """A transport that sends the head of an answer with its body, and whose end the client can read.

    What comes within one turn of the loop goes out together. At the end, what the client still sends is taken and
    thrown away for a while: a socket that is closed with bytes unread is reset, and the answer may be lost with it.
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._connection.is_lingering:
            return
        if not self._parts:
            self._connection.loop.call_soon(self._flush)
        self._parts.append(data)

    def _flush(self) -> None:
        if self._parts:
            data, self._parts = b"".join(self._parts), []
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._connection.is_lingering or self._transport.is_closing()

    def close(self) -> None:
        self._flush()
        connection = self._connection
        if connection.is_sent_whole or self._transport.is_closing() or not self._transport.can_write_eof():
            self._transport.close()
            # It ends once all is written, which a client that does not read would never let come.
            if self._transport.get_write_buffer_size():
                connection.loop.call_later(connection.limits.body_seconds, self._transport.abort)
        elif not connection.is_lingering:
            connection.is_lingering = True
            with contextlib.suppress(OSError, RuntimeError):
                self._transport.write_eof()
                self._transport.resume_reading()
            connection.loop.call_later(_LINGER_SECONDS, self._transport.abort)


def on_hang_up(act: Callable[[], object]) -> None:
    """Do something when the terminal is closed, unless that is ignored, as nohup has it."""
    number = getattr(signal, "SIGHUP", None)
    is_main = threading.current_thread() is threading.main_thread()
    if number is not None and is_main and signal.getsignal(number) is signal.SIG_DFL:
        signal.signal(number, lambda *_: act())


class Server(uvicorn.Server):
    """Ends gently: first it says that it is going, then it listens no more, then it waits for what is worked on."""

    def __init__(self, config: uvicorn.Config, leaving: Any) -> None:
        super().__init__(config)
        self._leaving = leaving
        self._asked = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or at the second signal, end."""
        self._asked += 1
        self._leaving()
        if self._asked > 1:
            self.should_exit = self.force_exit = True
            return
        # An interrupt is a person's, who waits.
        if sig == signal.SIGINT:
            self.should_exit = True
            return
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, _STRAGGLERS_SECONDS, self._stop_listening)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end; a terminal that is closed asks for it as SIGTERM does."""
        on_hang_up(lambda: self.handle_exit(signal.SIGTERM, None))
        await super().serve(sockets)

    def _stop_listening(self) -> None:
        self.should_exit = True


async def read_body(request: Any, most: int, name: str) -> bytes:
    """Return the body of a request.

    Raises
    ------
    Refusal
        ``body_too_large``, before more is read than is accepted; ``encoded_body`` for what must be inflated.
    """
    if BODY in request.scope:
        read: bytes = request.scope[BODY]
        return read
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        message = "the body has a Content-Encoding; send it as it is"
        raise Refusal(415, "encoded_body", message, close=True)
    announced = request.headers.get("content-length")
    if announced is not None and announced.isdigit() and int(announced) > most:
        raise too_large(name, most, int(announced))
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_large(name, most, None)
        parts.append(part)
    return b"".join(parts)
