"""The command `chaos`: a server under load and faults, and every query accounted for.

The load is open-loop: requests are drawn by number from the seed, and counted by their ends. Events
are a table of context managers; some clients are always there.

The server can be restarted, and the answers of its model are known: it is linear, and under sum +
subtraction its own exact parity model, so that the right answer to every query is known, whatever
its source. Long queries may take a hundred times as long. A lying instance runs another one in its
place.
"""

import asyncio
import gc
import os
import signal
import time
from array import array
from asyncio.subprocess import DEVNULL
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from importlib import resources
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import click
import grpc
import msgspec
import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from parity_models.bundle.bundle import NewModel, write_bundle
from parity_models.codes import CodeSpec
from parity_models.errors import ServingError, UserError
from parity_models.options import option
from parity_models.roles import Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.client import Client, ClientError, StatusError
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.grpc.protos import ModelInferRequest, ModelInferResponse
from parity_models.serving.options import EngineChoice, ServeOptions
from parity_models.serving.protocol import HEADER_LENGTH, read_response, write_request
from parity_models.simulation.emulation import FaultPlan, Lie, LogNormal
from parity_models.tensors.signature import Axis, Signature, Tensor
from parity_models.trust.envelope import fit_envelope
from parity_models_lab.processes import Child, send_signal
from parity_models_lab.results import OutFolder, Row, Seed, check_out, report
from parity_models_lab.served import BEGIN_FAULTS, GRPC, post, served, workers

INPUTS, OUTPUTS = 32, 64
LONG = 49 * INPUTS
"""The length of a long input, whose parts of INPUTS values are added up."""
SLOW = 32
"""Multiplications of matrices of about LONG rows and columns that take a second."""
ROWS = 512
"""Different queries that are sent."""
TOLERANCE = 1e-3
"""The largest error of an answer, relative to the largest possible sum."""
NEAR = 2.0
"""The mean square of an input's values up to which the liar lies; 1 is usual."""
MODEL = "model"
"""The name it is served under."""
SIGNATURE = Signature(
    (Tensor("input", "FP32", ("length",)),),
    (Tensor("output", "FP32", (OUTPUTS,)),),
    {"length": Axis((INPUTS, LONG))},
)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class KnownModel:
    """`weights` (INPUTS, OUTPUTS), `rows` (ROWS, INPUTS) to ask about, and the bundle."""

    bundle: Path
    weights: Floats
    rows: Floats

    def right(self, rows: Floats, outputs: Floats) -> NDArray[np.bool_]:
        """Return which of `outputs` (n, OUTPUTS) are the predictions for `rows` (n, any multiple of
        INPUTS); where one is not finite, or overflows float32, anything is right."""
        exact = rows.astype(np.float64).reshape(len(rows), -1, INPUTS)
        with np.errstate(all="ignore"):
            wanted = exact.sum(axis=1) @ self.weights
            # The magnitude of the sum, in which float32 rounds at each step.
            scale = np.abs(exact).sum(axis=1) @ np.abs(self.weights) + 1.0
            close = np.abs(outputs - wanted) <= TOLERANCE * scale
            beyond = ~(scale <= np.finfo(np.float32).max)
        return np.asarray((close | beyond).all(axis=1))


