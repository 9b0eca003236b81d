"""The floor of a request's cost: the transport, the codec and the workers of `parm serve` alone.

REST has the HTTP parser, and gRPC the server's own connections, for their flow control. A worker
takes the rows that wait, in the order in which they came. There is no scheduler, and so no
deadline, no bound of queues or bytes, no redundancy, no check of instances, no metric and no log.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any

import httptools
import uvloop
from numpy.typing import NDArray

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.roles import DEPLOYED, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.deployment import Deployment
from parity_models.serving.garbage import freeze_modules
from parity_models.serving.grpc import codec
from parity_models.serving.grpc.grpc_server import GrpcServer
from parity_models.serving.grpc.service import Rpc
from parity_models.serving.http import listen, url_of
from parity_models.serving.inference import InferRequest
from parity_models.serving.limits import ByteBudget, Limits
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Result
from parity_models.serving.protocol import HEADER_LENGTH
from parity_models.serving.rest_codec import read_request, write_response
from parity_models.serving.server import ServeOptions
from parity_models_lab.processes import READY, commands, run_child, tell

_LENGTH = HEADER_LENGTH.encode()

Answer = Callable[[NDArray[Any]], object]


class Floor:
    """Workers that run rows as they come; listens to the engine of a bundle's deployment."""

    def __init__(self, bundle: Bundle) -> None:
        deployment = Deployment(bundle, ServeOptions(policy=PolicyChoice("none")))
        self.model, self.roles = deployment.model, deployment.roles
        self.engine, self._batch = deployment.engine, deployment.max_batch
        self._idle, self._units = deque[str](), count()
        self._waiting = deque[tuple[InferRequest, Answer]]()
        self._running: dict[int, tuple[str, Sequence[tuple[InferRequest, Answer]]]] = {}

    def ask(self, asked: InferRequest, answer: Answer) -> None:
        """Run a request's row as soon as a worker is idle; call `answer` with its outputs."""
        if asked.rows is None:
            asked.rows = _done(asked.read_rows())
        self._waiting.append((asked, answer))
        if len(self._waiting) == 1:  # others may come in this turn of the event loop
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        while self._idle and self._waiting:
            instance, unit = self._idle.popleft(), next(self._units)
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            self._running[unit] = instance, batch
            rows = [asked.rows[0] for asked, _ in batch if asked.rows is not None]
            self.engine.run(instance, unit, DEPLOYED, rows)

    # Of an engine's listener

    def instance_joined(
        self, instance: str, roles: frozenset[str], node: str | None = None
    ) -> None:
        self._idle.append(instance)
        self._run()

    def instance_left(self, instance: str, why: str) -> None:
        raise SystemExit(f"a worker ended: {why}")

    def unit_finished(
        self, unit: int, outputs: NDArray[Any], *, ended: float | None = None
    ) -> None:
        instance, batch = self._running.pop(unit)
        for row, (_, answer) in enumerate(batch):
            answer(outputs[row : row + 1])
        self._idle.append(instance)
        self._run()

    def unit_failed(self, unit: int, detail: str, *, busy: float = 0.0) -> None:
        raise SystemExit(f"a unit failed: {detail}")

    def headers_of(self, unit: int) -> Mapping[str, str]:
        return {}


class Connection(asyncio.Protocol):
    """A connection, on which a client waits for each answer before it sends its next request."""

    def __init__(self, floor: Floor) -> None:
        self._floor, self._parser = floor, httptools.HttpRequestParser(self)
        self._length: str | None = None
        self._body = b""

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == _LENGTH:
            self._length = value.decode()

    def on_body(self, piece: bytes) -> None:
        self._body = self._body + piece if self._body else piece

    def on_message_complete(self) -> None:
        asked, self._body = read_request(self._body, self._length, self._floor.model), b""
        self._floor.ask(asked, partial(self._answer, asked))

    def _answer(self, asked: InferRequest, outputs: NDArray[Any]) -> None:
        head, binary = _done(write_response(asked, Result(outputs, [Source.MODEL])))
        sizes = len(head), len(head) + sum(map(len, binary))
        lines = b"HTTP/1.1 200 OK\r\n%b: %d\r\ncontent-length: %d\r\n\r\n" % (_LENGTH, *sizes)
        self._transport.write(b"".join((lines, head, *binary)))


class GrpcFloor(GrpcServer):
    """The server of gRPC, whose calls are neither admitted, logged nor counted."""

    def __init__(self, floor: Floor) -> None:
        models: Any = SimpleNamespace(metrics=Metrics())
        inference: Any = SimpleNamespace(models=models, budget=ByteBudget(2**30))
        super().__init__(inference, Limits())
        self._floor = floor

    def begin(self, rpc: Rpc) -> None:
        pass

    async def answer(self, rpc: Rpc) -> bytes:
        model, future = self._floor.model, asyncio.get_running_loop().create_future()
        asked = codec.read_request(*codec.decode(rpc.body, model, self.limits.max_json), model)
        self._floor.ask(asked, future.set_result)
        return await codec.write_response(asked, Result(await future, [Source.MODEL]))


def _done(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise ValueError("an answer of this size is not for the floor")


async def _serve(bundle: str) -> None:
    floor = Floor(open_bundle(bundle))
    await floor.engine.start(floor.roles, floor)
    listening = listen("127.0.0.1", 0)
    await asyncio.get_running_loop().create_server(lambda: Connection(floor), sock=listening)
    url = await GrpcFloor(floor).start("127.0.0.1", 0)
    freeze_modules()
    tell(f"{READY} {url_of(listening)}")
    async for _ in await commands():
        tell(url)
    await floor.engine.stop()


if __name__ == "__main__":
    run_child(lambda: uvloop.run(_serve(sys.argv[1])))
