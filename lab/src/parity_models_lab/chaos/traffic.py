"""Open-loop load of a chaos run: requests drawn by number from the seed, counted by their ends."""

import asyncio
from array import array
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, NamedTuple

import grpc
import msgspec
import numpy as np

from parity_models.roles import Source
from parity_models.serving.client import Client, ClientError, StatusError
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.grpc.protos import ModelInferRequest, ModelInferResponse
from parity_models.serving.protocol import HEADER_LENGTH, read_response, write_request
from parity_models_lab.chaos.server import (
    INPUTS,
    LONG,
    MODEL,
    OUTPUTS,
    POISON,
    Floats,
    TestedServer,
)
from parity_models_lab.results import Row
from parity_models_lab.served import post

INFER = "/inference.GRPCInferenceService/ModelInfer"
PATH = f"/v2/models/{MODEL}/infer"
ABSURD = (5.0, 100.0, -1e6, 1e30, 3e38, float("nan"), float("inf"))
SLACK = 5.0
"""Seconds beyond its deadline after which a query counts as lost: the machine may be busy."""
LARGE, LARGE_ROWS = 3, 128
"""Clients that ask again as soon as they are answered, and the rows of their requests."""
PAUSE = 0.05
"""Seconds between two acts of a client, or two bytes."""
BETWEEN_LARGE, BETWEEN_LONG = 0.02, 8.0
"""Seconds between the end of a large request, or a long query, and the next one."""
RATE = 70.0
"""Requests a second, of 2.8 queries on average."""
BURST_ROWS = 16
"""Rows of a request in overload: many queries, and few requests for clients to write."""


class Request(NamedTuple):
    """A request of some `kind`: about `rows` (n, any multiple of INPUTS), or the bytes `raw`.

    `patience` in seconds until the client hangs up. It is sent in `form` "binary", "json" or "grpc"
    (with typed contents), and may be for an `exact` answer over gRPC.
    """

    kind: str
    rows: Floats | None
    raw: bytes = b""
    patience: float | None = None
    form: str = "binary"
    exact: bool = False

    @property
    def queries(self) -> int:
        return 1 if self.rows is None else len(self.rows)


def draw(number: int, seed: int, mix: Mapping[str, float], rows: Floats) -> Request:
    """Draw request `number` of a run, which depends on these arguments alone, from the `rows`.

    `mix` has the shares of kinds of requests; the rest is honest, and so is a "burst" of many rows.
    """
    rng = Random(f"{seed}/{number}")
    shares = {**mix, "honest": 1.0 - sum(mix.values())}
    (kind,) = rng.choices(list(shares), list(shares.values()))
    if kind == "nonsense":
        return Request(kind, None, rng.choice(_NONSENSE))
    size = BURST_ROWS if kind == "burst" else rng.choice((1, 1, 1, 2, 4, 8))
    asked = rows[[rng.randrange(len(rows)) for _ in range(size)]]
    if kind == "absurd":  # in one element, or in all of them
        asked[:, slice(None) if rng.random() < 0.5 else rng.randrange(INPUTS)] = rng.choice(ABSURD)
    elif kind == "poison":
        asked = asked[:1]
        asked[0, 0] = POISON
    patience = rng.uniform(0.001, 0.05) if kind == "impatient" else None
    kind, share, form = "honest" if kind == "burst" else kind, rng.random(), "binary"
    if share > 0.9:
        form = "grpc"
    elif share < 0.05 and np.isfinite(asked).all():
        form = "json"
    return Request(kind, asked, patience=patience, form=form, exact=share > 0.95)


def in_json(**changes: object) -> bytes:
    """Return a whole HTTP request in JSON for one row, but for these fields of its input."""
    tensor: dict[str, object] = {"name": "input", "datatype": "FP32", "shape": [1, INPUTS]}
    return post(
        MODEL, msgspec.json.encode({"inputs": [tensor | {"data": [0.5] * INPUTS} | changes]})
    )


