# SPDX-License-Identifier: Apache-2.0
"""The server's side of its workers: processes that are started, asked, ended when they hang, and started anew."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

from segship.serve import wire
from segship.serve.wire import Header

# After a worker that failed to start; one that had worked is started again at once.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
# Starts one after another that come to nothing; what has failed so often fails for good.
_MOST_STARTS = 5
_END_SECONDS = 2.0

Tell = Callable[[Header], None]


class WorkerDied(Exception):
    """The process ended before it had answered."""


@dataclass(slots=True)
class Reply:
    """What a worker has answered: a header, or the error in it, and bytes."""

    header: Header
    body: bytes = b""

    @property
    def seconds(self) -> float:
        """How long it was worked on."""
        return float(self.header.get("seconds", 0.0))


@dataclass(slots=True, eq=False)
class Call:
    """One job that a worker was asked for: the answer, or `WorkerDied`, and who is told of parts of it."""

    number: int
    reply: asyncio.Future[Reply]
    tell: Tell | None = None


class Worker:
    """One process of a kind, which is there again soon after it died.

    Parameters
    ----------
    kind
        Key of `segship.serve.worker.KINDS`.
    settings
        What it is told at its start.
    changed
        Is called when it is ready, when it is no longer, and when it has given up.
    module
        What the process runs.
    """

    def __init__(self, kind: str, settings: Header, changed: Callable[[Worker], None], module: str) -> None:
        self.kind = kind
        self.ready = False
        self.description: Header = {}
        self.failure = ""
        self.has_given_up = False
        self.restarts = 0
        self._settings = {"kind": kind, **settings}
        self._changed = changed
        self._module = module
        self._calls: dict[int, Call] = {}
        self._number = 0
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Number of the process that is there now."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process, and keep it alive from now on."""
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """End the process, gently first."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self._end()

    def kill(self) -> None:
        """End a process that hangs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def ask(self, lane: str, job: str, header: Header, body: bytes = b"", tell: Tell | None = None) -> Call:
        """Ask for one job; ``tell`` gets the parts of an answer that come before its end."""
        self._number += 1
        call = Call(self._number, asyncio.get_running_loop().create_future(), tell)
        if self._process is None or not self.ready:
            _fail(call)
            return call
        self._calls[call.number] = call
        assert self._process.stdin is not None
        self._process.stdin.write(wire.pack({**header, "number": call.number, "lane": lane, "job": job}, body))
        return call

    def give_up(self, call: Call) -> None:
        """Say that nobody waits for an answer; it still comes, sooner if the job looks for that."""
        call.tell = None
        if call.number in self._calls and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(wire.pack({"cancel": call.number}))

    async def _keep(self) -> None:
        pause, in_vain = 0.0, 0
        while in_vain < _MOST_STARTS:
            await asyncio.sleep(pause)
            try:
                code = await self._run()
                in_vain = 0 if self.ready else in_vain + 1
                if not self.ready and not self.failure:
                    self.failure = f"its process ended with {code} before it was ready"
            # The system has no room for a process now, which says nothing of the worker.
            except OSError as error:
                self.failure = f"it cannot be started: {error.strerror}"
            finally:
                was_ready = self.ready
                self._lose()
            # One that died at its work is needed at once; one that does not get so far may never.
            pause = 0.0 if was_ready else min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            self.restarts += 1
        self.has_given_up = True
        self._changed(self)

    async def _run(self) -> int:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Not of the terminal's group: an interrupt there is for the server, which ends it in its own time.
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(wire.pack(self._settings))
        try:
            while True:
                header, body = await _receive(process.stdout)
                self._take(header, body)
        except asyncio.IncompleteReadError:
            # The line ends with the process; whoever ends a process that is dead takes its exit code.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _END_SECONDS)
        # A worker that says what is no message is ended.
        except (ConnectionError, ValueError, KeyError, TypeError):
            pass
        finally:
            self.kill()
        return await process.wait()

    def _take(self, header: Header, body: bytes) -> None:
        if "ready" in header:
            self.description, self.failure, self.ready = header["ready"], "", True
            self._changed(self)
            return
        if "failed" in header:
            self.failure = str(header["failed"]["message"])
            return
        call = self._calls.get(int(header["number"]))
        if call is None:
            return
        if "part" in header:
            if call.tell is not None:
                call.tell(header["part"])
            return
        del self._calls[int(header["number"])]
        if not call.reply.done():
            call.reply.set_result(Reply(header, body))

    def _lose(self) -> None:
        was_ready, self.ready = self.ready, False
        calls, self._calls = self._calls, {}
        for call in calls.values():
            _fail(call)
        if was_ready:
            self._changed(self)

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _END_SECONDS)
        except TimeoutError:
            self.kill()
            await process.wait()


def _fail(call: Call) -> None:
    if not call.reply.done():
        call.reply.set_exception(WorkerDied())
        # Perhaps nobody waits for it any more, which asyncio would complain of.
        call.reply.exception()


async def _receive(stream: asyncio.StreamReader) -> tuple[Header, bytes]:
    header, body = wire.sizes(await stream.readexactly(wire.SIZES_BYTES))
    text = await stream.readexactly(header)
    return wire.read_header(text), await stream.readexactly(body) if body else b""
