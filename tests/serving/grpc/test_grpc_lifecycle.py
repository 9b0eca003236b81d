"""A server that speaks gRPC as it starts, loses a worker, and ends."""

import os
import signal
import socket
from pathlib import Path

import pytest

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
