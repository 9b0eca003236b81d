"""Connections over TLS have the limits that others have."""

import asyncio
import socket

from access_files import HOST, Files
from http_served import MODEL, Echo, body, eventually, get
from parity_models.serving.certificate import Certificate
from parity_models.serving.http import HttpServer, listen
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import ServedVersion
from parity_models.serving.rest.service import Rest


class Tls:
    """A server over an echo, over TLS."""

    def __init__(self, files: Files, limits: Limits) -> None:
        self.certificate = Certificate(files.certificate, files.key)
        self.metrics = Metrics()
        self.rest = Rest(
            ServedVersion(Echo(), MODEL), self.metrics, limits, ByteBudget(limits.max_in_flight)
        )
        self.http = HttpServer(self.rest, self.metrics, lambda: self.certificate.context)
        self.socket = listen(HOST, 0)
        self.port = self.socket.getsockname()[1]
        self.http.start(self.socket)

    def ended(self, limit: str) -> float:
        name = "parm_connections_ended_total"
        return self.metrics.registry.get_sample_value(name, {"limit": limit}) or 0.0


async def connect(tls: Tls, files: Files) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(HOST, tls.port, ssl=files.trusting, server_hostname=HOST)


async def test_a_handshake_that_does_not_come_ends_in_time(files: Files) -> None:
    tls = Tls(files, Limits(head_timeout=0.2))
    reader, writer = await asyncio.open_connection(HOST, tls.port)
    assert await reader.read() == b""
    writer.close()
    await eventually(lambda: tls.ended("handshake") == 1, "it is not counted")
    assert tls.http.connections == 0
    await tls.http.stop()


async def test_what_is_no_tls_ends_nothing_but_its_connection(files: Files) -> None:
    tls = Tls(files, Limits())
    reader, writer = await asyncio.open_connection(HOST, tls.port)
    writer.write(get())
    assert b"HTTP/1.1 200" not in await reader.read()
    writer.close()
    reader, writer = await connect(tls, files)
    writer.write(get())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await tls.http.stop()


async def test_requests_are_pipelined_refused_and_ended_as_without_tls(files: Files) -> None:
    tls = Tls(files, Limits(idle_timeout=1.0, max_body=1000))
    reader, writer = await connect(tls, files)
    writer.write(get() + get())
    text = await reader.readuntil(b'{"live":true}') + await reader.readuntil(b'{"live":true}')
    assert text.count(b"HTTP/1.1 200") == 2
    assert await reader.read() == b""  # for it was idle for too long
    assert tls.ended("idle timeout") == 1
    writer.close()
    reader, writer = await connect(tls, files)
    large = body() + b" " * 100_000
    head = f"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(large)}\r\n"
    writer.write(head.encode() + b"\r\n" + large)
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()
    await tls.http.stop()


async def test_a_server_stops_though_handshakes_hang(files: Files) -> None:
    tls = Tls(files, Limits(head_timeout=60))
    with socket.create_connection((HOST, tls.port)):
        await eventually(lambda: tls.http.connections == 1, "nobody is there")
        async with asyncio.timeout(60):
            await tls.http.stop()
    assert tls.http.connections == 0
