"""A Ray cluster of several machines, one of which is lost under load."""

import asyncio
from pathlib import Path

import pytest

from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.options import EngineChoice
from parity_models.serving.server import ServeOptions, Server
from ray_cluster import Client, eventually
from ray_nodes import Cluster, ray_nodes
from served import write_linear_bundle

pytestmark = [pytest.mark.ray, pytest.mark.root, pytest.mark.timeout(900)]


async def test_a_node_that_is_lost_under_load_costs_no_request_and_another_takes_its_place(
    tmp_path: Path,
) -> None:
    bundle = open_bundle(write_linear_bundle(tmp_path))
    # Six instances, two on each node, which has room for no more.
    options = ServeOptions(
        instances=6,
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
