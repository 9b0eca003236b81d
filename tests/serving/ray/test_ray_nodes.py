"""A Ray cluster of several nodes, one of which is lost under load."""

from pathlib import Path

import pytest

from ray_cluster import add_nodes, eventually, ray_nodes
from served import ServerProcess, write_linear_bundle

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_a_node_lost_under_load_costs_no_request_and_is_replaced(tmp_path: Path) -> None:
    """Six instances, two on each node, which has room for no more."""
    bundle = write_linear_bundle(tmp_path)
    with (
        ray_nodes(3) as cluster,
        ServerProcess(
            *(str(bundle), "--policy", "parity", "--instances", "6"),
            *("--engine", f"ray@address={cluster.address}"),
        ) as server,
    ):

        def up() -> float:
            return server.metric(r'parm_instances_up\{role="deployed"\}')

        with server.under_load() as clients:
            clients.more()
            assert up() == 6
            cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
            eventually(lambda: up() == 4, "the lost instances are still counted")
            clients.more()
            add_nodes(cluster, 1)
            eventually(lambda: up() == 6, "the instances are not replaced")
            clients.more()
        assert server.metric("parm_query_failures_total") == 0
        assert server.metric("parm_query_latency_seconds_count") == len(clients.answers)
