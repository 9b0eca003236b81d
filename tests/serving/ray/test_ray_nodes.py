"""A Ray cluster of several nodes, one of which is lost under load."""

import asyncio
from pathlib import Path

import pytest

from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.options import EngineChoice
from parity_models.serving.server import ServeOptions, Server
from ray_cluster import Cluster, add_nodes, eventually, ray_nodes
from served import Clients, infer, metric, queries, write_linear_bundle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


async def test_a_node_lost_under_load_costs_no_request_and_is_replaced(tmp_path: Path) -> None:
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
            assert server.url is not None
            await asyncio.to_thread(lose_a_node, cluster, server.url)


def lose_a_node(cluster: Cluster, url: str) -> None:
    metrics = f"{url}/metrics"

    def up() -> float:
        return metric(metrics, r'parm_instances_up\{role="deployed"\}')

    with Clients(lambda client, n: infer(client, queries(1, n), url).raise_for_status()) as clients:
        clients.more()
        assert up() == 6
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        eventually(lambda: up() == 4, "the lost instances are still counted")
        clients.more()
        add_nodes(cluster, 1)
        eventually(lambda: up() == 6, "the instances are not replaced")
        clients.more()
    assert metric(metrics, "parm_query_failures_total") == 0
    assert metric(metrics, "parm_query_latency_seconds_count") == len(clients.answers)
