"""A server that speaks gRPC as it starts, loses a worker, and ends."""

import os
import signal
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_requests import infer
from parity_models.errors import UserError
from parity_models.models.bundle import open_bundle
from parity_models.serving.server import ServeOptions, Server
from served import ServerProcess, until

pytestmark = pytest.mark.slow


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