def write_known_model(folder: Path, seed: int, products: int = 1) -> KnownModel:
    """Write the bundle into `folder`, which is made; weights and rows are drawn from `seed`. A long
    query takes so many `products` of matrices."""
    rng = np.random.default_rng(seed)
    weights = (rng.normal(size=(INPUTS, OUTPUTS)) / np.sqrt(INPUTS)).astype(np.float32)
    rows = rng.normal(size=(ROWS, INPUTS)).astype(np.float32)
    model = NewModel(_linear(weights, products), "linear", signature=SIGNATURE)
    # A code whose slots are not isolated needs an envelope of its inputs.
    inputs, held_out = rng.normal(size=(2, 2000, INPUTS)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    bundle = write_bundle(
        folder / "bundle",
        deployed=model,
        parity=[model],
        code=CodeSpec("sum", "subtraction", 2),
        name=MODEL,
        envelope=fit_envelope(
            SIGNATURE.inputs, {"input": inputs}, {"input": held_out}, inputs @ weights
        ),
    )
    return KnownModel(bundle.path, weights, rows)


def liar(model: KnownModel) -> bytes:
    """Return the model with 1 added to its outputs for inputs near those that are sent: a mean
    square of the values under NEAR. It is right at golden queries, which are farther off."""
    return _linear(model.weights, lies=True)


MODEL_TEXT = resources.files("parity_models_lab") / "known_model.txt"
"""The model in ONNX's own text: `error` is 0 but for a liar, and so are the products, which make a
long query slow."""


def _linear(weights: Floats, products: int = 1, *, lies: bool = False) -> bytes:
    lines = "\n".join(f"product{i + 1} = MatMul(product{i}, product0)" for i in range(products))
    made = {"PRODUCTS": lines, "productN": f"product{products}"}
    text = MODEL_TEXT.read_text()
    for name, value in {**made, "OUTPUTS": OUTPUTS, "INPUTS": INPUTS}.items():
        text = text.replace(name, str(value))
    model = onnx.parser.parse_model(text)
    nearest = np.float32(NEAR * INPUTS if lies else 0)
    for name, values in {"weights": weights, "nearest": nearest}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


# The server

INSTANCES = 4
"""Instances of every server; each runs the deployed model and the parity model."""
DEADLINE = 3.0
"""Seconds that the server gives a query."""
SERVICE = 0.005
"""Median seconds of a unit."""
POISON = 12345.0
"""The first element of a query that crashes the instance that runs it."""
DESCRIPTORS = 256
"""The limit of the process of a server that is not Ray's: too few for many more connections."""


class Engine(StrEnum):
    """Engines that run the instances."""

    LOCAL = "local"
    REMOTE = "remote"
    RAY = "ray"


class TestedServer:
    """A server of the known model. `folder` holds its log, and the file `liar.onnx`, which the last
    instance runs as long as it is there."""

    def __init__(self, model: KnownModel, engine: Engine, folder: Path) -> None:
        self.model, self.liar = model, (folder / "liar.onnx").resolve()
        self._log, self._engine = folder / "server.log", engine
        self._options = ServeOptions(
            port=0,
            grpc_port=0,
            reuse_port=True,
            share_groups=True,
            shutdown_delay=1.0,
            deadline=DEADLINE,
            max_batch=32,
        )
        self._started: list[Child] = []

    @property
    def pid(self) -> int:
        """The process that answers clients."""
        return self._started[-1].pid

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Client]:
        """Run while the context lasts; gives a client. Raises ServingError if it does not start."""
        self.liar.unlink(missing_ok=True)
        async with AsyncExitStack() as self._stack:
            if self._engine is Engine.REMOTE:
                alone = replace(self._options, instances=1, grpc_port=None, shutdown_delay=0.0)
                upstream = replace(alone, policy=PolicyChoice("none"))
                for number in range(INSTANCES):
                    faults = self._faults(None if number else 0)
                    await self._launch(replace(upstream, faults=faults))
                urls = [each.message for each in self._started]
                # The linear model is its own parity model.
                parity = ",".join(f"{url}/{MODEL}" for url in urls)
                engine = EngineChoice("remote", {"deployed": ",".join(urls), "parity": parity})
                self._options = replace(self._options, engine=engine)
            else:
                engine, faults = EngineChoice(self._engine), self._faults(INSTANCES - 1)
                options = replace(self._options, engine=engine, faults=faults)
                self._options = replace(options, instances=INSTANCES)
            await self._start()
            gc.freeze()  # a collection of garbage would hold up the load for a tenth of a second
            async with Client(self.url) as client:
                yield client

    async def restart(self, *, warm: bool) -> None:
        """Start another process on the same ports. If `warm`, this one is asked to end once the
        other is warm; else it is killed first. Raises ServingError if the other does not start."""
        before = self._started[-1]
        if warm:
            await self._start()
            before.end_input()
        else:
            os.kill(before.pid, signal.SIGKILL)
        await before.wait()
        if not warm:
            await self._start()

    async def _start(self) -> None:
        limit = "" if self._engine is Engine.RAY else f"ulimit -n {DESCRIPTORS} && "
        server = await self._launch(self._options, limit)
        self.url = server.message
        urls = self.url, await server.ask(GRPC)
        self.port, self.grpc_port = (int(each.rpartition(":")[2]) for each in urls)
        self._options = replace(self._options, port=self.port, grpc_port=self.grpc_port)

    async def _launch(self, options: ServeOptions, limit: str = "") -> Child:
        shell = ("sh", "-c", f'{limit}exec "$@" 2>> "$0"', str(self._log))
        # Ray lets other processes go first; the local engine's instances do not.
        prefix = ("env", "RAY_worker_niceness=0", *shell)
        server = await self._stack.enter_async_context(served(self.model.bundle, options, prefix))
        server.tell(BEGIN_FAULTS)
        self._started.append(server)
        return server

    def instances(self) -> list[int]:
        """Return the processes of its instances."""
        return [pid for server in self._started for pid in workers(server.pid)]

    def _faults(self, last: int | None) -> FaultPlan:
        """Return the faults of workers, of which the last, by number, can be made to lie."""
        lies = () if last is None else (Lie(last, str(self.liar)),)
        return FaultPlan(service_time=LogNormal(SERVICE, 0.2), poison=POISON, lies=lies)


