"""A Ray cluster of several machines, one of which is lost under load."""

import asyncio
import os
from pathlib import Path

import pytest

from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.options import EngineChoice
from parity_models.serving.server import ServeOptions, Server
from parity_models_lab.contention.namespaces import configure
from ray_cluster import Client, eventually
from ray_nodes import BRIDGE, Cluster, ray_nodes, remove_stale_bridges
from served import write_linear_bundle

pytestmark = [pytest.mark.ray, pytest.mark.root, pytest.mark.timeout(900)]


async def test_a_node_that_is_lost_under_load_costs_no_request_and_another_takes_its_place(
    tmp_path: Path,
) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path))
    # Six instances, two on each node, which has room for no more.
    options = ServeOptions(
        instances=4,
        policy=PolicyChoice("parity"),
        engine=EngineChoice("ray", {"address": "auto"}),
        port=0,
    )
    with ray_nodes(3) as cluster:
        async with Server(bundle, options) as server:
            client = Client(server.url)
            await asyncio.to_thread(lose_a_node, cluster, client)


def lose_a_node(cluster: Cluster, client: Client) -> None:
    def up() -> float:
        return client.metric(r'parm_instances_up\{role="deployed",work="deployed"\}')

    with client.asking():
        client.more()
        assert up() == 6
        cluster.nodes[0].kill()
        eventually(lambda: up() == 4, "the lost instances are still counted")
        client.more()
        cluster.add(1)
        eventually(lambda: up() == 6, "the instances are not replaced")
        client.more()
    assert client.metric("parm_query_failures_total") == 0
    assert client.metric("parm_query_latency_seconds_count") == client.answered


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
