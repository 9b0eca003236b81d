"""The command `late`: the same calls to the same servers, in five ways.

Four servers, each with one slot and a queue, run calls of 10 ms: plain ones or Tritons, over real
sockets, or virtual ones, in this process and in virtual time, for which the machine need not be
quiet. Calls come at random times; a balancer chooses the server of each attempt. Slowness is that
of the hedging libraries' own benchmark, 5 % of calls ten times as slow, or lasts: each server takes
six times as long for a tenth of the time, two seconds at a time. A stand-in takes a fifth of the
model's time. The doubts of its outputs are log-uniform from LEAST_DOUBT to 1, so 9 % of them would
differ.
"""

import asyncio
import multiprocessing
import random
import selectors
import shutil
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext
from enum import StrEnum
from itertools import product
from math import inf
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import click
import httpx
import numpy as np
import onnxruntime
from aiohttp import web
from hedge.transport import HedgedHttpxTransport
from httpx_hedged import HedgedTransport
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from parity_models import Late
from parity_models.bundle.backup import GatedBackup, Judged
from parity_models.late import client as late_client
from parity_models.late import driver as late_driver
from parity_models.late.driver import LateAnswer
from parity_models.options import option
from parity_models.roles import Source
from parity_models.tensors.signature import Batch, Tensor
from parity_models_lab import slow_model
from parity_models_lab.plots import COLOURS, save, style, tail_axes
from parity_models_lab.results import INVALID, Out, ResultCache, Seed, code_digest, report
from parity_models_lab.served import triton
from parity_models_lab.slow_model import RESTART, SECONDS, Slowness, mean_seconds

SERVERS = 4
BACKUP_SECONDS, LEAST_DOUBT = SECONDS / 5, 1e-5
LOADS, SLOWNESS = (0.3, 0.6, 0.9), ("stragglers", "spells")

UNDRAWN = ("Late, copies", "Late, a backup and servers")

PATH = "/v2/models/model/infer"
ANSWER = {
    "model_name": "model",
    "outputs": [{"name": "output", "datatype": "FP32", "shape": [1, 3], "data": [0.1, 0.7, 0.2]}],
}
ROWS = np.zeros((1, 4), np.float32)
WARM_UP = 100
"""Calls that do not count, as they are made before anything is learned."""

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


T = TypeVar("T")


class Servers(StrEnum):
    """What runs the calls."""

    PLAIN = "plain"
    TRITON = "Triton"
    VIRTUAL = "virtual"


class Balancer(StrEnum):
    """How the server of an attempt is chosen."""

    ROUND_ROBIN = "round-robin"
    TWO_CHOICES = "two-choices"
    LEAST_OUTSTANDING = "least-outstanding"


def _question(value: float) -> dict[str, Any]:
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [value] * 4}
    return {"inputs": [tensor]}


class Run(NamedTuple):
    """A row of the table, and the latencies in ms."""

    row: dict[str, Any]
    latencies: list[float]


def late(
    calls: int = option(4000, "Calls of each run.", ge=100),
    seed: Seed = 0,
    seeds: int = option(1, "Seeds, from SEED on.", ge=1),
    balancer: Balancer = option(
        Balancer.ROUND_ROBIN,
        "How the server of each attempt is chosen: the next one, the one with fewer attempts in "
        "flight of two drawn ones, or that with the fewest.",
    ),
    servers: list[Servers] | None = option(
        None, "plain, Triton or virtual; by default the first two, over real sockets."
    ),
    out: Out = None,
) -> None:
    """Compare parity_models.Late with libraries that hedge.

    Four servers with a slot each, two kinds of slowness, three loads. Times in ms. Runs are kept in
    runs/late until the code changes, so what was interrupted goes on where it was.
    """
    kept = ResultCache(Path("runs/late"))
    kinds = servers or (Servers.PLAIN, Servers.TRITON)
    of_seeds = [
        [*compare(kinds, balancer, calls, each, kept)] for each in range(seed, seed + seeds)
    ]
    runs = [pooled(runs) for runs in zip(*of_seeds, strict=True)]
    title = f"Calls to four servers, {balancer}, {calls:,} a run, {seeds} seeds from {seed}"
    stem = "late" if balancer is Balancer.ROUND_ROBIN else f"late-{balancer}"
    report(title, [run.row for run in runs], out and out / f"{stem}.json")
    if out is not None:
        plot_tails(out / f"{stem}.png", runs)


