# SPDX-License-Identifier: Apache-2.0
"""A load generator with an open loop: requests are sent when they are due, whether or not others were answered.

A closed loop sends nothing while it waits, and so hides the stalls that people feel. Times count from when a request
was due, not from when there was a connection for it.
"""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Sample:
    """One request: when it was due and how long it took, in seconds, its status, and when to come again."""

    due: float
    seconds: float
    status: int
    retry_after: float | None = None
    body: bytes = b""


@dataclass(slots=True)
class Line:
    """One connection that is kept."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes, keep_body: bool = False) -> tuple[int, dict[bytes, bytes], bytes]:
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split(b" ", 2)[1])
        fields = {
            name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:] if line)
        }
        if fields.get(b"transfer-encoding") == b"chunked":
            body = await self._chunks()
        else:
            body = await self.reader.readexactly(int(fields.get(b"content-length", 0)))
        return status, fields, body if keep_body else b""

    async def _chunks(self) -> bytes:
        parts = []
        while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
            parts.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return b"".join(parts)

    def close(self) -> None:
        self.writer.close()


def request(method: str, path: str, body: bytes = b"", **fields: str) -> bytes:
    """The bytes of a request."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


@dataclass(slots=True)
class Pool:
    """Connections to one port, as many as are needed at once."""

    port: int
    free: list[Line] = field(default_factory=list)

    async def ask(self, data: bytes, keep_body: bool = False) -> tuple[int, dict[bytes, bytes], bytes]:
        """One request; status 0 when the connection ended before the answer did."""
        line = self.free.pop() if self.free else await connect(self.port)
        try:
            status, fields, body = await line.ask(data, keep_body)
        except (OSError, asyncio.IncompleteReadError):
            line.close()
            return 0, {}, b""
        except BaseException:
            line.close()
            raise
        if fields.get(b"connection") == b"close":
            line.close()
        else:
            self.free.append(line)
        return status, fields, body

    def close(self) -> None:
        for line in self.free:
            line.close()
        self.free.clear()


async def connect(port: int) -> Line:
    return Line(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 24))


async def open_loop(port: int, data: bytes, rate: float, seconds: float, seed: int = 0) -> list[Sample]:
    """Send the same request at random moments, so many a second on average; returns all by when they were due."""
    loop, pool, draw = asyncio.get_running_loop(), Pool(port), random.Random(seed)
    samples: list[Sample] = []

    async def one(due: float) -> None:
        status, fields, _ = await pool.ask(data)
        after = fields.get(b"retry-after")
        samples.append(Sample(due - began, loop.time() - due, status, None if after is None else float(after)))

    began = due = loop.time()
    tasks = []
    while (due := due + draw.expovariate(rate)) < began + seconds:
        await asyncio.sleep(due - loop.time())
        tasks.append(loop.create_task(one(due)))
    await asyncio.gather(*tasks)
    pool.close()
    return sorted(samples, key=lambda sample: sample.due)


async def closed_loop(port: int, data: bytes, connections: int, seconds: float) -> float:
    """How many requests a second are answered to so many connections that each ask again at once."""
    loop = asyncio.get_running_loop()
    ends, count = loop.time() + seconds, 0

    async def one() -> None:
        nonlocal count
        line = await connect(port)
        while loop.time() < ends:
            status, _, _ = await line.ask(data)
            assert status == 200, status
            count += 1
        line.close()

    began = loop.time()
    await asyncio.gather(*(one() for _ in range(connections)))
    return count / (loop.time() - began)


def quantile(samples: list[float], part: float) -> float:
    """The value that this part of all stays at or below."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]
