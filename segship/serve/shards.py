# SPDX-License-Identifier: Apache-2.0
"""Several server processes behind one port: the system deals connections out, and requests find their picture.

Each process has workers and a cache of its own. A picture belongs to the process that its digest names, and its handle
begins with that process' number, so that a request which comes to another is passed on to it over a socket of the
machine; the same picture is still encoded once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h11
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from segship.errors import BackendUnavailable
from segship.serve.errors import MODEL_FAILED, Refusal
from segship.serve.options import ServeOptions, make_serve_options

PASSED_ON = "segship-passed-on"
"""Field of a request that another process has passed on: the secret that all of them share."""

EXIT_LOST = 4
"""Exit code of a process that has no model left, as the command line has it."""

_OF_A_HANDLE = 2
_HOP_BY_HOP = {b"connection", b"content-length", b"transfer-encoding", b"keep-alive", b"expect"}
_LONGEST_PAUSE = 10.0
_BLOCK = 65_536


@dataclass(frozen=True, slots=True)
class Shard:
    """Which of several processes this one is.

    Attributes
    ----------
    index, count
        Its number, and how many there are.
    folder
        Where the sockets of all of them lie.
    secret
        What they tell each other, and nobody else can know.
    """

    index: int = 0
    count: int = 1
    folder: str = ""
    secret: str = ""

    def new_handle(self) -> str:
        """Return a handle of a picture that belongs here: 120 random bits behind the number of this process."""
        return f"{self.index:02x}{secrets.token_hex(15)}"

    def of_handle(self, handle: str) -> int:
        """Return the process that a handle names, this one where it names none."""
        digits = handle[:_OF_A_HANDLE]
        number = int(digits, 16) if len(digits) == _OF_A_HANDLE and set(digits) <= set("0123456789abcdef") else -1
        return number if 0 <= number < self.count else self.index

    def of_digest(self, digest: str) -> int:
        """Return the process that encodes a picture."""
        return int(digest[:8], 16) % self.count

    def is_passed_on(self, request: Request) -> bool:
        """Return whether another process has passed a request on."""
        found = request.headers.get(PASSED_ON, "")
        return bool(self.secret) and secrets.compare_digest(found.encode("latin-1"), self.secret.encode())

    def socket_of(self, index: int) -> str:
        """Return the path of a process' socket."""
        return str(Path(self.folder) / f"{index}.sock")

    async def pass_on(self, index: int, request: Request, body: bytes) -> Response:
        """Ask another process, and return its answer as it comes.

        Raises
        ------
        Refusal
            ``worker_died`` while it is being started anew.
        """
        try:
            return await self._ask(index, request.method, _target(request), request.headers.raw, body)
        except (OSError, h11.ProtocolError):
            message = "the process that has this picture is being started anew; send the picture again"
            raise Refusal(503, "worker_died", message, retry_after=1) from None

    async def _ask(
        self, index: int, method: str, target: str, fields: list[tuple[bytes, bytes]], body: bytes
    ) -> Response:
        line = await _Line.open(self.socket_of(index))
        kept = [(name, value) for name, value in fields if name not in _HOP_BY_HOP and name != PASSED_ON.encode()]
        kept += [(PASSED_ON.encode(), self.secret.encode()), (b"content-length", str(len(body)).encode())]
        try:
            line.send(h11.Request(method=method, target=target, headers=[*kept, (b"connection", b"close")]))
            if body:
                line.send(h11.Data(data=body))
            line.send(h11.EndOfMessage())
            answer = await line.next_event()
        except BaseException:
            line.close()
            raise
        assert isinstance(answer, h11.Response)
        # Its own door has added the rest.
        headers = {"content-type": "application/json", "cache-control": "no-store"}
        for name, value in answer.headers:
            if name in (b"content-type", b"retry-after"):
                headers[name.decode()] = value.decode("latin-1")
        return StreamingResponse(line.body(), answer.status_code, headers)

    async def metrics(self, own: bytes, request: Request) -> bytes:
        """Return the metrics of all processes, each with its number."""
        texts = {self.index: own}
        for index in range(self.count):
            if index != self.index:
                answer = await self.pass_on(index, request, b"")
                assert isinstance(answer, StreamingResponse)
                texts[index] = b"".join([bytes(part) async for part in answer.body_iterator])  # type: ignore[arg-type]
        registry = CollectorRegistry()
        registry.register(_Together({index: text.decode() for index, text in texts.items()}))
        return generate_latest(registry)


class _Together:
    """Metrics of several processes, a family each."""

    def __init__(self, texts: dict[int, str]) -> None:
        self._texts = texts

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> list[Any]:
        families: dict[str, Any] = {}
        for index, text in sorted(self._texts.items()):
            for family in text_string_to_metric_families(text):
                samples = [one._replace(labels={**one.labels, "process": str(index)}) for one in family.samples]
                if family.name in families:
                    families[family.name].samples.extend(samples)
                else:
                    family.samples = samples
                    families[family.name] = family
        return list(families.values())


