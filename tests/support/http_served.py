"""A real HTTP server over an echo, and clients that write bytes, for tests of the HTTP layer."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from parity_models.roles import Source
from parity_models.serving.errors import OverloadedError, RequestError
from parity_models.serving.http import HttpServer, listen, url_of
from parity_models.serving.inference import Inference
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Result, ServedModel, ServedVersion
from parity_models.serving.protocol import write_request
from parity_models.serving.rest import Rest
from parity_models.tensors.signature import Signature, TensorSpec

MODEL = ServedModel(
    "model", Signature.of(TensorSpec("x", "FP32", (4,)), TensorSpec("y", "FP32", (4,))), 2000
)
INFER = "/v2/models/model/infer"


class Echo:
    """A frontend whose answers are its inputs, `times` over, or an `error`, once it may answer."""

    ready = True
    quarantined = ()
    differ: float | None = None

    def __init__(self, times: int = 1) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.asked = 0
        self.cancelled = 0
        self.room, self.retry_after = 10**6, 0.01
        self.times = times
        self.error: RequestError | None = None

    def check_admission(self, rows: int, timeout: float | None) -> None:
        if rows > self.room:
            raise OverloadedError("overloaded: too much waits", retry_after=self.retry_after)

    async def infer(
        self, rows: NDArray[Any], timeout: float | None = None, **sharing: object
    ) -> Result:
        self.asked += 1
        try:
            await self.may.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if rows[0, 0] < 0:
            raise OverloadedError("overloaded: too much waits", retry_after=-float(rows[0, 0]))
        if self.error is not None:
            raise self.error
        return Result(np.tile(rows, (1, self.times)), [Source.MODEL] * len(rows))


class Served:
    """A server over an echo, and what a test needs to know of it."""

    def __init__(
        self, limits: Limits, echo: Echo, tls: Callable[[], SSLContext] | None = None
    ) -> None:
        self.echo = echo
        self.clients: list[Client] = []
        self.metrics = Metrics()
        self.budget = ByteBudget(limits.max_in_flight)
        version = ServedVersion(cast(Any, echo), MODEL, self.metrics)
        self.server = HttpServer(Rest(Inference(version, self.budget), limits), tls)
        self.metrics.connections.set_function(lambda: self.server.connections)
        self.metrics.bytes_in_flight.set_function(lambda: self.budget.held)
        self.socket = listen("127.0.0.1", 0)
        self.url = url_of(self.socket)
        self.port = self.socket.getsockname()[1]
        self.server.serve(self.socket)

    async def connect(self, tls: SSLContext | None = None, address: str = "127.0.0.1") -> "Client":
        here = ("127.0.0.1", self.port)
        client = Client(
            *await asyncio.open_connection(*here, limit=2**24, ssl=tls, local_addr=(address, 0))
        )
        self.clients.append(client)
        return client

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    async def answer(self, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of the next answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        size = 0 if head else int(headers.get("content-length", 0))
        return int(lines[0].split()[1]), headers, await self.reader.readexactly(size)

    async def ask(self, *pieces: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request, and return its answer."""
        self.send(*pieces)
        return await self.answer()

    async def error(self) -> tuple[int, str]:
        """Status and text of the next answer, which is an error, and the connection's last."""
        status, headers, content = await self.answer()
        assert headers["connection"] == "close"
        assert await self.rest() == b""
        return status, json.loads(content)["error"]

    async def rest(self) -> bytes:
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.close()


@asynccontextmanager
async def serving(
    echo: Echo | None = None, tls: Callable[[], SSLContext] | None = None, **limits: Any
) -> AsyncIterator[Served]:
    served = Served(Limits(**limits), echo or Echo(), tls)
    try:
        yield served
    finally:
        served.echo.may.set()
        for client in served.clients:
            client.close()
        await served.server.stop()
    assert served.budget.held == 0


async def eventually(condition: Callable[[], bool], otherwise: str = "it is not so") -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, otherwise
        await asyncio.sleep(0.005)


def body(*values: float) -> bytes:
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": list(values) or [0.0] * 4}
    return json.dumps({"inputs": [tensor]}).encode()


def binary(rows: NDArray[np.float32], name: str = "x") -> bytes:
    """A whole request with binary data both ways."""
    content, headers = write_request({name: rows})
    return post(content, "".join(f"{key}: {value}\r\n" for key, value in headers.items()))


def post(content: bytes, more: str = "", path: str = INFER, version: str = "1.1") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\n{more}Content-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def get(path: str = "/v2/health/live", more: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()
