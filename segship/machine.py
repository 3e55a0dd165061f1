# SPDX-License-Identifier: Apache-2.0
"""The machine: what a measured number stands beside, and work that is shared among processes, in order.

Describing it reads what the system says and runs nothing, so that it costs a measured process no time and no memory.
`in_order` starts processes only where workers are asked for; `run_limited` reads what may be hostile in one that can
take neither the memory nor the time of this one.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from segship.errors import BackendUnavailable, InputError, shown

if TYPE_CHECKING:
    from concurrent.futures import Future

_CPUINFO = Path("/proc/cpuinfo")
_INTERESTING_FEATURES = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "bf16",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as far as speed depends on it.

    In virtual machines the name of the processor is often a brand alone, so family and model stand beside it: numbers
    of the x86 design, such as 25 and 17, and None elsewhere. ``features`` are instruction sets that fast arithmetic may
    use, ``usable_cores`` those that this process may use. ``memory_bytes`` is None where the system does not say.
    """

    cpu: str
    cpu_family: int | None
    cpu_model: int | None
    features: tuple[str, ...]
    usable_cores: int
    memory_bytes: int | None
    platform: str

    @property
    def processor(self) -> str:
        """The processor with its family and model, if it has such numbers: the name that checks of backends carry."""
        return self.cpu if self.cpu_family is None else f"{self.cpu} (family {self.cpu_family}, model {self.cpu_model})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can carry."""
        return {**asdict(self), "features": list(self.features)}

    def __str__(self) -> str:
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 2**30:.0f} GiB"
        features = f", {' '.join(self.features)}" if self.features else ""
        return f"{self.processor}, {self.usable_cores} cores{memory}{features}, {self.platform}"


def usable_cores() -> int:
    """Return how many cores this process may use, which in a container is often fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else (os.cpu_count() or 1)


def describe_machine() -> Machine:
    """Return this machine.

    Examples
    --------
    >>> describe_machine().usable_cores >= 1
    True
    """
    flags = (cpu_field("flags") or cpu_field("features") or "").split()
    return Machine(
        cpu=cpu_field("model name") or platform.processor() or platform.machine(),
        cpu_family=_number(cpu_field("cpu family")),
        cpu_model=_number(cpu_field("model")),
        features=tuple(name for name in _INTERESTING_FEATURES if name in flags),
        usable_cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        platform=f"{platform.system()} {platform.machine()}",
    )


def cpu_field(name: str) -> str | None:
    """Return a field of the first processor in Linux' own list; None where there is no such list or field."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE | re.IGNORECASE)
    return found[1].strip() if found else None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # Windows has no sysconf, and some systems not these names.
    except (AttributeError, ValueError, OSError):
        return None


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

    Where None is asked for, one for each usable core, up to 8, and none for few items; refuses others as
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

    ``work`` is a function of a module, since it is handed to other processes by name. Without workers it runs in this
    process, item by item as answers are asked for.

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


# The package's own __init__ is left out: it imports numpy and OpenCV, which take more memory than the limit.
_LIMITED = """
import gc, sys, types
# It lives for one answer, so looking for cycles is for nothing.
gc.disable()
folder, call, argument, memory, seconds = sys.argv[1:]
package = sys.modules["segship"] = types.ModuleType("segship")
package.__path__ = [folder]
try:
    import resource
    for limit, most in (("RLIMIT_AS", memory), ("RLIMIT_CPU", seconds), ("RLIMIT_CORE", 0)):
        if hasattr(resource, limit):
            highest = resource.getrlimit(getattr(resource, limit))[1]
            most = int(most) if highest < 0 else min(int(most), highest)
            resource.setrlimit(getattr(resource, limit), (most, most))
except (ImportError, ValueError, OSError):
    pass
from importlib import import_module
module, _, name = call.partition(":")
sys.stdout.buffer.write(getattr(import_module(module), name)(argument))
"""


def run_limited(call: str, argument: str, *, memory_bytes: int, seconds: int) -> bytes:
    """Run a function of the package in a process of its own, and return the bytes that it returns.

    The process sees the standard library and the package, and is started without what `import segship` loads: some 50
    milliseconds. Windows has no limits of that kind, so there it is apart and unlimited.

    Parameters
    ----------
    call
        ``module:function``; the function takes a text and returns bytes, and its module imports nothing that has to be
        installed.
    argument
        The text.
    memory_bytes, seconds
        Address space and time on the processor that it may take.

    Raises
    ------
    BackendUnavailable
        ``worker_died`` when it reached a limit, or failed; the message says which.
    """
    # Imported here: most commands start no process.
    import subprocess

    arguments = [str(Path(__file__).parent), call, argument, str(memory_bytes), str(seconds)]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LIMITED, *arguments], capture_output=True, stdin=subprocess.DEVNULL
    )
    if done.returncode == 0:
        return done.stdout
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    # The system says so by a signal; Windows has no limits and no such signals.
    if -done.returncode in (getattr(signal, "SIGXCPU", None), getattr(signal, "SIGKILL", None)):
        last = f"it took more than {seconds} seconds, or the system ended it"
    elif "MemoryError" in last:
        last = f"it took more than {memory_bytes >> 20} MiB of memory"
    raise BackendUnavailable(f"a process of its own ended without an answer: {shown(last)}", code="worker_died")
