"""Ray for tests: quiet, offline, gone at the end."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ |= {
    "RAY_AUTH_MODE": "disabled",  # else a token is written to the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
}

import ray
from ray.cluster_utils import Cluster

from served import until

SMALL = 0.01
"""CPUs that instances reserve in tests: next to none."""

STORE = 80_000_000
"""Bytes of a node's object store."""

SOON_DEAD = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 8,
}
"""A node that nothing is heard of is gone after ten seconds rather than a minute."""


def init_ray(**options: Any) -> Any:
    """Start a cluster's head: ray.init, once more where the machine is too busy to start Ray's
    processes within the 30 s that Ray gives them."""
    tries = 3
    while True:
        try:
            return ray.init("local", include_dashboard=False, log_to_driver=False, **options)
        except Exception as error:
            ray.shutdown()
            tries -= 1
            if not tries or "timed out during startup" not in str(error):
                raise


@contextmanager
def other_cluster(cpus: int) -> Iterator[str]:
    """A cluster in a process of its own; gives its address."""
    program = (
        "import sys, ray_cluster\n"
        f"head = ray_cluster.init_ray(num_cpus={cpus})\n"
        "print(head.address_info['gcs_address'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    ) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        try:
            address = head.stdout.readline().strip()
            assert address, "the cluster does not start"
            yield address
        finally:
            head.stdin.close()


@contextmanager
def ray_nodes(nodes: int) -> Iterator[Cluster]:
    """A head without CPUs, and nodes with two."""
    settings = {"num_cpus": 0, "object_store_memory": STORE, "_system_config": SOON_DEAD}
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    try:
        add_nodes(cluster, nodes)
        yield cluster
    finally:
        cluster.shutdown()


def add_nodes(cluster: Cluster, nodes: int) -> None:
    for _ in range(nodes):
        cluster.add_node(num_cpus=2, object_store_memory=STORE)


def eventually(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for what a cluster brings about, which needs the cores that looking often would take."""
    until(condition, otherwise, 240, pause=0.1)
