"""Ray nodes as machines of their own: raylets in network namespaces, on one bridge.

Takes root and iproute2, as the tests of contention do.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

from parity_models_lab.contention.network import (
    check_privileges,
    configure,
    own_prefix,
    processes_in,
    remove,
    remove_abandoned,
)
from ray_cluster import eventually, init_ray

SUBNET = "10.217.83"
"""Of the cluster; the head is .1, in the namespace of the tests."""

SOON_DEAD = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 8,
}
"""A node that nothing is heard of is gone after ten seconds rather than a minute."""

BRIDGE = "pb"
"""What bridges' names begin with, before the id of the process that made them."""

RAY_FOLDER = "/tmp/ray"

RAY = Path(sys.executable).with_name("ray")


class Node:
    """A raylet at an address of its own."""

    def __init__(self, number: int, bridge: str, gcs: str) -> None:
        self.namespace = f"{own_prefix()}ray-{number}"
        self.address = f"{SUBNET}.{number}"
        self.link = f"pv{os.getpid()}-{number}"[:15]
        configure("ip", [f"netns add {self.namespace}"])
        configure(
            "ip",
            [
                f"link add {self.link} type veth peer name eth0 netns {self.namespace}",
                f"link set {self.link} master {bridge} up",
            ],
        )
        configure(
            "ip",
            ["link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"],
            self.namespace,
        )
        self._process = subprocess.Popen(
            [
                *("ip", "netns", "exec", self.namespace),
                # In a folder that is its own, too: nodes of one machine would share it.
                *("sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', RAY_FOLDER),
                *(RAY, "start", "--block"),
                *("--address", gcs, "--node-ip-address", self.address),
                *("--num-cpus", "2", "--object-store-memory", "80000000"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def id(self) -> str | None:
        """Ray's id of the node, once and while it is up."""
        for node in ray.nodes():
            if node["Alive"] and node["NodeManagerAddress"] == self.address:
                return str(node["NodeID"])
        return None

    def kill(self) -> None:
        """The whole machine is gone: not a word of it reaches anybody."""
        with suppress(Exception):
            configure("ip", [f"link set {self.link} down"])
        for pid in processes_in([self.namespace]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        remove([self.namespace])


class Cluster:
    """A head without CPUs in this namespace, and nodes with two in others."""

    def __init__(self, bridge: str) -> None:
        assert not ray.is_initialized(), "this process has a cluster; run the tests of nodes first"
        self._bridge = bridge
        self.nodes: list[Node] = []
        context = init_ray(
            num_cpus=0,
            _node_ip_address=f"{SUBNET}.1",
            object_store_memory=80_000_000,
            _system_config=SOON_DEAD | {"prestart_worker_first_driver": False},
        )
        self._gcs = context.address_info["gcs_address"]

    def add(self, nodes: int) -> None:
        """Returns once they are up."""
        first = len(self.nodes) + 2
        new = [Node(number, self._bridge, self._gcs) for number in range(first, first + nodes)]
        self.nodes += new
        eventually(lambda: all(node.id() for node in new), "the nodes do not come up")


def remove_stale_bridges() -> None:
    """Remove the bridges of tests that were killed: each takes the cluster's subnet."""
    for bridge in Path("/sys/class/net").glob(f"{BRIDGE}[0-9]*"):
        if not Path("/proc", bridge.name.removeprefix(BRIDGE)).exists():
            configure("ip", [f"link del {bridge.name}"])


@contextmanager
def ray_nodes(nodes: int) -> Iterator[Cluster]:
    """A head and some nodes.

    All processes, namespaces and interfaces are gone at the end.
    """
    check_privileges()
    remove_stale_bridges()
    remove_abandoned()
    bridge = f"{BRIDGE}{os.getpid()}"
    configure("ip", [f"link add {bridge} type bridge", f"link set {bridge} up"])
    configure("ip", [f"addr add {SUBNET}.1/24 dev {bridge}"])
    cluster = None
    try:
        cluster = Cluster(bridge)
        cluster.add(nodes)
        yield cluster
    finally:
        for node in cluster.nodes if cluster else ():
            node.kill()
        ray.shutdown()
        configure("ip", [f"link del {bridge}"])