_NONSENSE = (
    *(in_json(shape=[rows, INPUTS]) for rows in (0, -1, 2, 2**40)),
    *(in_json(data=data) for data in ([], [0.5] * (INPUTS - 1), [[0.5, "a"]], [1e39] * INPUTS)),
    *(in_json(datatype=each) for each in ("FP64", "BYTES", "", "float")),
    *(post(MODEL, each) for each in (b"[" * 10_000, b'{"inputs": [{"name": "input", "shape": [1')),
    *(post(MODEL, b"{}", {HEADER_LENGTH: each}) for each in ("x", "-1", "99")),
    b"GET / HTTP/1.1\r\nHost: server\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    b"\xff\0no HTTP" * 20 + b"\r\n\r\n",
)


@asynccontextmanager
async def repeated(
    times: int, act: Callable[[], Awaitable[None]], pause: float = PAUSE
) -> AsyncIterator[None]:
    """Let so many tasks act again and again while the context lasts."""

    async def again() -> None:
        while True:
            with suppress(OSError):
                await act()
            await asyncio.sleep(pause)

    tasks = [asyncio.create_task(again()) for _ in range(times)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to the server, and break the connection at the context's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(port: int, request: bytes) -> int:
    """Send bytes as they are, and go when the answer begins. Return its status."""
    async with connection(port) as (reader, writer):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        if not head.startswith("HTTP/1."):
            raise ConnectionError(f"no HTTP: {head[:40]!r}")
        return int(head.split()[1])


@dataclass
class Page:
    """The phases of one name: queries by their end (right, wrong, errors, hung up, broken, no end)
    and its detail, instances started again, by the reason, and the worst times in seconds."""

    times: int = 0
    ends: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    recycled: Counter[str] = field(default_factory=Counter)
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    worst: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def took(self, name: str, seconds: float) -> None:
        """Note a time, of which the longest counts."""
        self.worst[name] = max(self.worst[name], seconds)

    def row(self, name: str) -> Row:
        """Return the row of a report, with columns as lab/notes/reliability.md describes them."""
        quantiles = np.quantile(self.latencies, (0.5, 0.999)) * 1e3 if self.latencies else ()
        return {
            "during": name,
            "times": self.times,
            "queries": sum(each.total() for each in self.ends.values()),
            "right": self.ends["right"].total(),
            **{each: dict(self.ends[each]) for each in ("wrong", "errors", "broken")},
            **{each: self.ends[each].total() for each in ("hung up", "no end")},
            "recycled": dict(self.recycled),
            **dict(zip(("p50", "p99.9"), map(float, quantiles), strict=False)),
            **{each: round(seconds, 3) for each, seconds in sorted(self.worst.items())},
        }


class Traffic:
    """Sends requests at `rate` a second, drawn from `mix`, and counts their ends on a `page`.
    `lies`: an instance may be lying. `sent` counts queries."""

    def __init__(self, server: TestedServer, client: Client, *, seed: int, deadline: float) -> None:
        self._server, self._model, self._client = server, server.model, client
        self._seed, self._deadline = seed, deadline
        self._gaps = Random(f"{seed}/arrivals")
        self._number = 0
        self._tasks: set[asyncio.Task[bool]] = set()
        self._last_right: float | None = None
        self.rate, self.mix = RATE, dict[str, float]()
        self.page, self.lies, self.sent = Page(), False, 0

    @asynccontextmanager
    async def offered(self) -> AsyncIterator[None]:
        """Send requests while the context lasts; all have ended when it is left."""
        self._last_right, self._due = None, now()
        large = Request("honest", np.resize(self._model.rows, (LARGE_ROWS, INPUTS)))
        long = Request("honest", np.resize(self._model.rows, (1, LONG)))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._server.grpc_port}") as channel:
            self._infer: Any = channel.unary_unary(
                INFER, ModelInferRequest.SerializeToString, ModelInferResponse.FromString
            )
            async with (
                repeated(1, self._send_next, 0.0),
                repeated(1, partial(self._send_alone, long), BETWEEN_LONG),
                repeated(LARGE, partial(self._send_alone, large), BETWEEN_LARGE),
            ):
                yield
            if self._tasks:
                await asyncio.wait(list(self._tasks))

    async def probe(self) -> bool:
        """Send one honest query. Return whether the answer is right."""
        return await self._send(now(), Request("honest", self._model.rows[:1]))

    async def _send_next(self) -> None:
        self._due += self._gaps.expovariate(self.rate)
        await asyncio.sleep(self._due - now())
        self._send(self._due, draw(self._number + 1, self._seed, self.mix, self._model.rows))

    async def _send_alone(self, request: Request) -> None:
        await asyncio.wait([self._send(now(), request)])

    def _send(self, due: float, request: Request) -> "asyncio.Task[bool]":
        self._number += 1
        self.sent += request.queries
        task = asyncio.create_task(self._ask(str(self._number), due, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask(self, number: str, due: float, request: Request) -> bool:
        """Ask, and count the end. Return whether the whole answer is right."""
        page, queries = self.page, request.queries
        try:
            async with asyncio.timeout(request.patience or self._deadline + SLACK):
                outputs, sources = await self._answer(number, request)
        except TimeoutError:
            page.ends["no end" if request.patience is None else "hung up"][""] += queries
        except StatusError as error:
            reason, colon, _ = error.text.removeprefix('{"error":"').partition(": ")
            detail = f"{error.status} {reason}" if colon and len(reason) < 30 else f"{error.status}"
            if request.kind in ("absurd", "nonsense", "poison"):
                detail = f"{request.kind}: {error.status}"
            page.ends["errors"][detail] += queries
        except grpc.aio.AioRpcError as error:
            detail = "" if request.kind in ("honest", "impatient") else f"{request.kind}: "
            page.ends["errors"][f"{detail}gRPC {error.code().name}"] += queries
        except (ClientError, OSError, EOFError, InvalidRequestError) as error:
            page.ends["broken"][f"{request.kind}: {error}"[:80]] += queries
        else:
            right = np.zeros(1, np.bool_)
            if request.rows is not None:
                right = self._model.right(request.rows, outputs)
            if request.exact:
                right &= [source is Source.MODEL for source in sources]
            asked = "" if request.kind == "honest" else f", {request.kind}"
            why = ", instance lied" if self.lies else asked
            for good, source in zip(right.tolist(), sources, strict=True):
                end, detail = ("right", source) if good else ("wrong", f"{source}{why}")
                page.ends[end][detail] += 1
            if request.kind == "honest" and right.all():
                page.latencies.append((at := now()) - due)
                page.took("outage", at - (self._last_right or at))
                self._last_right = at
            return bool(right.all())
        return False

    async def _answer(self, number: str, request: Request) -> tuple[Floats, Sequence[Source]]:
        """Return outputs (n, OUTPUTS), and the source of each row."""
        if request.rows is None:
            status = await ask(self._server.port, request.raw)
            if status != 200:
                raise StatusError(status, "")
            return np.empty((1, OUTPUTS), np.float32), [Source.MODEL]
        if request.form == "grpc":
            return await self._answer_by_grpc(number, request.rows, exact=request.exact)
        binary = request.form == "binary"
        body, headers = write_request({"input": request.rows}, id=number, binary=binary)
        content, length = await self._client.ask("POST", PATH, body, headers)
        if f'"id":"{number}"'.encode() not in content:
            raise InvalidRequestError("the answer has another request's id")
        answer = read_response(content, length)
        (output,) = answer.outputs
        return output.array(), answer.sources(len(request.rows))

    async def _answer_by_grpc(
        self, number: str, rows: Floats, *, exact: bool
    ) -> tuple[Floats, Sequence[Source]]:
        message = ModelInferRequest(model_name=MODEL, id=number)
        message.parameters["redundancy"].string_param = "exact" if exact else "any"
        tensor = message.inputs.add(name="input", datatype="FP32", shape=rows.shape)
        tensor.contents.fp32_contents.extend(rows.ravel().tolist())
        answer = await self._infer(message)
        if answer.id != number:
            raise InvalidRequestError("the answer has another request's id")
        values = np.array(answer.outputs[0].contents.fp32_contents, np.float32)
        sources = answer.parameters["source"].string_param.split(",")
        return values.reshape(-1, OUTPUTS), tuple(map(Source, sources))


def now() -> float:
    """Return the event loop's time."""
    return asyncio.get_running_loop().time()
