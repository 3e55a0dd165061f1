# SPDX-License-Identifier: Apache-2.0
"""Pictures of tasks from the one Label Studio that the server was told of, and from nowhere else.

What a client writes decides nothing but a path there: the place is the option's, looked up once and dialled as it was
found. No redirect is followed, no proxy is asked, the token goes nowhere else, and bytes and seconds are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from segship.errors import BackendUnavailable, ImageError, InputError, option, shown
from segship.serve.errors import Refusal, overloaded

CONNECT_SECONDS, FETCH_SECONDS = 5.0, 10.0
_AT_ONCE = 8
_CHUNK = 65_536
# Where Label Studio has pictures; whoever writes tasks must not be able to ask for anything with the token.
_PATH = re.compile(r"/(?:data|storage-data|tasks|projects)/[\w.~%!$&'()*+,;=:@/?-]{1,2000}", re.ASCII)
_PATH_SAFE = "/%?=&:@!$'()*+,;~"


class Fetcher:
    """The way to one Label Studio.

    Parameters
    ----------
    address
        Such as http://localhost:8081.
    token
        Of a user there; nothing is sent when left out.
    most_bytes
        Of a picture.

    Raises
    ------
    InputError
        ``bad_option`` for what is no address.
    """

    def __init__(self, address: str, token: str | None, most_bytes: int) -> None:
        parts = urlsplit(address)
        try:
            port = parts.port
        except ValueError:
            port = -1
        is_plain = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
        if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain or port == -1:
            message = f"{option('label_studio')} is {shown(address)}; accepted is one like http://localhost:8081"
            raise InputError(message, code="bad_option")
        self._origin = address.rstrip("/")
        self._host, self._is_secure = parts.hostname, parts.scheme == "https"
        self._port = port or (443 if self._is_secure else 80)
        self._token, self._most = token, most_bytes
        self._pool = ThreadPoolExecutor(_AT_ONCE, "segship-fetch")
        self._running = 0
        self._found: list[Any] = []

    def path_of(self, text: str) -> str:
        """Return the path of a picture at this place.

        Raises
        ------
        InputError
            ``foreign_address`` for every other place, and for what is no picture's path.
        """
        path = quote(text.removeprefix(self._origin) if text.startswith(self._origin + "/") else text, safe=_PATH_SAFE)
        plain = unquote(path).replace("\\", "/")
        steps = plain.partition("?")[0].split("/")
        if _PATH.fullmatch(path) is None or not plain.isprintable() or any(step in (".", "..") for step in steps):
            message = (
                f"the picture of a task is at {shown(text)}; accepted are paths of uploaded pictures of the Label "
                "Studio that the server was started for, and data: addresses"
            )
            raise InputError(message, code="foreign_address")
        return path

    async def fetch(self, text: str) -> bytes:
        """Return the bytes of a picture.

        Raises
        ------
        InputError
            As of `path_of`; an ImageError ``too_many_bytes``.
        BackendUnavailable
            ``not_fetched``.
        Refusal
            ``overloaded``, ``deadline_exceeded``.
        """
        path, line = self.path_of(text), _Line()
        if self._running >= _AT_ONCE:
            raise overloaded("fetch", self._running, _AT_ONCE, 1)
        self._running += 1
        work = asyncio.get_running_loop().run_in_executor(self._pool, self._get, path, line)
        # Counted until the thread is free, which is soon after its line was cut.
        work.add_done_callback(self._leave)
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                return await asyncio.shield(work)
        except TimeoutError:
            message = f"Label Studio did not send the picture within {FETCH_SECONDS:g} seconds; try again"
            raise Refusal(504, "deadline_exceeded", message) from None
        finally:
            line.cut()

    def _leave(self, work: asyncio.Future[bytes]) -> None:
        self._running -= 1
        # Perhaps nobody waits for it any more, which asyncio would complain of.
        if not work.cancelled():
            work.exception()

    def _get(self, path: str, line: _Line) -> bytes:
        ends = time.monotonic() + FETCH_SECONDS
        try:
            line.hold(self._dial(ends))
            with contextlib.closing(http.client.HTTPConnection(self._host, self._port)) as connection:
                connection.sock = line.secured(self._host) if self._is_secure else line.socket
                fields = {"Accept": "image/*", "Connection": "close"}
                if self._token is not None:
                    fields["Authorization"] = f"Token {self._token}"
                connection.request("GET", path, headers=fields)
                with contextlib.closing(connection.getresponse()) as response:
                    return self._read(response, line, ends)
        except (OSError, http.client.HTTPException, ValueError) as error:
            message = f"the picture could not be fetched from Label Studio: {type(error).__name__}"
            raise BackendUnavailable(message, code="not_fetched") from None
        finally:
            line.close()

    def _read(self, response: http.client.HTTPResponse, line: _Line, ends: float) -> bytes:
        if response.status != 200:
            hint = ", and is not followed elsewhere" if 300 <= response.status < 400 else ""
            message = f"Label Studio answers with the status {response.status}{hint}; give pictures that it has itself"
            raise BackendUnavailable(message, code="not_fetched")
        data = bytearray()
        while part := response.read1(_CHUNK):
            data += part
            if len(data) > self._most:
                message = f"the picture has more bytes than {self._most:,}; at most so many are accepted"
                raise ImageError(message, code="too_many_bytes")
            line.allow(ends - time.monotonic())
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return bytes(data)

    def _dial(self, ends: float) -> socket.socket:
        # Looked up once: a name that means another place later is of no use to anybody.
        self._found = self._found or socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        error: OSError = ConnectionError("no address")
        for family, kind, protocol, _, place in self._found:
            one = socket.socket(family, kind, protocol)
            try:
                one.settimeout(min(CONNECT_SECONDS, max(0.01, ends - time.monotonic())))
                one.connect(place)
                return one
            except OSError as failure:
                one.close()
                error = failure
        raise error


class _Line:
    """The socket of one fetch, which another thread may cut."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self._is_cut = False

    def hold(self, one: socket.socket) -> None:
        self.socket = one
        if self._is_cut:
            raise TimeoutError

    def secured(self, host: str) -> socket.socket:
        assert self.socket is not None
        self.socket = ssl.create_default_context().wrap_socket(self.socket, server_hostname=host)
        return self.socket

    def allow(self, seconds: float) -> None:
        if seconds <= 0 or self.socket is None:
            raise TimeoutError
        self.socket.settimeout(min(seconds, CONNECT_SECONDS))

    def cut(self) -> None:
        self._is_cut = True
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
