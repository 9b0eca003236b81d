"""The command `late`: the same calls to the same servers, in five ways.

Four servers, each with one slot and a queue, run calls of 10 ms, in this process and in virtual
time, for which the machine need not be quiet; `real` has sockets, processes and a model. Calls come
at random times; a balancer chooses the server of each attempt. Slowness is that of the hedging
libraries' own benchmark, 5 % of calls ten times as slow, or lasts: each server takes six times as
long for a tenth of the time, two seconds at a time. A stand-in takes a fifth of the model's time.
The doubts of its outputs are log-uniform from LEAST_DOUBT to 1, so 9 % of them would differ.
"""

import asyncio
import random
import selectors
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from enum import StrEnum
from itertools import product
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeVar
from unittest.mock import patch

import click
import httpx
import numpy as np
import onnxruntime
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
from parity_models_lab.plots import PALETTE, save, style, tail_axes
from parity_models_lab.results import Out, ResultCache, Seed, code_digest, report

SERVERS = 4

SECONDS = 0.010
"""The time of a call that is not slow."""

STRAGGLERS, SLOWER = 0.05, 10.0
SPELL, BETWEEN, SPELL_SLOWER = 2.0, 18.0, 6.0

BACKUP_SECONDS, LEAST_DOUBT = SECONDS / 5, 1e-5
LOADS, SLOWNESS = (0.3, 0.6, 0.9), ("stragglers", "spells")

ANSWER = {
    "model_name": "model",
    "outputs": [{"name": "output", "datatype": "FP32", "shape": [1, 3], "data": [0.1, 0.7, 0.2]}],
}
ROWS = np.zeros((1, 4), np.float32)
WARM_UP = 100
"""Calls that do not count, as they are made before anything is learned."""

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


T = TypeVar("T")


class Balancer(StrEnum):
    """How the server of an attempt is chosen."""

    ROUND_ROBIN = "round-robin"
    TWO_CHOICES = "two-choices"
    LEAST_OUTSTANDING = "least-outstanding"


class Run(NamedTuple):
    """A row of the table, and the latencies in ms."""

    row: dict[str, Any]
    latencies: list[float]


def late(
    calls: int = option(1000, "Calls of each run.", ge=100),
    seed: Seed = 0,
    seeds: int = option(20, "Seeds, from SEED on.", ge=1),
    out: Out = None,
) -> None:
    """Compare parity_models.Late with libraries that hedge.

    Four servers with a slot each, behind three balancers (the next server, the one with fewer
    attempts in flight of two drawn ones, or that with the fewest); two kinds of slowness, three
    loads. Times in ms. Runs are kept in runs/late until the code changes, so what was interrupted
    goes on where it was.
    """
    kept = ResultCache(Path("runs/late"))
    of_seeds = [[*compare(calls, each, kept)] for each in range(seed, seed + seeds)]
    runs = [pooled(runs) for runs in zip(*of_seeds, strict=True)]
    title = f"Calls to four servers, {calls:,} a run, {seeds} seeds from {seed}"
    report(title, [run.row for run in runs], out and out / "late.json")
    if out is not None:
        plot_tails(out / "late.png", runs)


def pooled(runs: Sequence[Run]) -> Run:
    """Return one run of several seeds: the quantiles of all latencies, the means of all else."""
    latencies = [each for run in runs for each in run.latencies]
    row = {**runs[0].row, **_quantiles(latencies)}
    for name in ("extra calls", "not the model's", "differ, %", "client CPU, us a call"):
        row[name] = round(fmean(run.row[name] for run in runs), 4)
    return Run(row, latencies)


def compare(calls: int, seed: int, kept: ResultCache) -> Iterator[Run]:
    """Yield a run for each balancer, kind of slowness, load and library, with times in ms. Runs
    that this code has `kept` are not made again."""
    for balancer, slowness, load, name in product(Balancer, SLOWNESS, LOADS, CONTESTANTS):
        key = f"{slowness}-{load}-{name}-{balancer}-{calls}-{seed}-{code_digest()}"
        run = kept.get(key, Run)
        if run is None:
            row = {"balancer": balancer, "slowness": slowness, "load": load, "library": name}
            click.echo(f"seed {seed}: {', '.join(map(str, row.values()))}", err=True)
            with virtual_time() as factory, asyncio.Runner(loop_factory=factory) as runner:
                run = runner.run(_run(row, calls, balancer, seed))
            kept.put(key, run)
        yield run


