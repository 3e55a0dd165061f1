# SPDX-License-Identifier: Apache-2.0
"""How long calls take: warm-up, repeats, percentiles."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """The milliseconds of every call that counts.

    Attributes
    ----------
    milliseconds
        One for each call, in the order of the calls.
    items
        Images or objects that one call handles.
    """

    milliseconds: tuple[float, ...]
    items: int = 1

    def percentile(self, percent: float) -> float:
        """Return the milliseconds that so many percent of the calls stay below, interpolated between calls.

        Examples
        --------
        >>> Timing((1.0, 2.0, 4.0)).percentile(50)
        2.0
        """
        return float(np.percentile(self.milliseconds, percent))

    @property
    def mean(self) -> float:
        """Mean milliseconds of a call."""
        return float(np.mean(self.milliseconds))

    @property
    def per_second(self) -> float:
        """Items a second: those of a call divided by its mean time."""
        return 1e3 * self.items / self.mean

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for `json.dumps`, in milliseconds but for ``per_second``."""
        return {
            "calls": len(self.milliseconds),
            "items_per_call": self.items,
            "p50_ms": _rounded(self.percentile(50)),
            "p90_ms": _rounded(self.percentile(90)),
            "p99_ms": _rounded(self.percentile(99)),
            "mean_ms": _rounded(self.mean),
            "min_ms": _rounded(min(self.milliseconds)),
            "max_ms": _rounded(max(self.milliseconds)),
            "per_second": _rounded(self.per_second),
        }


def measure(work: Callable[[], object], *, warm_up: int, repeats: int, seconds: float, items: int = 1) -> Timing:
    """Call something ``warm_up`` times uncounted, then up to ``repeats`` times, and return the times.

    Parameters
    ----------
    work
        What is called.
    warm_up, repeats
        Calls that do not count, and calls that do; at least one counts.
    seconds
        After this time no further call is begun, so that a slow stage does not take minutes.
    items
        Images or objects that one call handles.
    """
    begun = time.perf_counter()
    for _ in range(warm_up):
        work()
        if time.perf_counter() - begun > seconds:
            break
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < max(1, repeats) and (not times or time.perf_counter() - begun < seconds):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return Timing(tuple(times), items)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