def pooled(runs: Sequence[Run]) -> Run:
    """Return one run of several seeds: the quantiles of all latencies, the means of all else."""
    latencies = [each for run in runs for each in run.latencies]
    row = {**runs[0].row, **_quantiles(latencies)}
    for name in ("extra calls", "not the model's", "differ, %", "client CPU, us a call"):
        row[name] = round(fmean(run.row[name] for run in runs), 4)
    invalid = sum(INVALID in run.row for run in runs)
    return Run(
        row | ({INVALID: f"calls were made late in {invalid}"} if invalid else {}), latencies
    )


def compare(
    kinds: Iterable[Servers], balancer: Balancer, calls: int, seed: int, kept: ResultCache
) -> Iterator[Run]:
    """Yield a run for each kind of servers and of slowness, load and library, with times in ms.
    Runs that this code has `kept` are not made again."""
    for servers, slowness in product(kinds, SLOWNESS):
        with ExitStack() as stack:
            ports: list[int] = []
            for load, name in product(LOADS, CONTESTANTS):
                run_of = f"{servers}-{slowness}-{load}-{name}-{balancer}-{calls}-{seed}"
                key = f"{run_of}-{code_digest()}"
                run = kept.get(key, Run)
                if run is None:
                    if servers is not Servers.VIRTUAL and not ports:
                        start = _plain if servers is Servers.PLAIN else _tritons
                        ports = stack.enter_context(start(slowness, seed))
                    row = {"servers": servers, "slowness": slowness, "load": load, "library": name}
                    click.echo(", ".join(map(str, row.values())), err=True)
                    virtual = servers is Servers.VIRTUAL
                    with (
                        virtual_time() if virtual else nullcontext() as factory,
                        asyncio.Runner(loop_factory=factory) as runner,
                    ):
                        run = runner.run(_run(ports, row, calls, balancer, seed))
                    kept.put(key, run)
                yield run


def plot_tails(file: Path, runs: Iterable[Run]) -> None:
    """Draw the tails of the first servers' runs with spells at the middle load."""
    runs = [*runs]
    drawn, colours = (runs[0].row["servers"], "spells", LOADS[1]), iter(COLOURS)
    with style():
        picture = Figure(figsize=(9, 5.2), dpi=140, layout="constrained")
        axes = picture.add_subplot()
        for row, latencies in runs:
            about = (row["servers"], row["slowness"], row["load"])
            if about == drawn and row["library"] not in UNDRAWN:
                label = f"{row['library']}: p50 {row['p50']} ms, p99.9 {row['p99.9']} ms"
                axes.ecdf(latencies, complementary=True, color=next(colours), label=label)
        tail_axes(axes, 5e-4)
        axes.set_xlim(left=0)
        axes.set_xlabel("latency in ms, from the scheduled call to the answer")
        axes.set_ylabel("share of calls that took longer")
        axes.legend(loc="upper right", frameon=False)
        axes.set_title("A server is slow for seconds", loc="left", fontweight="bold")
        note = (
            f"Four servers with a slot each, calls of 10 ms, load {LOADS[1]:.0%}. Each server "
            "takes six times as long for a tenth of the time, two seconds at a time. The backup "
            "takes 2 ms. Of all answers, 0.1 % may differ from the model's."
        )
        save(picture, file, note)


async def _run(
    ports: Sequence[int], row: dict[str, Any], calls: int, balancer: Balancer, seed: int
) -> Run:
    """Make the calls of a row, and add its results."""
    random.seed(seed)  # which draws comparisons
    rate = row["load"] * SERVERS / mean_seconds(row["slowness"])
    latencies: list[float] = []
    sources: Counter[str] = Counter()
    doubts = 0.0
    delays: list[float] = []
    attempts: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
        for port in ports:  # once earlier runs have ended there
            await client.post(f"http://127.0.0.1:{port}{PATH}", json=_question(RESTART))
        if ports:
            urls = [f"http://127.0.0.1:{port}{PATH}" for port in ports]
            targets: httpx.AsyncBaseTransport = httpx.AsyncHTTPTransport(
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=256)
            )
        else:
            urls = [f"http://{number}{PATH}" for number in range(SERVERS)]
            targets = _VirtualServers(urls, row["slowness"], seed)
        servers = _Balanced(urls, targets, balancer, attempts)
        get = await _contestant(row["library"], stack, servers, urls)

        async def call(due: float) -> None:
            nonlocal doubts
            answer = await get()
            if due >= counted_from:
                sources[answer.source] += 1
                doubts += 1 - answer.agreement
                latencies.append(1000 * (time.monotonic() - due))

        draw, due, tasks, counted_from = random.Random(seed), time.monotonic() + 0.1, [], inf
        for number in range(WARM_UP + calls):
            due += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            delays.append(time.monotonic() - due)
            if number == WARM_UP:
                counted_from, used, before = due, time.process_time(), attempts.total()
            tasks.append(asyncio.ensure_future(call(due)))
        await asyncio.gather(*tasks)
        used = time.process_time() - used
        extra = (attempts.total() - before) / calls - 1
    ours = calls - sources["model"] - sources["copy"]
    row |= _quantiles(latencies)
    row |= {"extra calls": round(extra, 3), "not the model's": round(ours / calls, 4)}
    row |= {"differ, %": round(100 * doubts / calls, 3)}
    row |= {"client CPU, us a call": round(1e6 * used / calls)}
    if np.quantile(delays, 0.99) > 0.005:
        row[INVALID] = "the calls were made late"
    return Run(row, latencies)


