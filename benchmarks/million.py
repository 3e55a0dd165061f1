# SPDX-License-Identifier: Apache-2.0
"""Bookkeeping of a run of a million pictures that are not there: how long plan, commits and a decision to go on take.

``python -m benchmarks.million --out FILE``; ``--items`` for another number. Work is a stub that answers at once.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from benchmarks.machine import write_result
from segship.run import plan as planning
from segship.run.ledger import Ledger
from segship.run.plan import Items, PlanOptions, make_plan, read_plan
from segship.run.running import start, status
from segship.run.sources import Item, item_id
from segship.run.storage import open_folder
from segship.run.work import encode_rows


def items(count):
    for number in range(count):
        name = f"folder{number % 1000:04d}/picture{number:08d}.jpg"
        yield Item(item_id(name), name, f"/data/{name}", -1, 200_000, 1_700_000_000_000_000_000)


def measure(count: int) -> dict:
    found = {}
    with TemporaryDirectory() as place:
        folder = open_folder(place)
        options = PlanOptions(shard_bytes=2**40)
        began = time.perf_counter()
        with patch.object(planning, "find_items", lambda source: items(count)):
            plan = make_plan("stub", folder, options)
        found["plan_seconds"] = time.perf_counter() - began
        table, ledger, held = encode_rows([]), Ledger(folder, plan.shards), Items(folder, plan)
        began = time.perf_counter()
        for shard in range(plan.shards):
            ledger.begin(shard)
            ledger.commit(shard, table, 0, [item.id for item in held.of(shard)], [])
        found["milliseconds_an_item"] = 1e3 * (time.perf_counter() - began) / count
        began = time.perf_counter()
        plan = read_plan(folder)
        assert Ledger(folder, plan.shards).state().open == []
        found["resume_decision_seconds"] = time.perf_counter() - began
        began = time.perf_counter()
        done = start(place)
        found["seal_seconds"] = time.perf_counter() - began
        assert done.done == count
        before = sum(1 for _ in Path(place).rglob("*"))
        began = time.perf_counter()
        start(place)
        found["rerun_seconds"] = time.perf_counter() - began
        found["rerun_new_files"] = sum(1 for _ in Path(place).rglob("*")) - before
        began = time.perf_counter()
        status(place)
        found["status_seconds"] = time.perf_counter() - began
    found["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"items": count, "shards": plan.shards, **{name: round(value, 3) for name, value in found.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = measure(given.items)
    print(json.dumps(found, indent=1))
    write_result(given.out, found)


if __name__ == "__main__":
    main()
