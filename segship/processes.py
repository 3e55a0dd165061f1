# SPDX-License-Identifier: Apache-2.0
"""Work shared among processes, for what holds Python's lock: drawing polygons, counting, decoding many files.

Answers come in the order of the items and only so many are ahead, so that memory does not grow with the work. Threads
for short work on pixels are `segship.cores`.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, TypeVar

from segship.backends import usable_cores
from segship.errors import BackendUnavailable, InputError

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MOST_WORKERS = 64
_USUAL_MOST = 8
# Starting processes takes about half a second, and most items some hundredths.
_LEAST_ITEMS = 50
# Items that wait or are worked on, for each process.
_AHEAD = 2


def count_workers(asked: int | None, items: int) -> int:
    """Return how many processes work on so many items; 0 is this process itself.

    Parameters
    ----------
    asked
        What the user wants; None takes one for each usable core, up to 8, and none for few items.

    Raises
    ------
    InputError
        ``bad_option``.
    """
    if asked is None:
        cores = min(usable_cores(), _USUAL_MOST)
        return cores if cores > 1 and items >= _LEAST_ITEMS else 0
    if not 0 <= asked <= MOST_WORKERS:
        message = f"workers is {asked}; accepted are 0, which means none besides this process, to {MOST_WORKERS}"
        raise InputError(message, code="bad_option")
    return min(asked, items)


def in_order(work: Callable[[Item], Answer], items: Sequence[Item], workers: int) -> Generator[Answer]:
    """Yield what a function gives for each item, in their order.

    Parameters
    ----------
    work
        A function of a module, since it is handed to other processes by name.
    workers
        Processes; 0 works in this one, item by item as answers are asked for.

    Raises
    ------
    BackendUnavailable
        ``worker_died`` when a process ended, most often for lack of memory.
    """
    if not workers:
        yield from map(work, items)
        return
    # Imported here: most commands start no process, and would pay for it with every start.
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
    from multiprocessing import get_context

    # Started anew instead of forked: a fork of a process with the threads of a runtime may hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
    waiting: deque[Future[Answer]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        message = f"one of {workers} worker processes ended, most often for lack of memory; ask for fewer workers"
        raise BackendUnavailable(message, code="worker_died") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
