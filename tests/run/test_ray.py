# SPDX-License-Identifier: Apache-2.0
"""A cluster gives the same bytes as one machine, whatever of it is lost."""

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from segship.errors import BackendUnavailable
from segship.run import ray as executor
from segship.run.exporting import export
from segship.run.plan import make_plan
from segship.run.ray import RayExecutor
from segship.run.running import start, verify
from segship.run.storage import open_folder
from tests.run.runs import OPTIONS, tables

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster(store):
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


def test_a_cluster_gives_the_same_bytes(cluster, source, expected, tmp_path):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    done = start(tmp_path, executor=RayExecutor())
    assert (done.done, done.root) == (18, expected[0].root) and tables(tmp_path) == expected[1]


def works(node):
    """Whether a machine of the cluster works on a shard: beneath its own process is a worker of ours."""

    def children(*asked):
        return subprocess.run(["pgrep", "-d", ",", "-P", *asked], capture_output=True, text=True).stdout.strip()

    beneath = children(str(node.all_processes["raylet"][0].process.pid))
    return bool(beneath and children(beneath, "-f", "segship.run.local"))


def test_machines_that_are_lost_lose_nothing(cluster, source, expected, tmp_path):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    given = RayExecutor(workers=4)
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    # Ray takes signals for every machine that it starts or ends, which only the main thread may; the run is in another.
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(start, tmp_path, executor=given)
        for machine in machines:
            while not works(machine) and not run.done():
                time.sleep(0.05)
            cluster.remove_node(machine, allow_graceful=False)
        done = run.result()
    assert given._lost, "no shard was lost with the machines"
    assert (done.done, done.quarantined, done.root) == (18, {}, expected[0].root)
    assert tables(tmp_path) == expected[1]
    verify(tmp_path)


def test_a_cluster_works_on_a_run_in_a_store(cluster, source, expected, tmp_path):
    make_plan(source, open_folder("s3://runs/ray"), OPTIONS)
    assert start("s3://runs/ray", executor=RayExecutor()).root == expected[0].root
    verify("s3://runs/ray")
    assert export("s3://runs/ray", tmp_path, ["overlay"]) == expected[0].done


def test_errors_of_workers_are_raised(cluster, source, tmp_path):
    make_plan(source, open_folder(tmp_path), OPTIONS)
    (items,) = (tmp_path / "plan").iterdir()
    items.unlink()
    items.mkdir()
    began = time.monotonic()
    with pytest.raises(BackendUnavailable) as caught:
        start(tmp_path, executor=RayExecutor(workers=1))
    assert caught.value.code == "worker_died" and time.monotonic() - began < 60


def test_without_ray_the_extra_is_named(monkeypatch, source, tmp_path):
    monkeypatch.setattr(executor, "find_spec", lambda name: None)
    make_plan(source, open_folder(tmp_path), OPTIONS)
    with pytest.raises(BackendUnavailable) as caught:
        start(tmp_path, executor=RayExecutor())
    assert caught.value.code == "ray_missing" and "segship[ray]" in str(caught.value)