class _Line:
    """A request to another process: what h11 makes of it, over a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._state = reader, writer, h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, path: str) -> _Line:
        return cls(*await asyncio.open_unix_connection(path))

    def send(self, event: h11.Event) -> None:
        self._writer.write(self._state.send(event) or b"")

    async def next_event(self) -> Any:
        while (event := self._state.next_event()) is h11.NEED_DATA:
            self._state.receive_data(await self._reader.read(_BLOCK))
        return event

    async def body(self) -> AsyncIterator[bytes]:
        try:
            while isinstance(event := await self.next_event(), h11.Data):
                yield bytes(event.data)
        finally:
            # Whoever stops reading has gone, and the other process shall know.
            self.close()

    def close(self) -> None:
        self._writer.close()


def _target(request: Request) -> str:
    raw: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return (raw + b"?" + query if query else raw).decode("latin-1")


class _Processes:
    """The server processes, kept alive until they shall end."""

    def __init__(self, options: ServeOptions, port: int, folder: str) -> None:
        self._told = {**options.to_dict(), "port": port, "cache_bytes": options.cache_bytes // options.processes}
        self._count = options.processes
        self._shared = {"folder": folder, "secret": secrets.token_hex(16)}
        self._running: list[subprocess.Popen[bytes]] = []
        self._asked = 0

    def run(self) -> int:
        """Run until somebody asks for the end; returns the exit code."""
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, self._end)
        from segship.serve.protocol import on_hang_up

        on_hang_up(lambda: self._end(signal.SIGTERM, None))
        self._running = [self._start(index) for index in range(self._count)]
        pauses = [0.0] * self._count
        while not self._asked:
            time.sleep(0.1)
            for index, process in enumerate(self._running):
                if process.poll() == EXIT_LOST and not self._asked:
                    # It will be no better in another.
                    self._end(signal.SIGTERM, None)
                elif process.poll() is not None and not self._asked:
                    time.sleep(pauses[index])
                    pauses[index] = min(2 * pauses[index] + 0.5, _LONGEST_PAUSE)
                    self._running[index] = self._start(index)
        codes = [process.wait() for process in self._running]
        if EXIT_LOST in codes:
            raise BackendUnavailable("there is nothing left to serve; the log says why", code=MODEL_FAILED)
        return max(codes, key=abs)

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        told = {"options": self._told, "shard": {"index": index, "count": self._count, **self._shared}}
        command = [sys.executable, "-m", "segship.serve.shards"]
        # Not of the terminal's group: an interrupt there is for this process, which passes it on.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        process.stdin.write(json.dumps(told).encode() + b"\n")
        # Its end is the end of this process, and then the other's.
        process.stdin.flush()
        return process

    def _end(self, number: int, frame: object) -> None:
        self._asked += 1
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def serve_several(options: ServeOptions, started: Callable[[str], None] | None) -> int:
    """Run as many server processes as options say, and return their exit code; errors are those of `serve`."""
    from segship.serve.server import address_of, listen

    if not hasattr(socket, "SO_REUSEPORT"):
        message = "this system deals no connections out to several processes; use one"
        raise BackendUnavailable(message, code="backend_unavailable")
    folder = tempfile.mkdtemp(prefix="segship-shards-")
    try:
        # Bound and never listened on: it keeps the port for those that will.
        with listen(options, is_shared=True, backlog=None) as held:
            if started is not None:
                started(address_of(held))
            return _Processes(options, held.getsockname()[1], folder).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _serve_one(told: dict[str, Any]) -> int:
    from segship.serve.server import find_models, listen, serve_on

    options = make_serve_options(told["options"])
    shard = Shard(**told["shard"])
    own = shard.socket_of(shard.index)
    Path(own).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as inside, listen(options, is_shared=True) as listener:
        inside.bind(own)
        inside.listen()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        models = find_models(options.bundle)
        return await serve_on(listener, replace(options, processes=1), models, None, shard=shard, inside=inside)


def _end_with_parent() -> None:
    """Ask this process to end when the one that started it is gone."""
    # Not through sys.stdin: an interpreter that ends wants its lock.
    with contextlib.suppress(OSError):
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run one of several processes, as it is told on standard input."""
    told = json.loads(sys.stdin.buffer.readline())
    try:
        code = asyncio.run(_serve_one(told))
    except BackendUnavailable as error:
        if error.code != MODEL_FAILED:
            raise
        print(f"segship serve: {error}", file=sys.stderr, flush=True)
        code = EXIT_LOST
    raise SystemExit(code)


if __name__ == "__main__":
    main()
