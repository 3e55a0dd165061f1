# SPDX-License-Identifier: Apache-2.0
"""Queues in front of workers: seats, deadlines, and a word in time to those for whom there is no room.

Of one lane one job is worked on at a time by each of its workers. A request waits for a seat no longer than its
deadline allows, and is refused at once if it would; one that is given up leaves the queue, and if it is worked on
already, keeps its seat until the worker is done with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from segship.serve.errors import Refusal, overloaded
from segship.serve.wire import Header
from segship.serve.workers import Call, Reply, Tell, Worker, WorkerDied

_LEAST_WAIT, _MOST_WAIT = 1.0, 60.0
# After a fault of the machine.
_AGAIN_SECONDS = 1
# How much a new job counts in the mean of how long jobs take.
_NEW = 0.2
# What killed so many workers is asked of no other for so long.
_DEATHS = 2
_POISON_SECONDS = 600.0
_MOST_POISON = 1_000


class PoisonList:
    """What was asked when a worker died; after the second death nobody is asked it for a while."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._deaths: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._clock = clock

    def refuse(self, digest: str) -> None:
        """Raise a `Refusal` for what has killed two workers."""
        deaths, at = self._deaths.get(digest, (0, 0.0))
        if deaths >= _DEATHS and self._clock() - at < _POISON_SECONDS:
            message = f"two workers have died of this; it is refused for {_POISON_SECONDS / 60:g} minutes"
            raise Refusal(422, "poisoned", message)

    def add(self, digest: str) -> None:
        """Count a death."""
        deaths, at = self._deaths.pop(digest, (0, 0.0))
        is_old = self._clock() - at >= _POISON_SECONDS
        self._deaths[digest] = (1 if is_old else deaths + 1), self._clock()
        while len(self._deaths) > _MOST_POISON:
            self._deaths.popitem(last=False)


class Lane:
    """A queue of jobs for one worker.

    Parameters
    ----------
    name
        As metrics and the worker know it.
    worker
        Who works.
    most
        Jobs that wait.
    stuck_seconds
        After so long at one job the worker is ended.
    poison
        What workers have died of, across lanes.
    unclaimed
        Is given answers that nobody waits for any more: what they name would stay for ever.
    """

    def __init__(
        self,
        name: str,
        worker: Worker,
        most: int,
        stuck_seconds: float,
        poison: PoisonList,
        unclaimed: Callable[[Header], None] = lambda header: None,
    ) -> None:
        self.name = name
        self.worker = worker
        self.most = most
        self.mean_seconds = 0.0
        self.jobs = 0
        self._stuck_seconds = stuck_seconds
        self._poison = poison
        self._unclaimed = unclaimed
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._busy = False
        self._followers: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Jobs that wait."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a job is worked on."""
        return self._busy

    def expected_wait(self) -> float:
        """Return in how many seconds a job that comes now would begin."""
        return (len(self._waiting) + self._busy) * self.mean_seconds

    def retry_after(self) -> int:
        """Return in how many whole seconds there is room again, as far as one can tell."""
        return math.ceil(min(max(self.expected_wait(), _LEAST_WAIT), _MOST_WAIT))

    def notice(self, worker: Worker) -> None:
        """Let those that wait know that the worker is there again."""
        if worker is self.worker and worker.ready:
            self._next()

    async def run(
        self,
        job: str,
        header: Header,
        body: bytes = b"",
        *,
        deadline: float,
        digest: str = "",
        tell: Tell | None = None,
    ) -> tuple[Reply, float]:
        """Return a worker's answer, and the seconds that the job has waited.

        Parameters
        ----------
        job, header, body, tell
            As `segship.serve.workers.Worker.call` takes them.
        deadline
            When the answer is of no use any more, as `time.monotonic` counts.
        digest
            Of what is asked, for the list of what workers die of.

        Raises
        ------
        Refusal
            ``overloaded``, ``deadline_exceeded``, ``worker_died``, ``poisoned``, or what the worker has refused.
        """
        if digest:
            self._poison.refuse(digest)
        began = time.monotonic()
        await self._take_seat(deadline)
        waited = time.monotonic() - began
        call = self.worker.ask(self.name, job, header, body, tell)
        try:
            async with asyncio.timeout_at(_loop_time(deadline)):
                reply = await asyncio.shield(call.reply)
        except WorkerDied:
            self._leave_seat()
            if digest:
                self._poison.add(digest)
            message = "the process that worked on this has died, and is started anew; ask again"
            raise Refusal(503, "worker_died", message, retry_after=self.retry_after()) from None
        except (TimeoutError, asyncio.CancelledError) as error:
            self._follow(call, digest)
            if isinstance(error, TimeoutError):
                raise _late() from None
            raise
        self._count(reply.seconds)
        self._leave_seat()
        return _checked(reply), waited

    async def _take_seat(self, deadline: float) -> None:
        if self.worker.ready and not self._busy and not self._waiting:
            self._busy = True
            return
        if len(self._waiting) >= self.most or time.monotonic() + self.expected_wait() > deadline:
            raise overloaded(self.name, len(self._waiting), self.most, self.retry_after())
        seat: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(seat)
        try:
            async with asyncio.timeout_at(_loop_time(deadline)):
                await seat
        except TimeoutError:
            self._give_up(seat)
            raise _late() from None
        except asyncio.CancelledError:
            self._give_up(seat)
            raise

    def _give_up(self, seat: asyncio.Future[None]) -> None:
        with contextlib.suppress(ValueError):
            self._waiting.remove(seat)
        # It was called up in the same moment.
        if seat.done() and not seat.cancelled():
            self._leave_seat()

    def _leave_seat(self) -> None:
        self._busy = False
        self._next()

    def _next(self) -> None:
        while self.worker.ready and not self._busy and self._waiting:
            seat = self._waiting.popleft()
            if not seat.done():
                self._busy = True
                seat.set_result(None)

    def _follow(self, call: Call, digest: str) -> None:
        """Keep the seat of a job that nobody waits for until the worker is done with it, and end one that hangs."""
        self.worker.give_up(call)
        task = asyncio.get_running_loop().create_task(self._see_through(call, digest))
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def _see_through(self, call: Call, digest: str) -> None:
        try:
            async with asyncio.timeout(self._stuck_seconds):
                reply = await asyncio.shield(call.reply)
            self._count(reply.seconds)
            self._unclaimed(reply.header)
        except TimeoutError:
            self._poison.add(digest)
            self.worker.kill()
        except WorkerDied:
            pass
        self._leave_seat()

    def _count(self, seconds: float) -> None:
        self.jobs += 1
        self.mean_seconds += (_NEW if self.jobs > 1 else 1.0) * (seconds - self.mean_seconds)


def _loop_time(deadline: float) -> float:
    return asyncio.get_running_loop().time() + deadline - time.monotonic()


def _late() -> Refusal:
    return Refusal(504, "deadline_exceeded", "there was no answer before the deadline; ask again, or allow more time")


def _checked(reply: Reply) -> Reply:
    error = reply.header.get("error")
    if error is None:
        return reply
    status: int = reply.header["status"]
    retry_after = _AGAIN_SECONDS if status == 503 else None
    raise Refusal(status, error["code"], error["message"], kind=error["kind"], retry_after=retry_after)
