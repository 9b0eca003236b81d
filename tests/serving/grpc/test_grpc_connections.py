"""Connections of gRPC clients that stop, never read, or are too many are closed."""

import asyncio
import signal
import socket
import struct
import sys
import time
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from grpc_served import INFER, READY, method, request, serving, until
from http2_frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    call_headers,
    frame,
)
from parity_models.serving.errors import OverloadedError
from parity_models.serving.grpc.calls import RESERVE
from parity_models.serving.grpc.connections import Connections

pytestmark = pytest.mark.slow


async def test_the_connection_of_a_client_that_has_stopped_is_closed() -> None:
    """The client is a process that stops once it has asked, and its answer is large."""
    async with serving(idle_timeout=1, head_timeout=1) as (served, _):
        served.frontend.widen = 2_000_000
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ASK, served.address, stdin=PIPE, stdout=PIPE
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(request())
        client.stdin.close()
        await until(lambda: served.frontend.asked == 1)
        client.send_signal(signal.SIGSTOP)
        served.frontend.go.set()
        await until(lambda: served.requests(200) == 1)
        assert established(served.address) == 1
        await until(lambda: established(served.address) == 0)
        client.send_signal(signal.SIGCONT)
        assert await client.stdout.read() == b"UNAVAILABLE"
        await client.wait()


def established(address: str) -> int:
    """How many connections a server has, as the system sees it."""
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


async def test_an_answer_that_is_never_read_ends_its_connection_and_is_held_till_then() -> None:
    """The client answers pings, but leaves the server no room in HTTP/2's window."""
    async with serving(write_timeout=1.5) as (served, infer):
        served.frontend.go.set()
        client = asyncio.create_task(ask_and_never_read(served.address, request(1000)))
        await until(lambda: served.requests(200) == 1)
        await asyncio.sleep(0.1)
        assert served.budget.held > 16_000
        await infer(request())  # which others do not notice
        await until(lambda: served.budget.held == 0)
        await asyncio.wait_for(client, 60)
        assert served.ended("write timeout") == 1
        await infer(request())


@pytest.mark.parametrize(
    ("host", "peer"), [("127.0.0.1", "ipv4:127.0.0.1:{}"), ("::1", "ipv6:%5B::1%5D:{}")]
)
def test_the_connection_of_a_peer_alone_is_closed(host: str, peer: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        with socket.create_connection((host, port)) as client, server.accept()[0] as accepted:
            name = peer.format(client.getsockname()[1])
            here, elsewhere = Connections(1), Connections(1)
            here.port, elsewhere.port = port, port + 1
            assert not elsewhere.close(name)
            assert not here.close(peer.format(1))
            accepted.sendall(b"still there")
            assert client.recv(100) == b"still there"
            assert here.close(name)
            assert client.recv(100) == b""
    assert not here.close("unix:")


async def test_an_answer_that_is_read_in_time_keeps_its_connection() -> None:
    async with serving(write_timeout=1) as (served, infer):
        served.frontend.go.set()
        served.frontend.widen = 10_000
        await infer(request(10))
        await asyncio.sleep(1.5)
        assert served.budget.held == 0
        assert served.ended("write timeout") == 0


async def ask_and_never_read(address: str, message: bytes) -> None:
    """A call whose stream's window is 0 (RFC 9113, section 6.9), until the connection is over."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))

    def send(kind: int, flags: int, stream: int, payload: bytes) -> None:
        writer.write(frame(kind, flags, stream, payload))

    writer.write(PREFACE)
    send(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))  # SETTINGS_INITIAL_WINDOW_SIZE
    send(HEADERS, END_HEADERS, 1, call_headers(address, INFER))
    data = struct.pack(">BI", 0, len(message)) + message
    for start in range(0, len(data), 16_000):
        piece = data[start : start + 16_000]
        send(DATA, END_STREAM if start + 16_000 >= len(data) else 0, 1, piece)
    try:
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] == PING and not head[4] & ACK:
                send(PING, ACK, 0, payload)
    except (asyncio.IncompleteReadError, ConnectionResetError):
        writer.close()


async def test_the_connection_too_many_is_told_so_until_another_one_ends() -> None:
    async with serving(max_connections=2) as (served, infer):
        served.frontend.go.set()
        await infer(request())
        async with served.channel() as third:
            async with served.channel() as second:
                await method(second)(request())
                for name in (INFER, READY):
                    text = r"takes at most 2 gRPC connections \(max_connections\)"
                    with pytest.raises(grpc.aio.AioRpcError, match=text) as error:
                        await method(third, name)(b"")
                    assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED
                assert served.refused("max_connections") == 2
                health: Any = health_pb2_grpc.HealthStub(third)  # its stubs name no method
                assert (await health.Check(health_pb2.HealthCheckRequest())).status
                await infer(request())

            async def is_taken() -> bool:
                try:
                    await method(third)(request())
                except grpc.aio.AioRpcError:
                    return False
                return True

            async with asyncio.timeout(20):
                while not await is_taken():
                    await asyncio.sleep(0.01)
            await infer(request())


async def test_connections_beyond_those_that_can_be_told_are_closed() -> None:
    async with serving(max_connections=1) as (served, infer), AsyncExitStack() as stack:
        served.frontend.go.set()
        await infer(request())
        host, port = served.address.rsplit(":", 1)
        for _ in range(RESERVE):
            _, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
        reader, writer = await asyncio.open_connection(host, int(port))
        stack.callback(writer.close)
        async with asyncio.timeout(20):
            with suppress(ConnectionResetError):
                while await reader.read(1000):
                    pass
        await infer(request())


def test_connections_that_have_ended_make_room() -> None:
    """So often that looking for them takes no more than a share of the time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connections = Connections(2)
        connections.port = port

        def connect() -> socket.socket:
            client = socket.create_connection(("127.0.0.1", port))
            accepted.append(server.accept()[0])
            return client

        def name(client: socket.socket) -> str:
            return f"ipv4:127.0.0.1:{client.getsockname()[1]}"

        accepted: list[socket.socket] = []
        first, second, third = connect(), connect(), connect()
        for client in (first, second, first):
            connections.admit(name(client))
        with pytest.raises(OverloadedError, match="at most 2 gRPC connections"):
            connections.admit(name(third))
        first.close()
        accepted[0].close()
        until_admitted(connections, name(third))
        with pytest.raises(OverloadedError):
            connections.admit(f"ipv4:127.0.0.1:{port}")
        for each in (second, third, *accepted):
            each.close()


def until_admitted(connections: Connections, peer: str) -> None:
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        with suppress(OverloadedError):
            return connections.admit(peer)
        time.sleep(0.01)
    raise AssertionError("a connection that has ended makes no room")
