# SPDX-License-Identifier: Apache-2.0
"""Train ``tiny`` on while the machine has nothing else to do, from the weights that ship or from the last save.

    python -m recipes.tiny.idle start --drawings BANK --photographs BANK     # `make tiny-idle`
    python -m recipes.tiny.idle pause                                        # `make tiny-pause`

One group of processes at the lowest priority makes the pool of scenes, then trains and lets the pool grow beside it.
There is no end to the schedule: the learning rate stays where it is, and the averaged weights in
``RUNS/idle/tiny.safetensors`` are what a long run would have annealed to. A pause is a kill: what was written since the
last save, a few minutes at most, is lost. Linux and macOS.
"""

from __future__ import annotations

import argparse
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent
FIRST_SCENE, SCENES, FIRST_SHARE = 100_000, 10_000, 1_000
"""Seed of the pool's first scene; how many it grows to; and how many there are before training begins."""
HELD_OUT_SCENE, HELD_OUT = 1_000, 250
LEARNING_RATE, AVERAGE_DECAY = 2e-4, 0.9995


class Idle:
    """The idle training of a folder: a group of processes, its number in a file, and a lock that they all hold."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.number, self.lock, self.log = (runs / f"idle.{name}" for name in ("pid", "lock", "log"))
        self._worker: subprocess.Popen[bytes] | None = None

    def group(self) -> int | None:
        """Return the number of the group of processes that trains, or None."""
        try:
            with self.lock.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(self.number.read_text())
        return None

    def start(self, command: Sequence[str]) -> int:
        """Start a command at the lowest priority unless one runs already; returns the number of its group.

        Raises
        ------
        SystemExit
            On a machine of continuous integration, which idles for nobody.
        """
        if os.environ.get("CI"):
            raise SystemExit("CI is set in the environment; idle training is for a machine of one's own")
        self.runs.mkdir(parents=True, exist_ok=True)
        with self.lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(self.number.read_text())
            # The lock outlives this process in those that inherit it, and is free once the last of them has ended.
            with self.log.open("a") as log:
                self._worker = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    pass_fds=[lock.fileno()], preexec_fn=lowest_priority, cwd=FOLDER.parents[1],
                )  # fmt: skip
            partial = self.number.with_suffix(".part")
            partial.write_text(f"{self._worker.pid}\n")
            partial.rename(self.number)
        return self._worker.pid

    def pause(self) -> bool:
        """End the group at once, and wait until its last process is gone; returns whether there was one."""
        group = self.group()
        if group is None:
            return False
        os.killpg(group, signal.SIGKILL)
        if self._worker is not None:
            self._worker.wait()
        with self.lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        return True


def lowest_priority() -> None:
    """Leave the processor to everyone else; the class for that is Linux's."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def work(runs: Path, drawings: Path, photographs: Path | None, threads: int) -> None:
    """Make what is missing of the pool, train, and let the pool grow; this does not end by itself."""
    import torch

    from recipes.tiny.scenes import write_pool
    from recipes.tiny.train import Trainer, TrainOptions

    train, held_out = runs / "pool" / "train", runs / "pool" / "validation"
    banks = {"drawings": drawings, "photographs": photographs}
    write_pool(held_out, HELD_OUT, first=HELD_OUT_SCENE, size=384, held_out=True, **banks)
    write_pool(train, FIRST_SHARE, first=FIRST_SCENE, size=384, **banks)
    # Not a daemon: it has children of its own.
    growing = {"first": FIRST_SCENE, "size": 384, **banks}
    multiprocessing.Process(target=write_pool, args=(train, SCENES), kwargs=growing).start()
    torch.set_num_threads(threads)
    options = TrainOptions(
        train, held_out, runs / "idle", init=FOLDER / "tiny.safetensors", steps=10**7, image_size=384,
        learning_rate=LEARNING_RATE, ema_decay=AVERAGE_DECAY, validate_every_minutes=30, seed=time.time_ns() % 10**6,
        iou_phase_from=2,
    )  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options)
    print(f"{time.strftime('%F %T')} step {trainer.step if trainer.resume() else 0}", flush=True)
    trainer.run()


def main() -> None:
    """Read the command line; start, pause or work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("start", "pause", "work"))
    parser.add_argument("--runs", type=Path, default=FOLDER / "runs", help="folder of the pool and the run")
    parser.add_argument("--drawings", type=Path, help="a bank that recipes.tiny.drawings wrote")
    parser.add_argument("--photographs", type=Path, help="a bank that recipes.tiny.surfaces wrote")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    idle = Idle(args.runs.resolve())
    if args.what == "pause":
        if idle.pause():
            print("idle training of tiny is paused; `make tiny-idle` goes on")
    elif args.drawings is None:
        parser.error("--drawings is missing; give the bank that `make tiny-idle` makes")
    elif args.what == "work":
        work(idle.runs, args.drawings, args.photographs, args.threads)
    else:
        command = [sys.executable, "-m", "recipes.tiny.idle", "work", "--runs", str(idle.runs)]
        command += ["--drawings", str(args.drawings.resolve()), "--threads", str(args.threads)]
        if args.photographs is not None:
            command += ["--photographs", str(args.photographs.resolve())]
        print(f"idle training of tiny: process group {idle.start(command)}, log {idle.log}; `make tiny-pause` stops it")


if __name__ == "__main__":
    main()
