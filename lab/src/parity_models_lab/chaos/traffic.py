"""Open-loop load of a chaos run: requests drawn by number from the seed, all in the ledger."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import grpc
import grpc.aio
import msgspec
import numpy as np

from parity_models.scheduling import Source
from parity_models.serving.client import Client, ClientError, StatusError
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.grpc.inference_pb2 import ModelInferRequest, ModelInferResponse
from parity_models.serving.protocol import HEADER_LENGTH, read_response
from parity_models_lab.chaos.known_model import (
    INPUTS,
    LONG,
    MODEL,
    OUTPUTS,
    ROWS,
    Floats,
    KnownModel,
)
from parity_models_lab.chaos.ledger import Ending, Kind, Ledger, Sent

POISON = 12345.0
"""The first element of a query that crashes the instance that runs it."""
ABSURD = (5.0, 100.0, -1e6, 1e30, 3e38, float("nan"), float("inf"))
PATH = f"/v2/models/{MODEL}/infer"
SLACK = 5.0
"""Seconds beyond its deadline within which a query must have ended, on a busy machine."""
GRACE = 0.01
"""Seconds for answers that have arrived while this process was held up."""
LARGE, LARGE_ROWS = 3, 128
"""Clients that ask again as soon as they are answered, and the rows of their requests."""
BETWEEN_LARGE, BETWEEN_LONG = 0.05, 8.0
"""Seconds between the refusal of a large request, or the end of a long query, and the next one."""
MEMORY = 2.0
"""Seconds for which answers of an instance that has stopped lying may still arrive."""
METHOD = "/inference.GRPCInferenceService/ModelInfer"
STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""The HTTP statuses that gRPC's stand for; all others are 500."""
TRANSPORT = ("connect", "Socket closed", "recvmsg", "GOAWAY", "Connection reset", "Broken pipe")
"""Parts of grpc's own texts for a connection that broke."""

Answer = tuple[Floats, Sequence[Source]]
"""Outputs (n, OUTPUTS), and the source of each row."""


@dataclass(frozen=True)
class Drawn:
    """A request: `rows` (n, INPUTS) to ask about, or None, and `raw` is sent as it is.

    `values` are the rows in JSON, if they are sent so. `timeout` in seconds, None for the server's;
    `patience` in seconds until the client hangs up.
    """

    kind: Kind
    rows: Floats | None
    raw: bytes = b""
    values: bytes | None = None
    timeout: float | None = None
    patience: float | None = None
    exact: bool = False
    grpc: bool = False

    @classmethod
    def in_json(cls, rows: Floats) -> "Drawn":
        """Return an honest request in JSON."""
        return cls(Kind.HONEST, rows, values=_values(rows))


@dataclass(frozen=True)
class Mix:
    """Shares of all requests by kind; the rest is honest.

    `timeouts`: the range of an honest request's timeout in seconds, if all of them have one.
    `rows`: the numbers of rows that an honest request may have.
    """

    absurd: float = 0.0
    nonsense: float = 0.0
    poison: float = 0.0
    impatient: float = 0.0
    timeouts: tuple[float, float] | None = None
    rows: tuple[int, ...] = (1, 1, 1, 2, 4, 8)


def draw(number: int, seed: int, mix: Mix, model: KnownModel, deadline: float) -> Drawn:
    """Draw request `number` of the run; it depends on these arguments alone."""
    rng = Random(f"{seed}/{number}")
    shares = {
        Kind.ABSURD: mix.absurd,
        Kind.NONSENSE: mix.nonsense,
        Kind.POISON: mix.poison,
        Kind.IMPATIENT: mix.impatient,
    }
    shares[Kind.HONEST] = 1.0 - sum(shares.values())
    (kind,) = rng.choices(list(shares), list(shares.values()))
    if kind is Kind.NONSENSE:
        return Drawn(kind, None, rng.choice(_NONSENSE)(rng))
    rows = model.rows[[rng.randrange(ROWS) for _ in range(rng.choice(mix.rows))]]
    if kind is Kind.ABSURD:  # in one element, or in all of them
        columns = slice(None) if rng.random() < 0.5 else rng.randrange(INPUTS)
        rows[:, columns] = rng.choice(ABSURD)
    elif kind is Kind.POISON:
        rows = rows[:1]
        rows[0, 0] = POISON
    timeout = None
    if mix.timeouts is not None:
        timeout = rng.uniform(*mix.timeouts)
    elif rng.random() < 0.2:
        timeout = rng.uniform(0.1, deadline)
    return Drawn(
        kind,
        rows,
        timeout=timeout,
        patience=rng.uniform(0.001, 0.05) if kind is Kind.IMPATIENT else None,
        values=_values(rows) if rng.random() < 0.05 and np.isfinite(rows).all() else None,
        exact=rng.random() < 0.05,
        grpc=rng.random() < 0.1,
    )


def _values(rows: Floats) -> bytes:
    return msgspec.json.encode(rows.ravel().tolist())