def plot_tails(file: Path, runs: Iterable[Run]) -> None:
    """Draw the tails of runs with spells at the middle load, for each balancer."""
    with style():
        picture = Figure(figsize=(11, 4.6), dpi=140, layout="constrained")
        panels = dict(zip(Balancer, picture.subplots(1, 3, sharex=True, sharey=True), strict=True))
        colours = dict(zip(CONTESTANTS, PALETTE, strict=False))
        for row, latencies in runs:
            if (row["slowness"], row["load"]) == ("spells", LOADS[1]):
                colour = colours[row["library"]]
                axes = panels[Balancer(row["balancer"])]
                axes.ecdf(latencies, complementary=True, color=colour, label=row["library"])
        for balancer, axes in panels.items():
            tail_axes(axes, 5e-4)
            axes.set_xscale("log")
            axes.set_title(balancer.replace("-", " "), loc="left")
        panels[Balancer.ROUND_ROBIN].set_ylabel("share of calls that took longer")
        panels[Balancer.TWO_CHOICES].set_xlabel("ms, from the scheduled call to the answer")
        handles = panels[Balancer.ROUND_ROBIN].get_legend_handles_labels()
        picture.legend(*handles, loc="outside right upper", frameon=False)
        note = (
            f"Four servers with a slot each, calls of 10 ms, load {LOADS[1]:.0%}. Each server "
            "takes six times as long for a tenth of the time, two seconds at a time. The backup "
            "takes 2 ms. Of all answers, 0.1 % may differ from the model's."
        )
        save(picture, file, note)


async def _run(row: dict[str, Any], calls: int, balancer: Balancer, seed: int) -> Run:
    """Make the calls of a row, and add its results."""
    random.seed(seed)  # which draws comparisons
    rate = row["load"] * SERVERS / mean_seconds(row["slowness"])
    latencies: list[float] = []
    sources: Counter[str] = Counter()
    doubts = 0.0
    attempts: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        servers = _Balanced(_VirtualServers(row["slowness"], seed), balancer, attempts)
        get = await _contestant(row["library"], stack, servers)

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
    return Run(row, latencies)


def _quantiles(latencies: Sequence[float]) -> dict[str, float]:
    found = np.quantile(latencies, list(QUANTILES.values())).round(1).tolist()
    return dict(zip(QUANTILES, found, strict=True))


# Contestants


class _Balanced(httpx.AsyncBaseTransport):
    """Chooses a server for each attempt."""

    def __init__(
        self, servers: "_VirtualServers", balancer: Balancer, attempts: Counter[str]
    ) -> None:
        self._servers, self._balancer = servers, balancer
        self._outstanding = [0] * SERVERS
        self._draw, self._attempts = random.Random(0), attempts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._attempts[request.method] += 1
        chosen = request.headers.get("server")
        server = int(chosen) if chosen else self._choose()
        self._outstanding[server] += 1
        try:
            await self._servers.run(server)
        finally:
            self._outstanding[server] -= 1
        return httpx.Response(200, json=ANSWER)

    def _choose(self) -> int:
        if self._balancer is Balancer.ROUND_ROBIN:
            return self._attempts.total() % SERVERS
        drawn = 2 if self._balancer is Balancer.TWO_CHOICES else SERVERS
        choices = self._draw.sample(range(SERVERS), drawn)
        return min(choices, key=self._outstanding.__getitem__)


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
    name: str, stack: AsyncExitStack, servers: httpx.AsyncBaseTransport
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
    chosen = [*map(str, range(SERVERS))] if name.endswith("servers") else ()
    late = Late(None if name.endswith("copies") else _EmulatedBackup(), servers=chosen)
    await stack.enter_async_context(late)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
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


class _VirtualServers:
    """The servers, in the process of their client."""

    def __init__(self, slowness: str, seed: int) -> None:
        self._slots = [asyncio.Lock() for _ in range(SERVERS)]
        self._slowness = [Slowness(slowness, seed, number) for number in range(SERVERS)]

    async def run(self, server: int) -> None:
        """Run a call in its turn."""
        async with self._slots[server]:
            await asyncio.sleep(self._slowness[server].seconds())


class Slowness:
    """The times of the calls of server `number`: those of `kind` "stragglers" or "spells"."""

    def __init__(self, kind: str, seed: int, number: int) -> None:
        self._kind, self._draw = kind, random.Random(f"{seed} {number}")
        self._turns = time.monotonic() + self._draw.expovariate(1 / BETWEEN)
        self._slow = False

    def seconds(self) -> float:
        """Return the time of a call that begins now."""
        if self._kind == "stragglers":
            return SECONDS * (SLOWER if self._draw.random() < STRAGGLERS else 1.0)
        while time.monotonic() >= self._turns:
            self._slow = not self._slow
            self._turns += self._draw.expovariate(1 / (SPELL if self._slow else BETWEEN))
        return SECONDS * (SPELL_SLOWER if self._slow else 1.0)


def mean_seconds(kind: str) -> float:
    """Return the mean time of a call."""
    if kind == "stragglers":
        return SECONDS * (1 + STRAGGLERS * (SLOWER - 1))
    return SECONDS * (1 + SPELL / (SPELL + BETWEEN) * (SPELL_SLOWER - 1))
