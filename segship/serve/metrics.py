# SPDX-License-Identifier: Apache-2.0
"""What the server counts, as Prometheus reads it; names of routes and codes only, never what a client wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

import segship

if TYPE_CHECKING:
    from segship.serve.service import Service

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counts of one server.

    Parameters
    ----------
    service
        Is asked for its queues, cache and workers whenever somebody reads the metrics.
    """

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "segship_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self.refusals = Counter("segship_refusals", "Refusals by reason.", ("code",), registry=self.registry)
        self.seconds = Histogram(
            "segship_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Live(service))

    def text(self) -> bytes:
        """Return everything that is counted."""
        return generate_latest(self.registry)


class _Live:
    """What is looked up when it is asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        yield from self._lanes()
        yield from self._cache()
        restarts = CounterMetricFamily("segship_worker_restarts", "Workers that were started anew.", labels=["worker"])
        up = GaugeMetricFamily("segship_worker_ready", "Whether a worker answers.", labels=["worker"])
        for name, worker in self._service.workers.items():
            restarts.add_metric([name], worker.restarts)
            up.add_metric([name], float(worker.ready))
        yield restarts
        yield up
        yield GaugeMetricFamily("segship_resident_bytes", "Memory of the server itself.", value=resident_bytes())
        build = InfoMetricFamily("segship_build", "What runs.", labels=["model"])
        for model in self._service.models.values():
            facts = {"version": segship.__version__, "digest": str(model.description.get("digest", ""))}
            build.add_metric([model.name], facts)
        yield build

    def _lanes(self) -> Iterator[Any]:
        waiting = GaugeMetricFamily("segship_queue_depth", "Jobs that wait.", labels=["model", "lane"])
        jobs = CounterMetricFamily("segship_jobs", "Jobs that were worked on.", labels=["model", "lane"])
        mean = GaugeMetricFamily("segship_job_seconds_mean", "How long jobs take now.", labels=["model", "lane"])
        for labels, lane in self._service.lanes.items():
            waiting.add_metric(labels, lane.waiting)
            jobs.add_metric(labels, lane.jobs)
            mean.add_metric(labels, lane.mean_seconds)
        yield from (waiting, jobs, mean)

    def _cache(self) -> Iterator[Any]:
        cache = self._service.cache
        yield GaugeMetricFamily("segship_cache_bytes", "Bytes of pictures that are kept.", value=cache.bytes)
        yield GaugeMetricFamily("segship_cache_entries", "Pictures that are kept.", value=len(cache))
        for name in ("hits", "misses", "evictions"):
            yield CounterMetricFamily(f"segship_cache_{name}", f"Of the cache: {name}.", value=getattr(cache, name))


def resident_bytes() -> float:
    """Return the memory of this process, 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
