# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed at random until they are done, on this machine and on a cluster; and disks that fail and forget.

``python -m benchmarks.crash --local 20 --ray 5 --seeds 200``; the last results of ``make crash-night`` are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

import segship
from segship.machine import describe_machine
from segship.promptable.everything.options import AmgOptions
from segship.run.plan import PlanOptions, make_plan
from segship.run.running import start, verify
from segship.run.storage import open_folder

PICTURES = 60
OPTIONS = PlanOptions(amg=AmgOptions(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0), shard_items=4)
LOCAL = "import sys; from segship.run.running import start; start(sys.argv[1], workers=2)"
RAY = (
    "import sys; from segship.run.running import start; from segship.run.ray import RayExecutor; "
    "start(sys.argv[1], executor=RayExecutor(sys.argv[2], workers=2))"
)


def make_source(folder: Path) -> Path:
    """Draw some pictures."""
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        pixels = np.random.default_rng(number).integers(0, 255, (5, 8, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((64, 40)).save(stream, "PNG")
        (folder / f"{number}.png").write_bytes(stream.getvalue())
    return folder


def tables(place: Path) -> dict[str, bytes]:
    """The bytes of all tables of a run."""
    return {path.name: path.read_bytes() for path in sorted((place / "data").iterdir())}


def below(pid: int) -> list[int]:
    """All processes below one."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in found.splitlines()]
    known, grown = {pid}, True
    while grown:
        more = {child for child, parent in pairs if parent in known} - known
        known |= more
        grown = bool(more)
    return sorted(known - {pid})


def kill_until_done(place: Path, program: str, arguments: list[str], draw: random.Random, most: int, workers_of) -> int:
    """Start a run and kill something of it, again and again; returns the kills after which it was done."""
    kills = 0
    while True:
        driver = subprocess.Popen([sys.executable, "-c", program, str(place), *arguments], start_new_session=True)
        victim, at = draw.choice(["driver", "worker", "all"]), time.monotonic() + draw.uniform(0.2, 4.0)
        while driver.poll() is None and (time.monotonic() < at or kills >= most):
            time.sleep(0.01)
        if driver.poll() is not None:
            assert driver.returncode == 0, driver.returncode
            return kills
        kills += 1
        workers = workers_of(driver)
        if victim == "worker" and workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(workers), signal.SIGKILL)
            # The driver goes on; it is left alone this time.
            while driver.poll() is None and draw.random() < 0.98:
                time.sleep(0.05)
        if driver.poll() is None:
            for pid in [driver.pid] if victim == "driver" else [*below(driver.pid), driver.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        driver.wait()


def killed_runs(count: int, program: str, arguments: list[str], seed: int, workers_of) -> dict:
    """Kill so many times; returns what became of it, and how long it took."""
    draw, began, kills, runs = random.Random(seed), time.monotonic(), 0, 0
    lost = doubled = quarantined = different = 0
    with TemporaryDirectory() as folder:
        source, undisturbed = make_source(Path(folder) / "source"), Path(folder) / "undisturbed"
        make_plan(source, open_folder(undisturbed), OPTIONS)
        expected = start(undisturbed, workers=1).root, tables(undisturbed)
        while kills < count:
            place = Path(folder) / f"run{runs}"
            make_plan(source, open_folder(place), OPTIONS)
            kills += kill_until_done(place, program, arguments, draw, min(8, count - kills), workers_of)
            runs += 1
            verify(place)
            done = start(place)
            lost += PICTURES - done.done - sum(done.quarantined.values())
            quarantined += sum(done.quarantined.values())
            commits = [json.loads(path.read_bytes()) for path in (place / "commits").iterdir()]
            ids = [one for commit in commits for one in commit["done"]]
            doubled += len(ids) - len(set(ids))
            different += (done.root, tables(place)) != expected
    return {
        "kills": kills,
        "runs": runs,
        "lost": lost,
        "doubled": doubled,
        "wrongly_quarantined": quarantined,
        "other_bytes": different,
        "seconds": round(time.monotonic() - began),
        "holds": not (lost or doubled or quarantined or different),
    }


def on_this_machine(count: int, seed: int = 0) -> dict:
    return killed_runs(count, LOCAL, [], seed, lambda driver: below(driver.pid))


def on_a_cluster(count: int, seed: int = 0) -> dict:
    """The same with two raylets of a loopback cluster, whose processes are killed too."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    try:
        raylets = [
            entry.process.pid for one in (cluster.head_node, node) for entry in one.all_processes.get("raylet", [])
        ]

        def workers_of(driver):
            # Those that work: Ray's own helpers are not what a machine would lose alone.
            found = []
            for pid in (child for raylet in raylets for child in below(raylet)):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if b"segship.run.local" in words or b"ray::" in words:
                        found.append(pid)
            return found

        return killed_runs(count, RAY, [cluster.address], seed, workers_of)
    finally:
        cluster.shutdown()


def disks(seeds: int) -> dict:
    """Every operation on the disk in every way, and losses of power; by the tests themselves."""
    began = time.monotonic()
    environment = {**os.environ, "SEGSHIP_POWER_SEEDS": str(seeds)}
    command = [sys.executable, "-m", "pytest", "-q", "tests/run/test_ledger.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return {
        "power_loss_seeds": seeds,
        "said": done.stdout.strip().splitlines()[-1],
        "seconds": round(time.monotonic() - began),
        "holds": done.returncode == 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local", type=int, default=20)
    parser.add_argument("--ray", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {"disks": disks(given.seeds)}
    print(json.dumps(found["disks"]), flush=True)
    for name, count, measure in (("local", given.local, on_this_machine), ("ray", given.ray, on_a_cluster)):
        if count:
            found[name] = measure(count)
            print(name, json.dumps(found[name]), flush=True)
    if given.out is not None:
        document = {
            "date": time.strftime("%Y-%m-%d"),
            "version": segship.__version__,
            "machine": describe_machine().to_dict(),
            **found,
        }
        given.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
