# SPDX-License-Identifier: Apache-2.0
"""The stages of a worker, one after another or side by side, with bounded queues between them; results in order.

The stages are those of nndeploy's pipelines: read, encode, decode. What comes out does not depend on the schedule.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Schedule = Literal["serial", "pipeline", "task"]
QUEUE = 2
"""How many pictures wait between two stages that run side by side."""


class Stage(NamedTuple):
    """One step: what it is called, and what it makes of what the one before has made."""

    name: str
    work: Callable[[Any], Any]


@dataclass(slots=True)
class Occupancy:
    """How long each stage was at work, and how long all of it took, in seconds."""

    busy: dict[str, float] = field(default_factory=dict)
    total: float = 0.0

    def add(self, other: Mapping[str, Any]) -> None:
        """Count what another worker has measured, as `to_dict` gave it."""
        self.total += other["total"]
        for name, seconds in other["busy"].items():
            self.busy[name] = self.busy.get(name, 0.0) + seconds

    def to_dict(self) -> dict[str, Any]:
        """Return it for `json.dumps`."""
        return {"busy": dict(self.busy), "total": self.total}

    @property
    def shares(self) -> dict[str, float]:
        """Which part of the time each stage was at work, 0 to 1."""
        return {name: seconds / self.total if self.total else 0.0 for name, seconds in self.busy.items()}


def groups_of(stages: Sequence[Stage], schedule: Schedule) -> list[list[Stage]]:
    """Return the stages that one thread works on each: all, one each, or all but the last beside the last."""
    if schedule == "serial" or len(stages) == 1:
        return [list(stages)]
    if schedule == "task":
        return [list(stages[:-1]), [stages[-1]]]
    return [[stage] for stage in stages]


def run_stages(
    items: Iterable[Any], stages: Sequence[Stage], schedule: Schedule, occupancy: Occupancy
) -> Iterator[Any]:
    """Yield what the stages make of each item, in order.

    What a stage raises is raised here, once everything before it was yielded; stages then stop.
    """
    began = time.perf_counter()
    try:
        groups = groups_of(stages, schedule)
        if len(groups) == 1:
            for item in items:
                yield _through(item, groups[0], occupancy)
        else:
            yield from _side_by_side(items, groups, occupancy)
    finally:
        occupancy.total += time.perf_counter() - began


def _through(item: Any, group: Sequence[Stage], occupancy: Occupancy) -> Any:
    for stage in group:
        began = time.perf_counter()
        item = stage.work(item)
        occupancy.busy[stage.name] = occupancy.busy.get(stage.name, 0.0) + time.perf_counter() - began
    return item


class _Failed(NamedTuple):
    error: BaseException


_END = object()


def _side_by_side(items: Iterable[Any], groups: Sequence[Sequence[Stage]], occupancy: Occupancy) -> Iterator[Any]:
    is_over = threading.Event()
    queues: list[queue.Queue[Any]] = [queue.Queue(QUEUE) for _ in groups]

    def serve(group: Sequence[Stage], source: Iterator[Any], out: queue.Queue[Any]) -> None:
        try:
            for item in source:
                if is_over.is_set():
                    return
                _put(out, item if isinstance(item, _Failed) else _through(item, group, occupancy), is_over)
        except BaseException as error:
            _put(out, _Failed(error), is_over)
        _put(out, _END, is_over)

    sources = [iter(items), *(_taken(one, is_over) for one in queues[:-1])]
    threads = [
        threading.Thread(target=serve, args=each, daemon=True) for each in zip(groups, sources, queues, strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        for item in _taken(queues[-1], is_over):
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _put(out: queue.Queue[Any], item: Any, is_over: threading.Event) -> None:
    while not is_over.is_set():
        try:
            out.put(item, timeout=0.1)
            return
        except queue.Full:
            continue


def _taken(source: queue.Queue[Any], is_over: threading.Event) -> Iterator[Any]:
    while not is_over.is_set():
        try:
            item = source.get(timeout=0.1)
        except queue.Empty:
            continue
        if item is _END:
            return
        yield item


def draw_graph(names: Sequence[str], schedule: Schedule, shares: Mapping[str, float] | None = None) -> str:
    """Return the stages as Mermaid draws them, with queues, and with how busy each was where that is known."""
    stages = [Stage(name, lambda item: item) for name in names]
    lines, last = ["flowchart LR"], "pictures"
    lines.append('  pictures(["pictures"])')
    for number, group in enumerate(groups_of(stages, schedule)):
        lines.append(f"  subgraph thread{number}[thread {number + 1}]")
        for stage in group:
            busy = "" if shares is None else f"<br/>{shares.get(stage.name, 0.0):.0%} busy"
            lines.append(f'    {stage.name}["{stage.name}{busy}"]')
        lines.append("  end")
        for place, stage in enumerate(group):
            arrow = f"-- queue of {QUEUE} -->" if place == 0 and number else "-->"
            lines.append(f"  {last} {arrow} {stage.name}")
            last = stage.name
    return "\n".join([*lines, f'  {last} --> table[("table of the shard")]']) + "\n"


def draw_graphviz(names: Sequence[str], schedule: Schedule, shares: Mapping[str, float] | None = None) -> str:
    """Return the same for Graphviz."""
    stages, lines, last = (
        [Stage(name, lambda item: item) for name in names],
        ["digraph run {", "  rankdir=LR;"],
        "pictures",
    )
    for number, group in enumerate(groups_of(stages, schedule)):
        for place, stage in enumerate(group):
            busy = "" if shares is None else f"\\n{shares.get(stage.name, 0.0):.0%} busy"
            label = f' [label="queue of {QUEUE}"]' if place == 0 and number else ""
            lines += [f'  {stage.name} [shape=box, label="{stage.name}{busy}"];', f"  {last} -> {stage.name}{label};"]
            last = stage.name
    return "\n".join([*lines, f"  {last} -> table;", "}"]) + "\n"