def infer_request(drawn: Drawn, number: int) -> tuple[bytes, dict[str, str]]:
    """Write a request about rows, whose answer is binary: its body and headers."""
    assert drawn.rows is not None
    tensor: dict[str, object] = {"name": "input", "datatype": "FP32", "shape": drawn.rows.shape}
    parameters: dict[str, object] = {"binary_data_output": True}
    if drawn.timeout is not None:
        parameters["timeout"] = max(1, round(drawn.timeout * 1e6))
    if drawn.exact:
        parameters["redundancy"] = "exact"
    message = {"id": str(number), "inputs": [tensor], "parameters": parameters}
    if drawn.values is not None:
        tensor["data"] = msgspec.Raw(drawn.values)
        return msgspec.json.encode(message), {"Content-Type": "application/json"}
    tensor["parameters"] = {"binary_data_size": drawn.rows.nbytes}
    head = msgspec.json.encode(message)
    return head + drawn.rows.tobytes(), {HEADER_LENGTH: str(len(head))}


def _post(body: bytes, path: str = PATH, headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: server\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def _infer(**changes: object) -> bytes:
    tensor: dict[str, object] = {"name": "input", "datatype": "FP32", "shape": [1, INPUTS]}
    tensor |= {"data": [0.5] * INPUTS} | changes
    return _post(msgspec.json.encode({"inputs": [tensor]}))


_NONSENSE = (
    lambda rng: _infer(shape=[1, INPUTS + rng.randint(1, 9)]),
    lambda rng: _infer(shape=[rng.choice((0, -1, 2**40)), INPUTS]),
    lambda rng: _infer(data=[0.5] * rng.randrange(INPUTS)),
    lambda rng: _infer(data=[[0.5, "a"]]),
    lambda rng: _infer(datatype=rng.choice(("FP64", "BYTES", "", "float"))),
    lambda rng: _infer(name="other"),
    lambda rng: _infer(data=[1e39] * INPUTS),
    lambda rng: _post(rng.randbytes(rng.randrange(1, 400))),
    lambda rng: _post(b"[" * 10_000),
    lambda rng: _post(b'{"inputs": [{"name": "input", "datatype": "FP32", "shape": [1'),
    lambda rng: _post(b"", path="/v2/models/another/infer"),
    lambda rng: _post(b"{}", headers=f"{HEADER_LENGTH}: {rng.choice(('x', '-1', '99'))}\r\n"),
    lambda rng: b"BREW /pot HTTP/1.1\r\nHost: server\r\n\r\n",
    lambda rng: b"GET / HTTP/1.1\r\nHost: server\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    lambda rng: rng.randbytes(200) + b"\r\n\r\n",
)


class GrpcClient:
    """One channel for all calls, which HTTP/2 multiplexes."""

    def __init__(self, address: str) -> None:
        options = (("grpc.max_reconnect_backoff_ms", 500), ("grpc.enable_retries", 0))
        self._channel = grpc.aio.insecure_channel(address, options)
        self._call = self._channel.unary_unary(
            METHOD,
            request_serializer=ModelInferRequest.SerializeToString,
            response_deserializer=ModelInferResponse.FromString,
        )

    async def infer(self, drawn: Drawn, number: int) -> Answer:
        """Ask about rows. Raises StatusError, or ConnectionError where the connection broke."""
        assert drawn.rows is not None
        message = ModelInferRequest(model_name=MODEL, id=str(number))
        message.inputs.add(name="input", datatype="FP32", shape=drawn.rows.shape)
        message.raw_input_contents.append(drawn.rows.tobytes())
        if drawn.timeout is not None:
            message.parameters["timeout"].int64_param = max(1, round(drawn.timeout * 1e6))
        if drawn.exact:
            message.parameters["redundancy"].string_param = "exact"
        try:
            response = await self._call(message)
        except grpc.aio.AioRpcError as error:
            text = error.details() or ""
            unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
            if unavailable and any(map(text.__contains__, TRANSPORT)):
                raise ConnectionError(f"gRPC: {text[:60]}") from error
            raise StatusError(STATUSES.get(error.code(), 500), text) from error
        if response.id != str(number):
            raise ConnectionError("gRPC: the answer has another request's id")
        outputs = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(-1, OUTPUTS)
        sources = response.parameters["source"].string_param.split(",")
        return outputs, [Source(source) for source in sources]

    async def close(self) -> None:
        await self._channel.close()


class Traffic:
    """Sends requests at `rate` a second, drawn from `mix`, during the event `phase`.

    `deadline`: the server's, in seconds. `liar_until`: while an instance may lie, infinity while
    one does. `breaks`: whether the event may break connections. `share`: of the time, that the
    server's process may run.
    """

    def __init__(
        self,
        model: KnownModel,
        http: Client,
        grpc: GrpcClient | None,
        ledger: Ledger,
        *,
        rate: float,
        seed: int,
        deadline: float,
    ) -> None:
        self._model = model
        self._http = http
        self._grpc = grpc
        self._ledger = ledger
        self._seed = seed
        self._deadline = deadline
        self._gaps = Random(f"{seed}/arrivals")
        self._large = Drawn(Kind.HONEST, np.resize(model.rows, (LARGE_ROWS, INPUTS)))
        self._long = Drawn(Kind.HONEST, np.resize(model.rows, (1, LONG)))
        self._number = 0
        self._tasks: set[asyncio.Task[bool]] = set()
        self.rate = rate
        self.mix = Mix()
        self.phase = ""
        self.liar_until = 0.0
        self.breaks = False
        self.share = 1.0

    def lies_end(self) -> None:
        """Expect a liar's answers, and reconstructions from them, for a moment longer."""
        self.liar_until = _now() + MEMORY

    @asynccontextmanager
    async def offered(self) -> AsyncIterator[None]:
        """Send requests while the context lasts; all have ended when it is left."""
        sending = [asyncio.create_task(self._send_all())]
        sending += [
            asyncio.create_task(self._repeat(self._large, BETWEEN_LARGE)) for _ in range(LARGE)
        ]
        sending += [asyncio.create_task(self._repeat(self._long, BETWEEN_LONG, BETWEEN_LONG))]
        try:
            yield
        finally:
            for each in sending:
                each.cancel()
            await asyncio.wait(sending)
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def probe(self) -> float | None:
        """Send one honest query. Return the seconds until its right answer, None without one."""
        began = _now()
        right = await self._send(began, Drawn(Kind.HONEST, self._model.rows[:1]))
        return _now() - began if right else None

    async def _send_all(self) -> None:
        due = _now()
        while True:
            due += self._gaps.expovariate(self.rate)
            await asyncio.sleep(due - _now())
            drawn = draw(self._number + 1, self._seed, self.mix, self._model, self._deadline)
            self._send(due, drawn)

    async def _repeat(self, drawn: Drawn, refused: float, answered: float = 0.0) -> None:
        """Ask again and again, so many seconds after a refusal, or an answer."""
        while True:
            sent = self._send(_now(), drawn)
            await asyncio.wait([sent])
            await asyncio.sleep(answered if sent.result() else refused)

    def _send(self, due: float, drawn: Drawn) -> "asyncio.Task[bool]":
        self._number += 1
        queries = 1 if drawn.rows is None else len(drawn.rows)
        self._ledger.sent(self._number, Sent(drawn.kind, self.phase, queries, due))
        task = asyncio.create_task(self._ask(self._number, drawn))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _ask(self, number: int, drawn: Drawn) -> bool:
        """Ask, and enter the end into the ledger. Return whether the answer is right."""
        limit = min(self._deadline, drawn.timeout or self._deadline) + SLACK
        breaks = self.breaks
        asking = asyncio.create_task(self._answer(number, drawn))
        for seconds in (limit, GRACE) if drawn.patience is None else (drawn.patience,):
            await asyncio.wait((asking,), timeout=seconds)
        asking.cancel()
        try:
            answer = await asking
        except asyncio.CancelledError:
            if drawn.patience is not None:
                self._ledger.ended(number, _now(), Ending.CUT)
            else:
                failure = f"did not end within {limit:.1f} s"
                self._ledger.ended(number, _now(), Ending.NOTHING, failure=failure)
        except StatusError as error:
            text = error.text.removeprefix('{"error":"').removesuffix('"}')
            self._ledger.refused(number, _now(), error.status, text)
        except (ClientError, OSError, EOFError, InvalidRequestError) as error:
            expected = breaks or self.breaks
            self._ledger.broken(number, _now(), str(error), expected=expected)
        else:
            now, right = _now(), np.ones(1, np.bool_)
            outputs, sources = answer
            if drawn.rows is not None:
                right = self._model.right(drawn.rows, outputs)
            lied_to = now < self.liar_until
            return self._ledger.answered(
                number, now, right, sources, lied_to=lied_to, exact=drawn.exact
            )
        return False

    async def _answer(self, number: int, drawn: Drawn) -> Answer:
        if drawn.rows is None:
            return await self._nonsense(drawn.raw)
        if self._grpc is not None and drawn.grpc:
            return await self._grpc.infer(drawn, number)
        body, headers = infer_request(drawn, number)
        content, length = await self._http.ask("POST", PATH, body, headers)
        if f'"id":"{number}"'.encode() not in content:
            raise InvalidRequestError("the answer has another request's id")
        answer = read_response(content, length)
        (output,) = answer.outputs
        return output.array(), answer.sources(len(drawn.rows))

    async def _nonsense(self, raw: bytes) -> Answer:
        """Send bytes as they are. Raises StatusError, as no other answer is right."""
        host, _, port = self._http.url.rpartition("//")[2].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(raw)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if not head.startswith("HTTP/1."):
                raise ConnectionError(f"no HTTP: {head[:40]!r}")
            status = int(head.split()[1])
            if status != 200:
                raise StatusError(status, (await reader.read(300)).decode(errors="replace"))
            return np.empty((1, OUTPUTS), np.float32), [Source.MODEL]
        finally:
            writer.transport.abort()


def _now() -> float:
    return asyncio.get_running_loop().time()
