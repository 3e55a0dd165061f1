# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed at random until they are done, on this machine and on a cluster; and disks that fail and forget.

``python -m benchmarks.crash --local 20 --ray 5 --seeds 200``; the last results of ``make crash-night`` are kept. With
``--proofs``: bad files, a picture that kills, disks that are full, and every way of working that must give one root.
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
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
from PIL import Image

from benchmarks.machine import write_result
from segship.errors import BundleError, OutputError
from segship.promptable.everything.options import AmgOptions
from segship.run.ledger import Ledger
from segship.run.local import LocalExecutor
from segship.run.plan import PlanOptions, make_plan
from segship.run.running import start, verify
from segship.run.storage import open_folder
from tests.run import runs as bad
from tests.run.runs import LIMITS

PICTURES = 60
OPTIONS = PlanOptions(amg=AmgOptions(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0), shard_items=4)
LOCAL = "import sys; from segship.run.running import start; start(sys.argv[1], workers=2)"
RAY = (
    "import sys; from segship.run.running import start; from segship.run.ray import RayExecutor; "
    "start(sys.argv[1], executor=RayExecutor(sys.argv[2], workers=2))"
)


def make_source(folder: Path, count: int = PICTURES) -> Path:
    """Draw some pictures."""
    folder.mkdir(parents=True)
    for number in range(count):
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


class Trial:
    """Runs of the same pictures, each of which is disturbed in its own way, and what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0
        self.lost = self.doubled = self.quarantined = self.different = 0
        self.source, undisturbed = make_source(folder / "source"), folder / "undisturbed"
        make_plan(self.source, open_folder(undisturbed), OPTIONS)
        self.expected = start(undisturbed, workers=1).root, tables(undisturbed)

    def plan(self) -> Path:
        """Plan one more run."""
        self.runs += 1
        place = self.folder / f"run{self.runs}"
        make_plan(self.source, open_folder(place), OPTIONS)
        return place

    def look(self, place: Path) -> None:
        """Look at a run that is done."""
        verify(place)
        done = start(place)
        self.lost += PICTURES - done.done - sum(done.quarantined.values())
        self.quarantined += sum(done.quarantined.values())
        commits = [json.loads(path.read_bytes()) for path in (place / "commits").iterdir()]
        ids = [one for commit in commits for one in commit["done"]]
        self.doubled += len(ids) - len(set(ids))
        self.different += (done.root, tables(place)) != self.expected

    def found(self, kills: int, **more) -> dict:
        """Return what was found."""
        return {
            "kills": kills,
            "runs": self.runs,
            **more,
            "lost": self.lost,
            "doubled": self.doubled,
            "wrongly_quarantined": self.quarantined,
            "other_bytes": self.different,
            "holds": not (self.lost or self.doubled or self.quarantined or self.different),
        }


def killed_runs(count: int, program: str, arguments: list[str], seed: int, workers_of) -> dict:
    """Kill drivers, workers and all of them so many times; returns what became of it, and how long it took."""
    draw, kills = random.Random(seed), 0
    with TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        while kills < count:
            place = trial.plan()
            kills += kill_until_done(place, program, arguments, draw, min(8, count - kills), workers_of)
            trial.look(place)
        return trial.found(kills)


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
            # Those that work. With its agents a raylet ends too, and nothing is left to work on.
            found = []
            for pid in (child for raylet in raylets for child in below(raylet)):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if b"segship.run.local" in words or b"ray::work_on_shard" in words or b"ray::IDLE" in words:
                        found.append(pid)
            return found

        return killed_runs(count, RAY, [cluster.address], seed, workers_of)
    finally:
        cluster.shutdown()


def without_nodes(count: int, seed: int = 0) -> dict:
    """Nodes of a cluster are killed under a run, and others come in their place."""
    from ray.cluster_utils import Cluster

    draw, kills, resumed = random.Random(seed), 0, 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try:
        with TemporaryDirectory() as folder:
            trial = Trial(Path(folder))
            while kills < count:
                place = trial.plan()
                driver = drive(place, cluster.address)
                while driver.poll() is None:
                    until = time.monotonic() + draw.uniform(2.0, 8.0)
                    while driver.poll() is None and (time.monotonic() < until or kills >= count):
                        time.sleep(0.05)
                    if driver.poll() is None:
                        cluster.remove_node(nodes.pop(draw.randrange(2)), allow_graceful=False)
                        nodes.append(cluster.add_node(num_cpus=1))
                        kills += 1
                if driver.returncode:
                    resumed += 1
                    assert drive(place, cluster.address).wait() == 0
                trial.look(place)
            return trial.found(kills, runs_begun_again=resumed)
    finally:
        cluster.shutdown()


def without_heads(count: int, seed: int = 0) -> dict:
    """The head of a cluster is killed under a run, which ends, and goes on with another cluster."""
    from ray.cluster_utils import Cluster

    draw, ended, left = random.Random(seed), [], 0
    with TemporaryDirectory() as folder:
        trial = Trial(Path(folder))
        for _ in range(count):
            place = trial.plan()
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
            driver = drive(place, cluster.address)
            # Some shards are done, and others not.
            most = draw.randrange(1, 10)
            while driver.poll() is None and len(list((place / "commits").glob("*.json"))) < most:
                time.sleep(0.02)
            killed = time.monotonic()
            for pid in [entry.process.pid for every in cluster.head_node.all_processes.values() for entry in every]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            driver.wait(timeout=300)
            ended.append(round(time.monotonic() - killed, 1))
            left += len(workers_on(place))
            cluster.shutdown()
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
            try:
                assert drive(place, cluster.address).wait() == 0
            finally:
                cluster.shutdown()
            trial.look(place)
        return trial.found(count, seconds_until_the_driver_ended=ended, workers_left=left)


def workers_on(place: Path, seconds: float = 10.0) -> list[int]:
    """Return the workers of a run that are still there after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_bytes()
                if b"segship.run.local" in words and os.fsencode(place) in words:
                    found.append(int(path.parent.name))
        if not found or time.monotonic() > until:
            return found
        time.sleep(0.2)