def _quantiles(latencies: Sequence[float]) -> dict[str, float]:
    found = np.quantile(latencies, list(QUANTILES.values())).round(1).tolist()
    return dict(zip(QUANTILES, found, strict=True))


# Contestants


class _Balanced(httpx.AsyncBaseTransport):
    """Chooses a server for each attempt, which is a POST: the libraries hedge GET alone."""

    def __init__(
        self,
        urls: Sequence[str],
        servers: httpx.AsyncBaseTransport,
        balancer: Balancer,
        attempts: Counter[str],
    ) -> None:
        self._urls, self._servers, self._balancer = urls, servers, balancer
        self._outstanding = dict.fromkeys(urls, 0)
        self._draw, self._attempts = random.Random(0), attempts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._attempts[request.method] += 1
        url = request.headers.get("server") or self._choose()
        self._outstanding[url] += 1
        try:
            post = httpx.Request("POST", url, json=_question(0.0))
            return await self._servers.handle_async_request(post)
        finally:
            self._outstanding[url] -= 1

    def _choose(self) -> str:
        if self._balancer is Balancer.ROUND_ROBIN:
            return self._urls[self._attempts.total() % SERVERS]
        drawn = 2 if self._balancer is Balancer.TWO_CHOICES else SERVERS
        return min(self._draw.sample(self._urls, drawn), key=self._outstanding.__getitem__)


class _EmulatedBackup(GatedBackup):
    """A backup that takes its time, and whose outputs are doubted by chance."""

    def __init__(self) -> None:
        self.output, self.other_outputs = Tensor("output", "FP32", (3,)), set()
        self.labels = ()
        self._draw = random.Random(0)
        self._outputs = np.array([[0.1, 0.7, 0.2]], np.float32)

    def read(self, inputs: ArrayLike | Batch) -> NDArray[Any]:
        return np.asarray(inputs)

    def change(self, differ: float) -> None: ...

    def answer(self, rows: NDArray[Any], run: onnxruntime.RunOptions) -> Judged:
        outputs = self.run(rows, run)
        doubt = LEAST_DOUBT ** self._draw.random()
        return Judged(outputs, np.array([doubt]), doubt)

    def run(self, rows: NDArray[Any], run: onnxruntime.RunOptions) -> NDArray[Any]:
        time.sleep(BACKUP_SECONDS)
        return self._outputs

    def compare(
        self,
        made: NDArray[Any],
        predictions: NDArray[Any],
        *,
        late: bool,
        answered: bool = False,
    ) -> bool:
        return True

    def close(self) -> None: ...


CONTESTANTS = (
    "no help",
    "hedge-python",
    "httpx-hedged",
    "Late, copies",
    "Late, a backup",
    "Late, a backup and servers",
)


async def _contestant(
    name: str, stack: AsyncExitStack, servers: httpx.AsyncBaseTransport, urls: Sequence[str]
) -> Callable[[], Awaitable[LateAnswer]]:
    """Return a function that makes a call and returns its answer."""
    hedged = {"hedge-python": HedgedHttpxTransport, "httpx-hedged": HedgedTransport}
    transport = hedged[name](servers) if name in hedged else servers
    client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60)
    await stack.enter_async_context(client)
    if not name.startswith("Late"):

        async def call() -> LateAnswer:
            return LateAnswer(await client.get("/"), Source.MODEL, 1.0)

        return call
    chosen = urls if name.endswith("servers") else ()
    late = Late(None if name.endswith("copies") else _EmulatedBackup(), servers=chosen)
    await stack.enter_async_context(late)
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualLoop):
        late._client.threads.backup = _VirtualThread(loop.clock)

    def get(server: str = "") -> Awaitable[httpx.Response]:
        return client.get("/", headers={"server": server})

    return lambda: late(get, ROWS)


