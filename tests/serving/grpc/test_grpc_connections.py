"""Connections of gRPC clients that stop, never read, or are too many are closed; the port."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_served import INFER, request, serving
from http_served import eventually
from parity_models.bundle.bundle import open_bundle
from parity_models.errors import UserError
from parity_models.serving.grpc.service import bundle_of
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import ServedModel, ServedVersion
from parity_models.serving.server import ServeOptions, Server
from parity_models.tensors.signature import Signature, TensorSpec
from served import ServerProcess, until
from triton_requests import grpc_infer

pytestmark = pytest.mark.usefixtures("transport")


@pytest.mark.slow
async def test_the_connection_of_a_client_that_has_stopped_is_closed() -> None:
    """The client is a process that stops once it has asked, and its answer is large."""
    async with serving(idle_timeout=1, head_timeout=1) as (served, _):
        served.frontend.times = 2_000_000
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ASK, served.address, stdin=PIPE, stdout=PIPE
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(request())
        client.stdin.close()
        await eventually(lambda: served.frontend.asked == 1)
        client.send_signal(signal.SIGSTOP)
        served.frontend.may.set()
        await eventually(lambda: served.requests(200) == 1)
        assert established(served.address) == 1
        await eventually(lambda: established(served.address) == 0)
        client.send_signal(signal.SIGCONT)
        assert await client.stdout.read() == b"UNAVAILABLE"
        await client.wait()


def established(address: str) -> int:
    """Return the number of a server's connections, by the system's tables."""
    port = f":{int(address.rsplit(':', 1)[1]):04X}"
    tables = (Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    rows = [row.split() for table in tables for row in table.splitlines()]
    return sum(local.endswith(port) and state == "01" for _, local, _, state, *_ in rows)


ASK = f"""
import grpc, sys
channel = grpc.insecure_channel(sys.argv[1], [("grpc.max_receive_message_length", -1)])
try:
    channel.unary_unary({INFER!r})(sys.stdin.buffer.read())
    print("OK", end="")
except grpc.RpcError as error:
    print(error.code().name, end="")
"""
"""Asks the server at its argument what it reads, and says how that ends."""


@pytest.mark.slow
async def test_connections_beyond_the_limit_are_closed() -> None:
    async with serving(max_connections=2) as (served, ask), AsyncExitStack() as stack:
        served.frontend.may.set()
        await ask(request())
        host, port = served.address.rsplit(":", 1)
        _, writer = await asyncio.open_connection(host, int(port))
        stack.callback(writer.close)
        reader, writer = await asyncio.open_connection(host, int(port))
        stack.callback(writer.close)
        async with asyncio.timeout(20):
            with suppress(ConnectionResetError):
                while await reader.read(1000):
                    pass
        await ask(request())


async def test_garbage_is_a_client_s_mistake(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (served, _), served.channel() as channel:
        for method in ("Check", "Watch"):
            ask: Any = channel.unary_stream(f"/grpc.health.v1.Health/{method}")
            call = ask(b"\x0a\xff")
            assert await call.code() is StatusCode.INVALID_ARGUMENT
        assert not caplog.records


async def test_health_is_watched_until_the_server_stops() -> None:
    """By few streams; where other clients ask for predictions does not matter."""
    status = health_pb2.HealthCheckResponse
    async with serving(max_connections=2) as (served, infer), served.channel() as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs name no method
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == status.SERVING
        other = health.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert (await other.read()).status == status.SERVICE_UNKNOWN
        third = health.Watch(health_pb2.HealthCheckRequest())
        assert await third.code() is StatusCode.RESOURCE_EXHAUSTED
        assert "at most 2 streams of health" in await third.details()
        assert served.refused("max_connections") == 1
        served.frontend.may.set()
        await infer(request())
        for served.frontend.ready in (False, True):
            expected = status.SERVING if served.frontend.ready else status.NOT_SERVING
            assert (await watch.read()).status == expected
        await served.server.stop()
        assert (await watch.read()).status == status.NOT_SERVING
        for stream in (watch, other):
            assert await stream.code() is StatusCode.OK


async def test_a_watch_that_begins_between_two_changes_sees_the_second() -> None:
    """Also if no other stream has seen the first yet. A stream that is over leaves no task."""
    before = asyncio.all_tasks()
    async with serving() as (served, _), served.channel() as channel:
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        read = health_pb2.HealthCheckResponse.FromString
        first = watch(b"")
        assert read(await first.read()).status == health_pb2.HealthCheckResponse.SERVING
        served.frontend.ready = False
        second = watch(b"")
        assert read(await second.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        served.frontend.ready = True
        assert read(await second.read()).status == health_pb2.HealthCheckResponse.SERVING
        first.cancel()
        second.cancel()
        await served.server.stop(0)
        assert "Service.watch" not in str(asyncio.all_tasks() - before)


def test_metadata_has_what_the_messages_have_no_room_for() -> None:
    frontend: Any = SimpleNamespace(quarantined=("0.1", "2.0"), differ=None)
    signature = Signature.of(TensorSpec("x", "FP32", (4,)), TensorSpec("a, é", "FP32", (4,)))
    model = ServedModel("model", signature, 9, digest="of-bundle", sha256="of-file")
    assert bundle_of(ServedVersion(frontend, model, Metrics())) == (
        ("bundle-digest", "of-bundle"),
        ("model-sha256", "of-file"),
        ("exact-outputs", "a%2C%20%C3%A9"),
        ("quarantined-instances", "0.1,2.0"),
    )


@pytest.mark.slow
def test_workers_start_beside_connections(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ("--grpc-port", "0", "--instances", "1", "--policy", "none")
    with ServerProcess(str(bundle), *arguments) as server:
        grpc_infer(server.grpc_address, 0)
        os.kill(server.workers()[0], signal.SIGKILL)
        until(lambda: server.metric("parm_instance_restarts_total") == 1, "nothing came back")
    assert "fork" not in capfd.readouterr().err


@pytest.mark.slow
async def test_a_port_that_is_taken_is_refused(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(open_bundle(bundle), ServeOptions(port=0, grpc_port=port))
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1 port {port} for gRPC"):
            await server.start()
    with pytest.raises(UserError, match="grpc_port must be a whole number, from 0"):
        ServeOptions(grpc_port=70_000)