async def metric(client: Client, name: str, **labels: str) -> float:
    """Return the sum of the samples with these labels; 0 where the server does not answer."""
    with suppress(ClientError, TimeoutError):
        async with asyncio.timeout(5.0):
            answer, _ = await client.ask("GET", "/metrics")
        return sum(
            sample.value
            for family in text_string_to_metric_families(answer.decode())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )
    return 0.0


# Traffic

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

    def __init__(self, server: TestedServer, client: Client, seed: int) -> None:
        self._server, self._model, self._client = server, server.model, client
        self._seed = seed
        self._gaps = Random(f"{seed}/arrivals")
        self._number = 0
        self._tasks: set[asyncio.Task[bool]] = set()
        self._last_right: float | None = None
        self.rate, self.mix = RATE, dict[str, float]()
        self.page, self.lies, self.sent = Page(), False, 0

    @asynccontextmanager
    async def offered(self) -> AsyncIterator[None]:
        """Send requests while the context lasts; all have ended when it is left."""
        self._last_right, self._due = None, time.monotonic()
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
        return await self._send(time.monotonic(), Request("honest", self._model.rows[:1]))

    async def _send_next(self) -> None:
        self._due += self._gaps.expovariate(self.rate)
        await asyncio.sleep(self._due - time.monotonic())
        self._send(self._due, draw(self._number + 1, self._seed, self.mix, self._model.rows))

    async def _send_alone(self, request: Request) -> None:
        await asyncio.wait([self._send(time.monotonic(), request)])

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
            async with asyncio.timeout(request.patience or DEADLINE + SLACK):
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
                page.latencies.append((at := time.monotonic()) - due)
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


# Events

OF_FRONTEND = frozenset({"frontend", "restart"})
"""The events in which another frontend starts: on Ray, that takes longer than a phase."""
APART = OF_FRONTEND | {"descriptors", "starved", "liar"}
"""Events of which no two happen at once: they need the server's process, and a server does not
start in front of instances that predict something else."""
TOGETHER = 0.25
"""Share of phases that have two events at once."""
PHASE = (4.0, 8.0)
"""Seconds that events last."""
RUDE_CLIENTS = 20
RUN, HELD = 0.02, 0.08
"""Seconds that a slow process runs, and is stopped, in turns."""
RECOVERY = 60.0
"""Seconds in which instances may come up again after an event."""
RECYCLED = ("hung", "quarantined")
"""Reasons for which an instance is started again."""
OVERLOAD = 3.0 * INSTANCES / SERVICE / BURST_ROWS
"""Requests a second, of three times the queries that the instances can answer."""
LIES_LAST = 2.0
"""Seconds in which an instance that has stopped lying may still answer."""
_HOLD_UP = 'while kill -STOP "$0"; do sleep "$1"; kill -CONT "$0"; sleep "$2"; done'

Phases = list[tuple[list[str], float]]


def draw_course(seed: int, seconds: float, events: Sequence[str]) -> Phases:
    """Draw phases for so long: one event, or two that begin together, and their seconds. Each event
    comes before one comes again."""
    rng, left, phases = Random(f"{seed}/course"), list[str](), Phases()
    while sum(lasting for _, lasting in phases) < seconds:
        left = left or rng.sample(events, len(events))
        names = [left.pop()]
        others = set(events) - {*names, "calm", *(APART if names[0] in APART else ())}
        if others and names != ["calm"] and rng.random() < TOGETHER:
            names.append(rng.choice(sorted(others)))
        phases.append((names, rng.uniform(*PHASE)))
    return phases


