# SPDX-License-Identifier: Apache-2.0
"""A cluster that works on shards: Ray carries out one shard a call, and what is done is decided by the ledger alone.

Ray is told to repeat nothing: a call that was lost with its process or machine is an attempt without a verdict, and its
shard is asked for again. Pictures are worked on in a process below that of Ray's, so that a picture's death is seen and
noted as on one machine. The run's folder must be one that every machine sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from segship.errors import BackendUnavailable, SegshipError
from segship.run.local import ITEM_TIMEOUT, Process, read_error, told_error
from segship.run.stages import Occupancy, Schedule

# Of one shard, before somebody should look at the machines.
_MOST_LOST = 5


@dataclass(slots=True)
class RayExecutor:
    """Works in the processes of a Ray cluster.

    Attributes
    ----------
    address
        Of the cluster, as ``ray.init`` takes it; that of this process, or a new one here, when None.
    workers
        Shards that are worked on at once; as many as the cluster has processors when None.
    gpus
        Of a GPU that each takes.
    schedule
        How a worker's stages follow each other.
    item_timeout
        Seconds after which a picture is given up.
    occupancy
        How busy the stages were.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0
    schedule: Schedule = "serial"
    item_timeout: float = ITEM_TIMEOUT
    occupancy: Occupancy = field(default_factory=Occupancy)
    _lost: dict[int, int] = field(default_factory=dict)

    def run(self, place: str, shards: Iterable[int], told: Callable[[int], None]) -> None:
        """Work on shards; see `segship.run.local.Executor`.

        Raises
        ------
        BackendUnavailable
            ``ray_missing``; ``worker_died`` when a shard was lost again and again.
        SegshipError
            What a worker has raised.
        """
        ray = _ray()
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False)
        workers = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        remote = ray.remote(max_retries=0, num_cpus=1, num_gpus=self.gpus)(work_on_shard)
        waiting, running = list(reversed(list(shards))), dict[Any, int]()
        while waiting or running:
            while waiting and len(running) < workers:
                shard = waiting.pop()
                running[remote.remote(place, shard, self.schedule, self.item_timeout)] = shard
            done, _ = ray.wait(list(running), num_returns=1)
            shard = running.pop(done[0])
            if self._take(ray, done[0], shard):
                told(shard)
            else:
                waiting.append(shard)

    def _take(self, ray: Any, call: Any, shard: int) -> bool:
        """Return whether a shard is committed, by the answer of a call."""
        try:
            answer = ray.get(call)
        # A process or a machine was lost; Ray has many words for that.
        except ray.exceptions.RayError as lost:
            self._lost[shard] = self._lost.get(shard, 0) + 1
            if self._lost[shard] >= _MOST_LOST:
                message = f"shard {shard} was lost {_MOST_LOST} times ({type(lost).__name__}); look at the machines"
                raise BackendUnavailable(message, code="worker_died") from None
            return False
        if "error" in answer:
            raise read_error(answer["error"])
        self.occupancy.add(answer["occupancy"])
        return True


def work_on_shard(place: str, shard: int, schedule: Schedule, item_timeout: float) -> dict[str, Any]:
    """Have one shard worked on by a process that this one of the cluster watches.

    Returns
    -------
    dict
        Either the ``error`` that was raised, or the stages' ``occupancy``.
    """
    # One at a time: a cluster's process may be asked for another run.
    key = place, schedule, item_timeout
    if key not in _HELD:
        for process in _HELD.values():
            process.close()
        _HELD.clear()
        _HELD[key] = Process(place, schedule, item_timeout)
    process = _HELD[key]
    process.occupancy = Occupancy()
    try:
        process.finish(shard)
    except SegshipError as error:
        return {"error": told_error(error)}
    return {"occupancy": process.occupancy.to_dict()}


_HELD: dict[tuple[str, Schedule, float], Process] = {}
"""The worker of this process of the cluster, whose model is loaded once."""


def _ray() -> Any:
    if find_spec("ray") is None:
        message = 'the executor ray needs ray, which is not installed; pip install "segship[ray]"'
        raise BackendUnavailable(message, code="ray_missing")
    return import_module("ray")
