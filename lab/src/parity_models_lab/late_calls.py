"""The command `late`: the same calls to the same servers, over real sockets, in five ways.

Four servers, each with one slot and a queue, run calls of 10 ms: plain ones, or Tritons. Calls come
at random times; each attempt goes to the next server. Slowness is that of the hedging libraries'
own benchmark, 5 % of calls ten times as slow, or lasts: each server takes six times as long for a
tenth of the time, two seconds at a time. A stand-in takes a fifth of the model's time. The doubts
of its outputs are log-uniform from LEAST_DOUBT to 1, so 9 % of them would differ.
"""

import asyncio
import multiprocessing
import random
import shutil
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from itertools import cycle, product
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import httpx
import numpy as np
import onnxruntime
import typer
from aiohttp import web
from hedge.transport import HedgedHttpxTransport
from httpx_hedged import HedgedTransport
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from parity_models import Late
from parity_models.bundle.backup import GatedBackup, Judged
from parity_models.late.driver import LateAnswer
from parity_models.options import Option
from parity_models.tensors.signature import Batch, Tensor
from parity_models_lab import slow_model
from parity_models_lab.plots import COLOURS, save, style, tail_axes
from parity_models_lab.results import INVALID, Out, ResultCache, Seed, code_digest, report
from parity_models_lab.served import triton
from parity_models_lab.slow_model import RESTART, SECONDS, Slowness, mean_seconds

SERVERS = 4
KINDS = ("plain", "Triton")
BACKUP_SECONDS, LEAST_DOUBT = SECONDS / 5, 1e-5
LOADS, SLOWNESS = (0.3, 0.6, 0.9), ("stragglers", "spells")

PATH = "/v2/models/model/infer"
ANSWER = {
    "model_name": "model",
    "outputs": [{"name": "output", "datatype": "FP32", "shape": [1, 3], "data": [0.1, 0.7, 0.2]}],
}
ROWS = np.zeros((1, 4), np.float32)
WARM_UP = 100
"""Calls that do not count, as they are made before anything is learned."""

QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def _question(value: float) -> dict[str, Any]:
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [value] * 4}
    return {"inputs": [tensor]}


class Run(NamedTuple):
    """A row of the table, and the latencies in ms."""

    row: dict[str, Any]
    latencies: list[float]


def late(
    calls: Annotated[int, Option("Calls of each run.", at_least=100)] = 4000,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Compare parity_models.Late with libraries that hedge, over real sockets.

    Four servers with a slot each, two kinds of slowness, three loads. Times in ms. Runs are kept in
    runs/late until the code changes, so what was interrupted goes on where it was.
    """
    runs = list(compare(calls, seed, ResultCache(Path("runs/late"))))
    title = f"Calls to four servers, {calls:,} a run, seed {seed}"
    report(title, [run.row for run in runs], out and out / "late.json")
    if out is not None:
        plot_tails(out / "late.png", runs)


def compare(calls: int, seed: int, kept: ResultCache) -> Iterator[Run]:
    """Yield a run for each kind of servers and of slowness, load and library, with times in ms.
    Runs that this code has `kept` are not made again."""
    for servers, slowness in product(KINDS, SLOWNESS):
        with ExitStack() as stack:
            ports: list[int] = []
            for load, name in product(LOADS, CONTESTANTS):
                key = f"{servers}-{slowness}-{load}-{name}-{calls}-{seed}-{code_digest()}"
                run = kept.get(key, Run)
                if run is None:
                    start = _plain if servers == KINDS[0] else _tritons
                    ports = ports or stack.enter_context(start(slowness, seed))
                    row = {"servers": servers, "slowness": slowness, "load": load, "library": name}
                    typer.echo(", ".join(map(str, row.values())), err=True)
                    run = asyncio.run(_run(ports, row, calls, seed))
                    kept.put(key, run)
                yield run


def plot_tails(file: Path, runs: Iterable[Run]) -> None:
    """Draw the tails of the runs with spells at the middle load."""
    drawn, colours = (KINDS[0], "spells", LOADS[1]), iter(COLOURS)
    with style():
        picture = Figure(figsize=(9, 5.2), dpi=140, layout="constrained")
        axes = picture.add_subplot()
        for row, latencies in runs:
            about = (row["servers"], row["slowness"], row["load"])
            if about == drawn and row["library"] != "Late, copies":
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


async def _run(ports: Sequence[int], row: dict[str, Any], calls: int, seed: int) -> Run:
    """Make the calls of a row, and add its results."""
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
        get = await _contestant(row["library"], stack, _NextServer(ports, attempts))

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
    found = np.quantile(latencies, list(QUANTILES.values())).round(1).tolist()
    ours = calls - sources["model"] - sources["copy"]
    row |= dict(zip(QUANTILES, found, strict=True))
    row |= {"extra calls": round(extra, 3), "not the model's": round(ours / calls, 4)}
    row |= {"differ, %": round(100 * doubts / calls, 3)}
    row |= {"client CPU, us a call": round(1e6 * used / calls)}
    if np.quantile(delays, 0.99) > 0.005:
        row[INVALID] = "the calls were made late"
    return Run(row, latencies)


# Contestants


class _NextServer(httpx.AsyncHTTPTransport):
    """Sends each attempt to the next server, by POST: the libraries hedge GET alone."""

    def __init__(self, ports: Sequence[int], attempts: Counter[str]) -> None:
        super().__init__(limits=httpx.Limits(max_connections=None, max_keepalive_connections=256))
        self._urls = cycle([f"http://127.0.0.1:{port}{PATH}" for port in ports])
        self._attempts = attempts

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._attempts[request.method] += 1
        post = httpx.Request("POST", next(self._urls), json=_question(0.0))
        return await super().handle_async_request(post)


class _EmulatedBackup(GatedBackup):
    """A backup that takes its time, and whose outputs are doubted by chance."""

    def __init__(self) -> None:
        self.output, self.other_outputs = Tensor("output", "FP32", (3,)), set()
        self._draw = random.Random(0)
        self._outputs = np.array([[0.1, 0.7, 0.2]], np.float32)

    def read(self, inputs: ArrayLike | Batch) -> NDArray[Any]:
        return np.asarray(inputs)

    def change(self, differ: float) -> None: ...

    def answer(self, rows: NDArray[Any], run: onnxruntime.RunOptions) -> Judged:
        time.sleep(BACKUP_SECONDS)
        doubt = LEAST_DOUBT ** self._draw.random()
        return Judged(self._outputs, np.array([doubt]), doubt)

    def compare(self, answer: Judged, predictions: NDArray[Any]) -> bool:
        return True


CONTESTANTS = ("no help", "hedge-python", "httpx-hedged", "Late, copies", "Late, a backup")


async def _contestant(
    name: str, stack: AsyncExitStack, servers: httpx.AsyncHTTPTransport
) -> Callable[[], Awaitable[LateAnswer]]:
    """Return a function that makes a call and returns its answer."""
    hedged = {"hedge-python": HedgedHttpxTransport, "httpx-hedged": HedgedTransport}
    transport = hedged[name](servers) if name in hedged else servers
    client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60)
    await stack.enter_async_context(client)
    if not name.startswith("Late"):

        async def call() -> LateAnswer:
            return LateAnswer(await client.get("/"), "model", 1.0)

        return call
    late = Late(_EmulatedBackup() if name.endswith("backup") else None)
    await stack.enter_async_context(late)

    return lambda: late(lambda: client.get("/"), ROWS)


# Servers


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
