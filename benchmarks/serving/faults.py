# SPDX-License-Identifier: Apache-2.0
"""A proxy between a client and a server that does to their bytes what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to each connection.

    Attributes
    ----------
    delay, jitter
        Seconds before each part is passed on.
    piece
        The most bytes that are passed on at once.
    pause
        Seconds between pieces.
    reset_after, close_after
        Bytes from the client after which both sides are reset, or closed.
    reset_answer_after
        Bytes from the server after which the client is reset.
    half_close
        The client's side ends after its first bytes.
    black_hole
        Nothing is passed on; "answer" loses only what the server says.
    double_head
        The first line comes twice.
    """

    delay: float = 0.0
    jitter: float = 0.0
    piece: int = 65_536
    pause: float = 0.0
    reset_after: int | None = None
    close_after: int | None = None
    reset_answer_after: int | None = None
    half_close: bool = False
    black_hole: str = ""
    double_head: bool = False


FAULTS = {
    "late": Fault(delay=0.2),
    "uneven": Fault(delay=0.01, jitter=0.1),
    "byte by byte": Fault(piece=1),
    "one byte a second": Fault(piece=1, pause=1.0),
    "reset in the head": Fault(reset_after=20),
    "reset in the body": Fault(reset_after=400),
    "closed in the head": Fault(close_after=20),
    "closed in the body": Fault(close_after=400),
    "reset in the answer": Fault(reset_answer_after=60),
    "half closed": Fault(half_close=True),
    "black hole": Fault(black_hole="both"),
    "answers lost": Fault(black_hole="answer"),
    "first line twice": Fault(double_head=True),
}


class Proxy:
    """Listens on a port of its own, and passes on to another with a fault."""

    def __init__(self, port: int, fault: Fault, seed: int = 0) -> None:
        self._target, self._fault, self._draw = port, fault, random.Random(seed)
        self._passing: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)
        # One turn, in which what was closed is.
        await asyncio.sleep(0.05)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await self._pass_both(reader, writer, there, back)
        finally:
            for side in (writer, back):
                side.close()

    async def _pass_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
    ) -> None:
        fault = self._fault
        both = [
            asyncio.create_task(self._copy(reader, back, fault.reset_after, fault.close_after, True)),
            asyncio.create_task(self._copy(there, writer, fault.reset_answer_after, None, False)),
        ]
        done, waiting = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if fault.half_close and both[0] in done:
            await asyncio.wait(waiting)
        for task in waiting:
            task.cancel()
        if any(not task.cancelled() and task.exception() is None and task.result() for task in done):
            for side in (writer, back):
                reset(side)

    async def _copy(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        reset_after: int | None,
        close_after: int | None,
        is_request: bool,
    ) -> bool:
        """Copy until an end; returns whether both sides are to be reset."""
        fault, seen = self._fault, 0
        lost = fault.black_hole == "both" or (fault.black_hole == "answer" and not is_request)
        with contextlib.suppress(ConnectionError):
            while data := await source.read(min(fault.piece, 65_536)):
                await asyncio.sleep(fault.delay + fault.jitter * self._draw.random())
                for limit in (reset_after, close_after):
                    if limit is not None and seen + len(data) > limit:
                        target.write(data[: limit - seen])
                        await target.drain()
                        return limit is reset_after
                if fault.double_head and is_request and not seen:
                    data = data.partition(b"\r\n")[0] + b"\r\n" + data
                seen += len(data)
                if not lost:
                    target.write(data)
                    await target.drain()
                if fault.half_close and is_request:
                    target.write_eof()
                    return False
                await asyncio.sleep(fault.pause)
        return False


def reset(writer: asyncio.StreamWriter) -> None:
    """Make the end of a connection a reset."""
    line = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