def drive(place: Path, address: str) -> subprocess.Popen:
    """Start a run on a cluster."""
    return subprocess.Popen([sys.executable, "-c", RAY, str(place), address], start_new_session=True)


def disks(seeds: int) -> dict:
    """Every operation on the disk in every way, and losses of power; by the tests themselves."""
    environment = {**os.environ, "SEGSHIP_POWER_SEEDS": str(seeds)}
    command = [sys.executable, "-m", "pytest", "-q", "tests/run/test_ledger.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return {
        "power_loss_seeds": seeds,
        "said": done.stdout.strip().splitlines()[-1],
        "holds": done.returncode == 0,
    }


def bad_files(count: int = 400) -> dict:
    """One picture in ten is bad, of twelve kinds: each has its reason, and the others the rows they have alone."""
    with TemporaryDirectory() as folder:
        source, alone = make_source(Path(folder) / "source", count - count // 10), Path(folder) / "alone"
        options = replace(OPTIONS, limits=LIMITS, shard_items=None)
        make_plan(source, open_folder(alone), options)
        start(alone)
        kinds, wanted = bad.bad_files(), {}
        for number in range(count // 10 - 3):
            data, code = list(kinds.values())[number % len(kinds)]
            (source / f"bad{number}.png").write_bytes(data)
            wanted[f"bad{number}.png"] = code
        os.mkfifo(source / "pipe.png")
        for name in ("vanishes.png", "changes.png"):
            (source / name).write_bytes(bad.picture(1))
        run = Path(folder) / "run"
        make_plan(source, open_folder(run), options)
        (source / "vanishes.png").unlink()
        (source / "changes.png").write_bytes(bad.picture(2))
        wanted |= {"pipe.png": "not_a_file", "vanishes.png": "vanished", "changes.png": "changed_since_plan"}
        done = start(run)
        verify(run)
        commits = [json.loads(path.read_bytes()) for path in (run / "commits").iterdir()]
        found = {entry["name"]: entry["code"] for commit in commits for entry in commit["quarantined"]}
        wrong = [name for name in {*wanted, *found} if wanted.get(name) != found.get(name)]
        same = bad.rows_of(tables(run)) == bad.rows_of(tables(alone))
    return {
        "pictures": count,
        "bad": len(wanted),
        "kinds": len(set(wanted.values())),
        "wrong_reasons": wrong,
        "answered": done.done,
        "good_ones_equal": same,
        "holds": not wrong and same and done.done == count - len(wanted),
    }


def deadly_picture(count: int = 256) -> dict:
    """One picture of a shard ends its process with a fault of memory: the others of the shard are done."""
    with TemporaryDirectory() as folder:
        source, run = make_source(Path(folder) / "source", count - 1), Path(folder) / "run"
        (source / "deadly.png").write_bytes(bad.picture(1) + b"deadly")
        make_plan(source, open_folder(run), replace(OPTIONS, shard_items=count))
        with patch.dict(os.environ, PYTHONPATH=f"tests/run/deadly{os.pathsep}{os.environ.get('PYTHONPATH', '')}"):
            done = start(run, workers=2)
        verify(run)
    holds = (done.done, done.quarantined, done.shards) == (count - 1, {"worker_died": 1}, 1)
    return {"pictures": count, "answered": done.done, "quarantined": done.quarantined, "holds": holds}


def full_disks(sizes: Sequence[int] = range(72, 400, 24)) -> dict:
    """Runs on file systems of so many KiB that fill somewhere, and go on when these are larger; needs `mount`."""
    codes, torn, different = Counter[str](), 0, 0
    with TemporaryDirectory() as folder:
        source, undisturbed, disk = make_source(Path(folder) / "source"), Path(folder) / "alone", Path(folder) / "disk"
        make_plan(source, open_folder(undisturbed), OPTIONS)
        expected = start(undisturbed).root, tables(undisturbed)
        disk.mkdir()
        for size in sizes:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", disk], check=True)
            try:
                run = disk / "run"
                try:
                    plan = make_plan(source, open_folder(run), OPTIONS)
                    start(run)
                    codes["done"] += 1
                except OutputError as error:
                    codes[error.code] += 1
                if (run / "commits").exists():
                    ledger = Ledger(open_folder(run), plan.shards)
                    for commit in ledger.read_commits(ledger.state().committed):
                        ledger.check(commit)
                subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
                make_plan(source, open_folder(run), OPTIONS)
                different += (start(run).root, tables(run)) != expected
            except BundleError:
                torn += 1
            finally:
                subprocess.run(["umount", "-l", disk], check=True)
    holds = not torn and not different and codes["no_space"] > len(sizes) // 2
    return {"disks_kib": list(sizes), "ended": dict(codes), "torn": torn, "other_bytes": different, "holds": holds}


def one_root() -> dict:
    """1, 2, 3 and 8 workers, both executors, every schedule, shards in any order: one root and the same bytes."""
    import ray

    from segship.run.ray import RayExecutor

    ways, roots, different = 0, set(), 0
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with TemporaryDirectory() as folder:
        source = make_source(Path(folder) / "source", 24)
        for kind in (LocalExecutor, RayExecutor):
            for schedule in ("serial", "pipeline", "task"):
                for workers in (1, 2, 3, 8):
                    run = Path(folder) / f"run{ways}"
                    plan = make_plan(source, open_folder(run), OPTIONS)
                    shards = list(range(plan.shards))
                    random.Random(ways).shuffle(shards)
                    kind(workers=workers, schedule=schedule).run(str(run), shards, lambda shard: None)
                    roots.add(start(run).root)
                    verify(run)
                    different += tables(run) != tables(Path(folder) / "run0")
                    ways += 1
    ray.shutdown()
    return {"ways": ways, "roots": len(roots), "other_bytes": different, "holds": len(roots) == 1 and not different}


PROOFS = {"bad_files": bad_files, "deadly_picture": deadly_picture, "full_disks": full_disks, "one_root": one_root}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--local", type=int, default=20)
    parser.add_argument("--ray", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=0)
    parser.add_argument("--heads", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--proofs", nargs="*", choices=PROOFS, help="these, or all of them; none when left out")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, dict] = {}

    def keep(name: str, measure, *arguments) -> None:
        began = time.monotonic()
        found[name] = {**measure(*arguments), "seconds": round(time.monotonic() - began)}
        print(name, json.dumps(found[name]), flush=True)
        write_result(given.out, found)

    if given.seeds:
        keep("disks", disks, given.seeds)
    for name in () if given.proofs is None else given.proofs or PROOFS:
        keep(name, PROOFS[name])
    measures = {"local": on_this_machine, "ray": on_a_cluster, "nodes": without_nodes, "heads": without_heads}
    for name, measure in measures.items():
        if count := getattr(given, name):
            keep(name, measure, count)


if __name__ == "__main__":
    main()