# Virtual time


class _Clock(selectors.SelectSelector):
    """Waits for nothing, but moves the time on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.sleep(timeout or 0.0)
        return []

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def read(self) -> float:
        return self.now


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in the time of its clock."""

    def __init__(self, clock: _Clock) -> None:
        self.clock = clock
        super().__init__(clock)


class _VirtualThread(ThreadPoolExecutor):
    """Runs one function after the other; each one's time passes for its own caller alone."""

    def __init__(self, clock: _Clock) -> None:
        super().__init__(1)
        self._clock, self._free = clock, 0.0

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        run: Future[T] = Future()
        begins = max(self._free, self._clock.now)

        def compute() -> None:
            if not run.set_running_or_notify_cancel():
                return
            began = self._clock.now
            result = fn(*args, **kwargs)
            took, self._clock.now = self._clock.now - began, began
            self._free = began + took
            loop.call_later(took, run.set_result, result)

        loop = asyncio.get_running_loop()
        loop.call_later(begins - self._clock.now, compute)
        return run


@contextmanager
def virtual_time() -> Iterator[Callable[[], VirtualLoop]]:
    """Let all clocks of this process be that of an event loop. Gives the factory of that loop."""
    clock = _Clock()
    with ExitStack() as stack:
        for module, name in (
            (time, "monotonic"),
            (time, "perf_counter"),
            (late_client, "now"),
            (late_driver, "now"),
        ):
            stack.enter_context(patch.object(module, name, clock.read))
        stack.enter_context(patch.object(time, "sleep", clock.sleep))
        yield lambda: VirtualLoop(clock)


# Servers


class _VirtualServers(httpx.AsyncBaseTransport):
    """The servers with these URLs, in the process of their client."""

    def __init__(self, urls: Iterable[str], slowness: str, seed: int) -> None:
        self._servers = {
            url: (asyncio.Lock(), Slowness(slowness, seed, number))
            for number, url in enumerate(urls)
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        slot, slowness = self._servers[str(request.url)]
        async with slot:
            await asyncio.sleep(slowness.seconds())
        return httpx.Response(200, json=ANSWER)


@contextmanager
def _plain(slowness: str, seed: int) -> Iterator[list[int]]:
    """Run the servers in a process. Gives their ports."""
    sockets = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in range(SERVERS)]
    spawned = multiprocessing.get_context("spawn").Process
    process = spawned(target=_serve, args=(sockets, slowness, seed), daemon=True)
    process.start()
    try:
        yield [each.getsockname()[1] for each in sockets]
    finally:
        process.kill()
        process.join()
        for each in sockets:
            each.close()


def _serve(sockets: Sequence[socket.socket], slowness: str, seed: int) -> None:
    async def serve_all() -> None:
        for number, each in enumerate(sockets):
            runner = web.AppRunner(_application(Slowness(slowness, seed, number)))
            await runner.setup()
            await web.SockSite(runner, each).start()
        await asyncio.Event().wait()

    asyncio.run(serve_all())


def _application(slowness: Slowness) -> web.Application:
    slot = asyncio.Lock()

    async def infer(request: web.Request) -> web.Response:
        (tensor,) = (await request.json())["inputs"]
        async with slot:
            if tensor["data"][0] == RESTART:
                slowness.restart()
            await asyncio.sleep(slowness.seconds())
        return web.json_response(ANSWER)

    app = web.Application()
    app.router.add_post(PATH, infer)
    return app


@contextmanager
def _tritons(slowness: str, seed: int) -> Iterator[list[int]]:
    """Run the Tritons. Gives their ports."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="parm-lab-")))
        configuration = Path(slow_model.__file__).with_suffix(".pbtxt").read_text()
        ports = []
        for number in range(SERVERS):
            model = folder / str(number) / "model"
            (model / "1").mkdir(parents=True)
            text = configuration.format(kind=slowness, seed=seed, number=number)
            (model / "config.pbtxt").write_text(text)
            shutil.copy(slow_model.__file__, model / "1" / "model.py")
            ports.append(stack.enter_context(triton(model.parent))[0])
        yield ports
