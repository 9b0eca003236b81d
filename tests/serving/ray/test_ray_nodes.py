"""A Ray cluster of several machines, one of which is lost under load."""

import os
from collections import Counter
from pathlib import Path

import pytest
import ray
from ray import serve

from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.ray.app import application
from parity_models.serving.ray.cluster import delete
from parity_models.serving.ray.cluster_options import ClusterOptions
from parity_models.serving.server import ServeOptions
from parity_models_lab.contention.namespaces import configure
from ray_cluster import Client, eventually, start_serve
from ray_nodes import BRIDGE, FRONT, ROOM, ray_nodes, remove_stale_bridges
from served import write_linear_bundle

pytestmark = [pytest.mark.ray, pytest.mark.root, pytest.mark.timeout(900)]


def test_a_node_that_is_lost_under_load_costs_no_request_and_another_takes_its_place(
    tmp_path: Path,
) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path))
    # Six instances, two on each node, which has room for no more; the frontend is on the head.
    options = ServeOptions(instances=4, policy=PolicyChoice("parity"))
    room = ClusterOptions(
        cpus_per_instance=0,
        cpus_per_frontend=0,
        resources_per_instance={ROOM: 1},
        resources_per_frontend={FRONT: 1},
    )
    with ray_nodes(3) as cluster:
        client = Client(start_serve())
        serve.run(application(bundle, options, room), name="test")

        def up() -> float:
            return client.metric(r'parm_instances_up\{role="deployed",work="deployed"\}')

        eventually(lambda: up() == 6, "not all instances are there")
        with client.asking():
            client.more()
            ids = [node.id() for node in cluster.nodes]
            assert Counter(_nodes()) == dict.fromkeys(ids, 2)
            cluster.nodes[0].kill()
            eventually(lambda: up() == 4, "the lost instances are still counted")
            client.more()
            cluster.add(1)
            eventually(lambda: up() == 6, "the instances are not replaced")
            client.more()
        assert client.metric("parm_query_failures_total") == 0
        assert client.metric("parm_query_latency_seconds_count") == client.answered
        delete("test")
        serve.shutdown()


def test_the_bridge_of_a_process_that_was_killed_is_removed() -> None:
    no_process = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    stale, own = f"{BRIDGE}{no_process}", f"{BRIDGE}{os.getpid()}"
    for bridge in (stale, own):
        configure("ip", [f"link add {bridge} type bridge"])
    try:
        remove_stale_bridges()
        assert not Path("/sys/class/net", stale).exists()
        assert Path("/sys/class/net", own).exists()
    finally:
        configure("ip", [f"link del {own}"])


def _nodes() -> list[str]:
    """The nodes of the instances' replicas."""
    return [
        actor["Address"]["NodeID"]
        for actor in ray._private.state.actors().values()
        if actor["Name"].startswith("SERVE_REPLICA::test#shared#") and actor["State"] == "ALIVE"
    ]