class Injector:
    """Injects events into a server with its traffic; victims are drawn from `rng`."""

    def __init__(self, server: TestedServer, traffic: Traffic, rng: Random) -> None:
        self.server, self._traffic, self._rng = server, traffic, rng
        self._request = in_json()

    def victim(self) -> int:
        """Return the process of an instance; 0 if there is none."""
        return self._rng.choice(self.server.instances() or [0])

    async def kill(self) -> None:
        send_signal(self.victim(), signal.SIGKILL)

    @asynccontextmanager
    async def hold_up(self, pid: int, held: float = HELD) -> AsyncIterator[None]:
        """Stop a process for so long, again and again; by default for four fifths of the time."""
        if not pid:
            yield
            return
        # By a process of its own, as this one may be held up, too.
        program = ("sh", "-c", _HOLD_UP, *map(str, (pid, held, RUN)))
        holding = await asyncio.create_subprocess_exec(
            *program, stderr=DEVNULL, start_new_session=True
        )
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(holding.pid, signal.SIGTERM)
            await holding.wait()
            send_signal(pid, signal.SIGCONT)

    @asynccontextmanager
    async def restart(self, *, warm: bool) -> AsyncIterator[None]:
        await asyncio.sleep(0.5)  # so that an outage has a beginning
        await self.server.restart(warm=warm)
        yield

    @asynccontextmanager
    async def lie(self) -> AsyncIterator[None]:
        new = self.server.liar.with_name("new.onnx")
        new.write_bytes(liar(self.server.model))
        self._traffic.lies = True
        new.rename(self.server.liar)
        try:
            yield
        finally:
            self.server.liar.unlink()
            await asyncio.sleep(LIES_LAST)
            self._traffic.lies = False

    @asynccontextmanager
    async def mixed(self, rate: float | None = None, **shares: float) -> AsyncIterator[None]:
        """Change the traffic's rate and its mix."""
        before = self._traffic.rate, self._traffic.mix
        self._traffic.rate, self._traffic.mix = rate or before[0], before[1] | shares
        try:
            yield
        finally:
            self._traffic.rate, self._traffic.mix = before

    # Clients whose queries are not counted.

    @asynccontextmanager
    async def crowd(self) -> AsyncIterator[None]:
        """Let clients press on the frontend while the context lasts, whatever else happens."""
        requests = [
            (1000, "0.12345678", 10.0, 0.001),
            (100, f"{1 / 3:.50f}", 10.0, PAUSE),
            (17_000, "0", 10.0, PAUSE),  # too long an answer
            (100, "0.12345678", 0.065, PAUSE),
        ]
        async with AsyncExitStack() as crowd:
            for rows, value, patience, pause in requests:
                data = msgspec.Raw(f"[{','.join([value] * rows * INPUTS)}]".encode())
                press = partial(self.press, in_json(shape=[rows, INPUTS], data=data), patience)
                await crowd.enter_async_context(repeated(1, press, pause))
            await crowd.enter_async_context(repeated(RUDE_CLIENTS, self.linger))
            yield

    async def press(self, request: bytes, patience: float) -> None:
        """Ask, and go when the answer begins, or when out of patience."""
        with suppress(TimeoutError, EOFError):
            async with asyncio.timeout(patience):
                await ask(self.server.port, request)

    async def send_half(self) -> None:
        await self.press(self._request[: len(self._request) // 2], 0.1)

    async def linger(self) -> None:
        """Stay until the server ends the connection, or for some seconds."""
        async with connection(self.server.port) as (reader, writer):
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: server\r\n\r\n")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rng.uniform(1.0, 10.0)):
                    await reader.read()

    async def trickle(self) -> None:
        """Send a request byte by byte from its head, or its body, on."""
        async with connection(self.server.port) as (_, writer):
            begin = self._rng.choice((0, self._request.index(b"\r\n\r\n") + 10))
            writer.write(self._request[:begin])
            for byte in self._request[begin:]:
                writer.write(bytes((byte,)))
                await writer.drain()
                await asyncio.sleep(4 * PAUSE)


EVENTS: Mapping[str, Callable[[Injector], AbstractAsyncContextManager[None]]] = {
    "calm": lambda to: repeated(0, to.kill),
    "kill": lambda to: repeated(1, to.kill, 2.0),
    "stop": lambda to: to.hold_up(to.victim(), held=60.0),
    "slow": lambda to: to.hold_up(to.victim()),
    "frontend": lambda to: to.restart(warm=False),
    "restart": lambda to: to.restart(warm=True),
    "starved": lambda to: to.hold_up(to.server.pid),
    "liar": lambda to: to.lie(),
    "descriptors": lambda to: repeated(2 * DESCRIPTORS, to.linger),
    "slowloris": lambda to: repeated(RUDE_CLIENTS, to.trickle),
    "halves": lambda to: repeated(RUDE_CLIENTS, to.send_half),
    "disconnects": lambda to: to.mixed(impatient=0.4),
    "absurd": lambda to: to.mixed(absurd=0.4),
    "nonsense": lambda to: to.mixed(nonsense=0.4),
    "overload": lambda to: to.mixed(OVERLOAD, burst=0.9),
    "poison": lambda to: to.mixed(poison=0.01),
}
"""Events by name, as lab/notes/reliability.md describes them; each lasts as long as its context."""


def chaos(
    engine: Engine = option(Engine.LOCAL, "What runs the models."),
    minutes: float = option(5.0, "About how long.", unit="min", ge=0.01),
    seed: Seed = 0,
    out: OutFolder = Path("runs/chaos"),
    events: str | None = option(
        None,
        "Only these, separated by commas; lab/notes/reliability.md lists them.",
        metavar="EVENT,...",
    ),
) -> None:
    """Serve under load and faults; account for every query.

    A server process of its own, clients over HTTP and gRPC, and a course of kills, pauses, lies,
    rude clients and absurd inputs, drawn from the seed.
    """
    there = [each for each in EVENTS if engine is not Engine.RAY or each not in OF_FRONTEND]
    wanted = events.split(",") if events else there
    for event in wanted:
        if event not in there:
            raise UserError(f"there is no event {event!r}; there are {', '.join(there)}")
    check_out(out)
    course = draw_course(seed, minutes * 60, wanted)
    rows, queries = asyncio.run(_run(engine, course, minutes * 60, seed, out / f"chaos-{engine}"))
    title = f"Chaos on the engine {engine}, seed {seed}"
    report(title, rows, out / f"chaos-{engine}.json", queries=queries)
    ended = sum(int(str(row["queries"])) for row in rows)
    click.echo(f"{ended:,} of {queries:,} queries are accounted for.")


async def _run(
    engine: Engine, course: Phases, seconds: float, seed: int, folder: Path
) -> tuple[list[Row], int]:
    """Run a course of events against a server of its own. Return a row for each event, and one for
    phases of two at once, and the number of queries that were sent."""
    model = write_known_model(folder, seed, SLOW)
    server = TestedServer(model, engine, folder)
    pages: dict[str, Page] = {}
    async with server.running() as client:
        traffic = Traffic(server, client, seed)
        injector = Injector(server, traffic, Random(f"{seed}/events"))
        all_up = await _instances_up(client)
        if not all_up:
            raise ServingError("the server does not say how many instances are up; see its log")
        ends = time.monotonic() + seconds
        for number, (names, lasting) in enumerate(course, 1):
            if time.monotonic() > ends:
                break
            name = names[0] if len(names) == 1 else "two at once"
            page = traffic.page = pages.setdefault(name, Page())
            page.times += 1
            before = await _recycled(client)
            async with traffic.offered(), injector.crowd():
                async with AsyncExitStack() as happening:
                    for each in names:
                        await happening.enter_async_context(EVENTS[each](injector))
                    await asyncio.sleep(lasting)
                took = await _recover(client, traffic, all_up)
            page.took("recovery", took)
            page.recycled += await _recycled(client) - before
            events = " + ".join(names)
            click.echo(f"{number}, {events}: full strength after {took:.1f} s", err=True)
    return [page.row(name) for name, page in pages.items()], traffic.sent


async def _instances_up(client: Client) -> float:
    return await metric(client, "parm_instances_up", role="deployed")


async def _recycled(client: Client) -> Counter[str]:
    """Return how many instances have been started again, by the reason."""
    name = "parm_instances_recycled_total"
    return Counter({each: int(await metric(client, name, reason=each)) for each in RECYCLED})


async def _recover(client: Client, traffic: Traffic, all_up: float) -> float:
    """Wait until all instances are up and three queries in turn are answered, for up to RECOVERY.
    Return the seconds that took."""
    began, good = time.monotonic(), 0
    while good < 3 and time.monotonic() - began < RECOVERY:
        is_up = await _instances_up(client) >= all_up
        good = good + 1 if is_up and await traffic.probe() else 0
        await asyncio.sleep(0.05)
    return time.monotonic() - began
