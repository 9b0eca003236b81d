"""A server that speaks gRPC as it starts, is overloaded, loses a worker, and ends."""

import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from grpc_requests import code_of, infer, triton_input
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.serving.server import ServeOptions, Server
from served import OUTPUTS, ServerProcess, nothing_left_of, queries, until

pytestmark = pytest.mark.slow

SLOW = json.dumps({"service_time": {"type": "constant", "seconds": 0.5}})


def test_overload_and_deadlines_have_their_codes(bundle: Path) -> None:
    limits = ("--policy", "none", "--instances", "1", "--max-queue", "8", "--faults", SLOW)
    with (
        ServerProcess(str(bundle), "--grpc-port", "0", *limits) as server,
        ThreadPoolExecutor() as pool,
    ):
        eight = pool.submit(infer, server.grpc_address, 0, rows=8)
        until(lambda: server.metric("parm_units_in_flight") == 1, "nothing runs")
        with pytest.raises(
            InferenceServerException, match="queries wait, and at most 8 may"
        ) as error:
            infer(server.grpc_address, 1, rows=8)
        assert code_of(error) == "RESOURCE_EXHAUSTED"
        eight.result()
        with pytest.raises(InferenceServerException, match=r"no answer within \d\.\d+ s") as error:
            infer(server.grpc_address, 3, timeout=1000)
        assert code_of(error) == "DEADLINE_EXCEEDED"
        until(lambda: server.metric("parm_units_in_flight") == 0, "the instance is busy still")
        # Whether the deadline or the client is noticed first is up to chance.
        gone = r'parm_query_failures_total\{reason="(?:deadline exceeded|abandoned)"\}'

        def given_up() -> bool:
            """The client's own deadline is the query's too, if that has come by then."""
            with pytest.raises(InferenceServerException) as error:
                infer(server.grpc_address, 4, client_timeout=0.1)
            assert code_of(error) == "DEADLINE_EXCEEDED"
            return server.metric(gone) > 1

        until(given_up, "the query waits on")
        until(lambda: server.metric("parm_units_in_flight") == 0, "the instance is busy still")
        infer(server.grpc_address, 5)


def test_a_signal_lets_requests_end_and_refuses_new_ones(bundle: Path) -> None:
    slow = json.dumps({"service_time": {"type": "constant", "seconds": 1.0}})
    arguments = ("--grpc-port", "0", "--instances", "1", "--policy", "none", "--faults", slow)
    with (
        ServerProcess(str(bundle), *arguments, "--deadline", "60") as server,
        ThreadPoolExecutor() as pool,
    ):
        requests = [pool.submit(infer, server.grpc_address, seed) for seed in range(3)]
        names = ("parm_queue_depth", "parm_units_in_flight", "parm_query_latency_seconds_count")
        until(lambda: sum(map(server.metric, names)) == 3, "requests do not arrive")
        with nothing_left_of(server), triton.InferenceServerClient(server.grpc_address) as client:
            server.signal(signal.SIGTERM)
            until(lambda: not client.is_server_ready(), "still ready")
            assert client.is_server_live()
            with pytest.raises(InferenceServerException, match="stopping") as error:
                client.infer("model", [triton_input(queries(1))])
            assert code_of(error) == "UNAVAILABLE"
            for request in requests:
                assert request.result().as_numpy("output").shape == (1, OUTPUTS)
            assert server.wait() == 0


def test_workers_start_beside_connections(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("--grpc-port", "0", "--instances", "1", "--policy", "none")
    with ServerProcess(str(bundle), *arguments) as server:
        infer(server.grpc_address, 0)
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda: server.metric("parm_instance_restarts_total") == 1, "nothing came back")
    assert "fork" not in capfd.readouterr().err


async def test_a_port_that_is_taken_is_refused(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(open_bundle(bundle), ServeOptions(port=0, grpc_port=port))
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {port} for gRPC"):
            await server.start()
    with pytest.raises(UserError, match="grpc_port must be from 0"):
        ServeOptions(grpc_port=70_000)


async def test_health_is_watched_from_the_start_to_the_end(bundle: Path) -> None:
    status = health_pb2.HealthCheckResponse
    seen: list[int] = []
    async with Server(open_bundle(bundle), ServeOptions(port=0, grpc_port=0)) as server:
        assert server.grpc_url is not None
        channel = grpc.aio.insecure_channel(server.grpc_url.removeprefix("grpc://"))
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs name no method
        watch = health.Watch(health_pb2.HealthCheckRequest())
        seen.append((await anext(aiter(watch))).status)
    seen += [each.status async for each in watch]  # which ends, and not with an error
    await channel.close()
    assert seen == [status.SERVING, status.NOT_SERVING]
