"""Connections over TLS have the limits that others have."""

import asyncio
import socket
from collections.abc import Callable
from ssl import SSLContext

import pytest

from access_files import Files
from http_served import eventually, get, serving
from parity_models.serving.access import Certificate

Tls = Callable[[], SSLContext]


@pytest.fixture
def tls(files: Files) -> Tls:
    certificate = Certificate(files.certificate, files.key)
    return lambda: certificate.context


async def test_a_handshake_that_does_not_come_ends_in_time(tls: Tls) -> None:
    async with serving(tls=tls, head_timeout=0.2) as served:
        client = await served.connect()
        assert await client.rest() == b""
        handshakes = "parm_connections_ended_total"
        await eventually(lambda: served.counted(handshakes, limit="handshake") == 1, "not counted")
        assert served.server.connections == 0


async def test_what_is_no_tls_ends_nothing_but_its_connection(files: Files, tls: Tls) -> None:
    async with serving(tls=tls) as served:
        client = await served.connect()
        client.send(get())
        assert b"HTTP/1.1 200" not in await client.rest()
        client = await served.connect(files.trusting)
        client.send(get())
        assert (await client.answer())[0] == 200
        client.close()


async def test_a_server_stops_though_handshakes_hang(tls: Tls) -> None:
    async with serving(tls=tls, head_timeout=60) as served:
        with socket.create_connection(("127.0.0.1", served.port)):
            await eventually(lambda: served.server.connections == 1, "no client arrives")
            async with asyncio.timeout(60):
                await served.server.stop()
        assert served.server.connections == 0
