"""The commands `real` and `late`: real texts, a real model and real slowness; nothing is emulated.

Intents of Banking77 by MiniLM-L6 and a classifier, in four instances on two cores: four Tritons,
each with one instance of its Python backend, behind a client that prefers the instance with the
fewest calls in flight, or behind Envoy; or the four workers of `parm serve`. Instances are slow
because neighbours compute on their core, because they are stopped, because the disk is busy; now
and then all are stopped for five seconds. All contestants get the same queries at the same times,
and the same slowness. `late` compares Late with libraries that hedge, behind three balancers.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, filterfalse, groupby, product
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import click
import httpx
import msgspec
import numpy as np
import onnxruntime
import psutil
from hedge.transport import HedgedHttpxTransport
from httpx_hedged import HedgedTransport
from matplotlib.figure import Figure
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from parity_models import Late, calibrate, protect
from parity_models.bundle.backup import GatedBackup, Judged
from parity_models.bundle.bundle import NewModel, open_bundle, write_bundle
from parity_models.errors import LoadError
from parity_models.options import option
from parity_models.progress import progress_bars
from parity_models.roles import BACKUP, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.serving.client import Client, ClientError
from parity_models.serving.engine import Placement
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import read_response, write_request
from parity_models.serving.remote.export import export_repository
from parity_models.serving.server import ServeOptions
from parity_models_lab.plots import PALETTE, save, tail_axes
from parity_models_lab.processes import send_signal
from parity_models_lab.results import OutFolder, ResultCache, Row, Seed, Work, code_digest, report
from parity_models_lab.rival_servers import ROOT, envoy, hedging, triton
from parity_models_lab.served import processes, served, workers

MODEL, INSTANCES, CORES = "model", 4, 2
DIFFER = 0.01
"""The share of answers that may differ."""

MINUTES = 6.0
"""For the search for a stand-in, once."""

TIMEOUT = 10.0
"""Seconds after which a query has failed."""

DELAYS = (0.015, 0.03, 0.06, 0.12)
"""Seconds after which a copy is sent or another answer taken. Of contestants that differ in these
alone, the one with the best p99.9 stays, of those that keep the budget, or else differ least."""

TUNED = 3
"""Seeds after which it is chosen."""

LATE = 0.05
"""Seconds from which on a query is late: those of the runs without help."""

RECOVERED = 30.0
"""Seconds within which a server answers again once it is left alone."""

CONTINUED = 0.02
"""Seconds after which the next of several stopped processes goes on."""

BEGIN, CALM, SPELL, OUTAGE = 1.0, (0.4, 1.0), (0.8, 1.6), 5.0
"""Seconds: before the first spell of slowness, between two, of a spell, and of an outage."""

SPELLS = ("neighbour", "neighbour", "stopped", "stopped", "disk")
OUTAGE_EVERY = 4
"""One seed in so many has an outage."""

WARM_UP = 400
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
DRAWS = 1000
"""Resamples of spells."""

NEAR = 0.1
"""A quantile is shown if its interval is within this share of it."""


class Spell(NamedTuple):
    """Slowness of some `kind`, in seconds from a run's beginning."""

    kind: str
    begins: float
    ends: float
    victim: int


def has_outage(seed: int) -> bool:
    """Return whether all instances are stopped in the end."""
    return seed % OUTAGE_EVERY == 0


def course(seed: int) -> list[Spell]:
    """Return the spells of a run, which follow from its seed."""
    draw, at = random.Random(f"{seed}/course"), BEGIN
    kinds = draw.sample(SPELLS, len(SPELLS)) + ["outage"] * has_outage(seed)
    spells = []
    for kind in kinds:
        lasting = OUTAGE if kind == "outage" else draw.uniform(*SPELL)
        spells.append(Spell(kind, at, at + lasting, draw.randrange(INSTANCES)))
        at += lasting + draw.uniform(*CALM)
    return spells


class Run(msgspec.Struct, frozen=True):
    """The queries of a run, in order: the text; seconds from the due time to the answer, negative
    where there was none; the class that was answered, and its source; and the last spell that had
    begun."""

    texts: tuple[int, ...]
    latencies: tuple[float, ...]
    said: tuple[int, ...]
    sources: tuple[str, ...]
    spells: tuple[int, ...]
    processor: float
    """Seconds of the processor: of the client, and of all servers."""


class Texts:
    """The test texts as requests, what is right, and what the model and the stand-in say."""

    def __init__(self, folder: Path) -> None:
        opened = open_bundle(folder / "protected")
        self.labels = np.load(folder / "labels.npy")
        given = dict(np.load(folder / "test.npz"))
        lengths = given["attention_mask"].sum(axis=1)
        self.rows = [
            {name: each[[i], :length] for name, each in given.items()}
            for i, length in enumerate(lengths)
        ]
        self.requests = [write_request(row) for row in self.rows]
        model = opened.pinned(opened.manifest.deployed).load()
        (self.output,) = (each.name for each in opened.manifest.deployed.signature.outputs)
        self.model = np.array([model(row)[self.output].argmax() for row in self.rows])
        self.default = int(np.bincount(self.model).argmax())
        self.threshold = self._threshold(GatedBackup(opened, budgeted=True))

    def _threshold(self, backup: GatedBackup) -> float:
        """Return the least confidence with which a stand-in that is asked first answers, known in
        hindsight: so that a share DIFFER of these very texts gets another answer."""
        judged = [backup.answer(backup.read(row), onnxruntime.RunOptions()) for row in self.rows]
        pairs = sorted(
            (-confidence(one), int(one.outputs.argmax() != said))
            for one, said in zip(judged, self.model, strict=True)
            if isinstance(one, Judged)
        )
        within = np.flatnonzero(np.cumsum([wrong for _, wrong in pairs]) <= DIFFER * len(self.rows))
        return -pairs[within[-1]][0] if len(within) else inf


Ask = Callable[[int], Awaitable[tuple[int, str]]]
"""Answers a text, by number: its class, and the answer's source."""

StandIn = Callable[[int], Awaitable[tuple[int, str] | None]]
"""The same without the model, or None for no answer."""

Balancer = Callable[[Sequence[int]], int]
"""Chooses a server, by the numbers of calls in flight."""


def fewest_in_flight(drawn: int = INSTANCES) -> Balancer:
    """Choose, of so many servers drawn at random, the one with the fewest calls in flight."""
    draw = random.Random(0)

    def choose(in_flight: Sequence[int]) -> int:
        servers = draw.sample(range(len(in_flight)), min(drawn, len(in_flight)))
        return min(servers, key=in_flight.__getitem__)

    return choose


class Fleet:
    """Servers of the model behind a balancer.

    A call that is given up runs on and counts: otherwise a stopped server, whose calls are all
    given up, would look idle and get the next ones.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        texts: Texts,
        headers: Mapping[str, str] | None = None,
        balancer: Balancer | None = None,
    ) -> None:
        self._clients, self._texts, self._headers = clients, texts, headers or {}
        self._in_flight = [0] * len(clients)
        self._calls = set[asyncio.Task[Any]]()
        self._choose = balancer or fewest_in_flight()

    async def call(self, text: int, server: str = "") -> dict[str, NDArray[Any]]:
        """Return the model's output; the balancer chooses the server unless its number is given."""
        return (await self._shielded(text, int(server) if server else None))[0]

    async def plain(self, text: int) -> tuple[int, str]:
        output, source = await self._shielded(text)
        return _class(output), source

    async def drained(self) -> None:
        """Wait until every server has answered a query: so all before it, given up or not.

        Raises LoadError if one answers none within RECOVERED seconds.
        """
        if self._calls:
            await asyncio.wait(self._calls, timeout=RECOVERED)
        await asyncio.gather(*map(self._drained, range(len(self._clients))))

    async def _shielded(
        self, text: int, at: int | None = None
    ) -> tuple[dict[str, NDArray[Any]], str]:
        call = asyncio.ensure_future(self._ask(text, at))
        self._calls.add(call)
        call.add_done_callback(self._ended)
        return await asyncio.shield(call)

    def _ended(self, call: "asyncio.Task[Any]") -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # nobody may have waited for it

    async def _drained(self, at: int) -> None:
        until = time.monotonic() + RECOVERED
        while True:
            try:
                await self._ask(0, at)
                return
            except (ClientError, InvalidRequestError, OSError) as error:
                if time.monotonic() > until:
                    raise LoadError(
                        f"server {at} has gone; start again, as earlier runs are kept"
                    ) from error
                await asyncio.sleep(0.1)

    async def _ask(self, text: int, at: int | None = None) -> tuple[dict[str, NDArray[Any]], str]:
        if at is None:
            at = self._choose(self._in_flight)
        self._in_flight[at] += 1
        body, headers = self._texts.requests[text]
        try:
            path = f"/v2/models/{MODEL}/infer"
            client, headers = self._clients[at], {**headers, **self._headers}
            content, length = await client.ask("POST", path, body, headers)
        finally:
            self._in_flight[at] -= 1
        answer = read_response(content, length)
        (output,) = answer.outputs
        return {output.name: output.array()}, answer.sources(1)[0]


def _class(output: Mapping[str, NDArray[Any]]) -> int:
    (values,) = output.values()
    return int(values.argmax())


# Contestants


def hedged(ask: Ask, after: float) -> Ask:
    """Send a copy of each call that takes longer."""

    async def hedge(text: int) -> tuple[int, str]:
        calls = {asyncio.ensure_future(ask(text))}
        done, _ = await asyncio.wait(calls, timeout=after)
        if not done:
            calls.add(asyncio.ensure_future(ask(text)))
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        for call in calls - done:
            call.cancel()
        return await done.pop()

    return hedge


def delayed(name: str, make: Callable[[float], Any]) -> dict[str, Any]:
    """Return what is made of each delay, by name."""
    return {f"{name} after {1e3 * each:g} ms": make(each) for each in DELAYS}


def timed_out(ask: Ask, after: float, other: StandIn) -> Ask:
    """Take the other answer, if there is one, in place of each that takes longer."""

    async def answer(text: int) -> tuple[int, str]:
        call = asyncio.ensure_future(ask(text))
        done, _ = await asyncio.wait({call}, timeout=after)
        if not done and (instead := await other(text)) is not None:
            call.cancel()
            return instead
        return await call

    return answer


def default(texts: Texts) -> StandIn:
    """Answer by the commonest class."""

    async def answer(text: int) -> tuple[int, str]:
        return texts.default, "default"

    return answer


def confidence(judged: Judged) -> float:
    """Return the largest probability of an output of logits; many outputs have the same doubt."""
    return float(1 / np.exp(judged.outputs - judged.outputs.max()).sum())


def stand_in(texts: Texts, backup: GatedBackup, threshold: float = 0.0) -> StandIn:
    """Answer by the stand-in, unless its confidence is below the threshold."""

    async def answer(text: int) -> tuple[int, str] | None:
        rows, options = backup.read(texts.rows[text]), onnxruntime.RunOptions()
        judged = await asyncio.to_thread(backup.answer, rows, options)
        if isinstance(judged, Judged) and confidence(judged) >= threshold:
            return int(judged.outputs.argmax()), Source.BACKUP
        return None

    return answer


def cascade(first: StandIn, ask: Ask) -> Ask:
    """Ask the stand-in first, and the model only if that does not answer."""

    async def answer(text: int) -> tuple[int, str]:
        return await first(text) or await ask(text)

    return answer


def raced(fleet: Fleet, texts: Texts, late: Late) -> Ask:
    """Race each call with the stand-in."""

    async def ask(text: int) -> tuple[int, str]:
        answer = await late(partial(fleet.call, text), texts.rows[text])
        return _class(answer.value), answer.source

    return ask


# Slowness


class Contestant(NamedTuple):
    """Answers queries with a fleet, whose servers have these process ids: of one server, its
    workers are the instances. A proxy in front of them is not one of them."""

    ask: Ask
    fleet: Fleet
    servers: Sequence[int]
    proxy: tuple[int, ...] = ()

    def instances(self) -> list[list[int]]:
        """Return the processes of each instance, some of which may have been started again."""
        if len(self.servers) == 1:
            return [[pid] for pid in workers(self.servers[0])]
        return [[each.pid for each in processes(pid)] for pid in self.servers]

    def processor_time(self) -> dict[int, float]:
        """Return the seconds of the processor that the client and all servers have used, by
        process."""
        used = {os.getpid(): time.process_time()}
        for each in (each for pid in (*self.servers, *self.proxy) for each in processes(pid)):
            with suppress(psutil.NoSuchProcess):
                used[each.pid] = sum(each.cpu_times()[:2])
        return used


@asynccontextmanager
async def slow(spell: Spell, instances: Sequence[Sequence[int]], work: Path) -> AsyncIterator[None]:
    """Make instances slow while the context lasts."""
    started: list[subprocess.Popen[bytes]] = []
    stopped = list[int]()
    if spell.kind in ("stopped", "outage"):
        victims = instances if spell.kind == "outage" else [instances[spell.victim]]
        stopped = [pid for victim in victims for pid in victim]
    elif spell.kind == "neighbour":
        busy = ("sh", "-c", "while :; do :; done")
        started = [_start(*on_core(spell.victim), *busy) for _ in range(3)]
    else:
        again = f"while :; do dd if=/dev/zero of={work / 'disk'} bs=1M count=64 conv=fsync; done"
        started = [_start("sh", "-c", again)]
    try:
        for pid in stopped:
            send_signal(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in reversed(stopped):  # Triton gives up a backend that stays behind
            send_signal(pid, signal.SIGCONT)
            await asyncio.sleep(CONTINUED)
        for each in started:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()


def on_core(instance: int) -> tuple[str, ...]:
    """Return the beginning of a command that runs on this instance's core only."""
    return "taskset", "-c", str(instance % CORES)


def _start(*command: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)


async def run(
    contestant: Contestant, texts: Texts, spells: Sequence[Spell], seed: int, options: "Comparison"
) -> Run:
    """Send queries at random times through a run's spells, and wait for all answers."""
    await contestant.fleet.drained()
    draw, loop = random.Random(f"{seed}/queries"), asyncio.get_running_loop()
    ends = (spells[-1].ends if spells else WARM_UP / options.rate) + CALM[0]
    began = loop.time() + 0.1
    answers: list[asyncio.Task[tuple[float, int, str]]] = []
    due, before = 0.0, contestant.processor_time()

    async def answer(text: int, due: float) -> tuple[float, int, str]:
        try:
            async with asyncio.timeout(TIMEOUT):
                said, source = await contestant.ask(text)
        except (TimeoutError, ClientError, InvalidRequestError, OSError):
            return -1.0, -1, "failed"
        return loop.time() - began - due, said, source

    async def disturb(spell: Spell) -> None:
        await asyncio.sleep(began + spell.begins - loop.time())
        async with slow(spell, contestant.instances(), options.work):
            await asyncio.sleep(began + spell.ends - loop.time())

    disturbances = [asyncio.create_task(disturb(each)) for each in spells]
    drawn, number = list[int](), list[int]()
    while (due := due + draw.expovariate(options.rate)) < ends:
        await asyncio.sleep(began + due - loop.time())
        drawn.append(draw.randrange(len(texts.rows)))
        answers.append(asyncio.create_task(answer(drawn[-1], due)))
        number.append(sum(spell.begins <= due for spell in spells))
    found = await asyncio.gather(*answers)
    await asyncio.gather(*disturbances)
    await contestant.fleet.drained()
    used = contestant.processor_time()
    seconds = sum(each - before.get(pid, 0.0) for pid, each in used.items())
    latencies, said, sources = zip(*found, strict=True)
    return Run(tuple(drawn), latencies, said, sources, tuple(number), seconds)


# Results


class Pooled(NamedTuple):
    """The queries of all of a contestant's runs; `spell` numbers the spells of all runs."""

    texts: NDArray[np.int64]
    latencies: NDArray[np.float64]
    said: NDArray[np.int64]
    sources: NDArray[np.str_]
    spell: NDArray[np.int64]
    processor: float


def pooled(runs: Sequence[Run]) -> Pooled:
    """Return the queries of some runs; those that failed took for ever."""
    spells = [max(run.spells) + 1 for run in runs]
    before = np.cumsum([0, *spells[:-1]])
    latencies = np.concatenate([run.latencies for run in runs])
    return Pooled(
        np.concatenate([run.texts for run in runs]),
        np.where(latencies < 0, inf, latencies),
        np.concatenate([run.said for run in runs]),
        np.concatenate([run.sources for run in runs]),
        np.concatenate([np.add(run.spells, n) for run, n in zip(runs, before, strict=True)]),
        sum(run.processor for run in runs),
    )


def quantile(values: NDArray[np.float64], share: float) -> float:
    """Return the order statistic that at least this share of the values does not exceed."""
    return float(np.quantile(values, share, method="inverted_cdf"))


def resampled(found: Pooled, share: float) -> NDArray[np.float64]:
    """Return a quantile of the latencies in resamples of spells: the same spells, number by number,
    for all contestants that have met them."""
    parts = [found.latencies[found.spell == each] for each in np.unique(found.spell)]
    resamples = np.random.default_rng(0).integers(len(parts), size=(DRAWS, len(parts)))
    drawn = [quantile(np.concatenate([parts[i] for i in each]), share) for each in resamples]
    return np.array(drawn)


def interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of what was found in resamples."""
    return quantile(drawn, 0.025), quantile(drawn, 0.975)


def row_of(name: str, found: Pooled, late: NDArray[np.bool_], texts: Texts, ours: Pooled) -> Row:
    """Return a row of the table: times in ms, and over `ours` in pairs; shares in per cent."""
    row: dict[str, object] = {"": name}
    for label, share in QUANTILES.items():
        value, drawn = quantile(found.latencies, share), resampled(found, share)
        low, high = interval(drawn)
        shown = value < inf and low >= (1 - NEAR) * value and high <= (1 + NEAR) * value
        row[label] = round(1e3 * value, 1) if shown else None
        row[f"{label}, 95 %"] = f"{1e3 * low:.0f} to {1e3 * high:.0f}"
        low, high = interval(drawn / resampled(ours, share))
        row[f"{label}, of ours"] = f"{low:.2f} to {high:.2f}"
    answered = found.latencies < inf
    agrees, stood_in = found.said == texts.model[found.texts], found.sources == Source.BACKUP

    def percent(which: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
        return round(100 * float(which[among].mean()), 2) if among.any() else 0.0

    everything = np.ones_like(answered)
    return row | {
        "failed": int((~answered).sum()),
        "stand-ins, %": percent(stood_in, everything),
        "right, %": percent(found.said == texts.labels[found.texts], everything),
        "agree, %": percent(agrees, everything),
        "agree if late, %": percent(agrees, late),
        "processor, ms": round(1e3 * found.processor / len(answered), 2),
        "queries": len(answered),
    }


def plot_tails(file: Path, panels: Mapping[str, Mapping[str, Pooled]], note: str) -> None:
    """Draw the share of queries that took longer, for each contestant, in a panel for each title;
    all panels have the same contestants."""
    size = (5.8 + 3.2 * len(panels), 5.2)
    picture = Figure(figsize=size, dpi=140, layout="constrained")
    plots = picture.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (title, results) in zip(plots, panels.items(), strict=True):
        looks = product(("-", "--"), PALETTE)
        for (name, found), (line, colour) in zip(results.items(), looks, strict=False):
            answered = 1e3 * np.where(found.latencies < inf, found.latencies, TIMEOUT)
            axes.ecdf(answered, complementary=True, color=colour, linestyle=line, label=name)
        tail_axes(axes, 5e-4)
        axes.set_xscale("log")
        axes.set_title(title, loc="left", fontweight="bold")
    plots[0].set_ylabel("share of queries that took longer")
    plots[len(plots) // 2].set_xlabel("latency in ms, from the scheduled query to the answer")
    save(picture, file, note)


# The command real

ABOUT = f"Four instances on two cores; {DIFFER:.1%} may differ."
BASELINE, OURS = "no help, Triton", "parm serve, adaptive"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The options of a comparison where nothing is emulated."""

    data_dir: Path = option(
        Path("banking77"), "The folder of Banking77: train.csv, test.csv.", metavar="DIR"
    )
    packages: Path = option(
        Path("packages"),
        "The folder of the packages that examples/real/minilm.py names.",
        metavar="DIR",
    )
    out: OutFolder = Path("lab/results")
    work: Work = Path("runs/real")
    rate: float = option(100.0, "Queries a second.", gt=0)
    seed: Seed = 1
    seeds: int = option(1, "Seeds, from SEED on.", ge=1)


def real(options: Comparison) -> None:
    """Compare contestants where nothing is emulated: texts, model, servers and slowness are real.

    One table is of the seeds with an outage, which come last, as it empties purses; one of the
    others. Times in ms. A quantile is left out where its interval, by resampling spells, goes
    further from it than a tenth. `of ours`: over that of our server, in pairs of the same spells.
    `agree if late`: of the queries that are late without help. All latencies are in the .npz files.
    Servers start once; runs are kept in the folder for intermediate results until the code changes.
    """
    texts, out = prepare(options), options.out
    seeds = sorted(range(options.seed, options.seed + options.seeds), key=has_outage)
    runs = asyncio.run(compare(options, texts, seeds, _contestants))
    for outage, group in groupby(seeds, has_outage):
        name, chosen = "outage" if outage else "spells", [*group]
        results = {who: pooled([found[each] for each in chosen]) for who, found in runs.items()}
        late, ours = results[BASELINE].latencies > LATE, results[OURS]
        rows = [row_of(who, found, late, texts, ours) for who, found in results.items()]
        title = f"Nothing is emulated, {name}: {len(chosen)} seeds"
        report(title, rows, out / f"real-{name}.json", seeds=chosen)
        plot_tails(out / f"real-{name}.png", {"A real model, texts, slowness": results}, ABOUT)
        kept: Any = {who: each.latencies.astype(np.float32) for who, each in results.items()}
        np.savez_compressed(out / f"real-{name}.npz", text=ours.texts, spell=ours.spell, **kept)


def prepare(options: Comparison) -> Texts:
    """Make the model, the bundle with a stand-in, and that with the model in int8 as the stand-in,
    unless they are there; return the test texts."""
    work = options.work
    model, inputs = work / "model.onnx", work / "inputs.npz"
    if not (work / "labels.npy").exists():
        _example("minilm_l6.py", "--packages", options.packages)
        data = ("--data", options.data_dir, "--out", work)
        _example("banking77.py", "--packages", options.packages, *data)
    if not (work / "protected").exists():
        with progress_bars() as bars:
            protect(model, inputs, out=work / "protected", minutes=MINUTES, callbacks=bars)
    if not (work / "int8").exists():
        bundle = open_bundle(work / "protected")
        signature = bundle.manifest.deployed.signature
        quantize_dynamic(model, work / "int8.onnx", weight_type=QuantType.QInt8)
        write_bundle(
            work / "int8",
            deployed=bundle.stored(bundle.manifest.deployed),
            backup=NewModel(work / "int8.onnx", "int8", signature=signature),
            envelope=bundle.envelope(),
        )
        calibrate(work / "int8", inputs)
    if not (work / "repository").exists():
        export_repository(work / "protected", work / "repository", MODEL)
        shutil.rmtree(work / "repository" / f"{MODEL}-{BACKUP}")
    return Texts(work)


def _example(name: str, *arguments: str | Path) -> None:
    click.echo(name, err=True)
    subprocess.run([sys.executable, ROOT / "examples" / "real" / name, *arguments], check=True)


Contestants = Callable[[AsyncExitStack, Path, Texts], Awaitable[dict[str, Contestant]]]
"""Starts all servers, and returns the contestants by name."""


async def compare(
    options: Comparison, texts: Texts, seeds: Sequence[int], start: Contestants
) -> dict[str, dict[int, Run]]:
    """Return each contestant's run of each seed; contestants take turns, seed by seed, each time
    from another one on.

    Of contestants whose names differ in a delay only, the best one stays (see DELAYS).
    """
    kept = ResultCache(options.work / "runs")
    async with AsyncExitStack() as stack:
        contestants = await start(stack, options.work, texts)
        found: dict[str, dict[int, Run]] = {name: {} for name in contestants}
        for name, contestant in contestants.items():
            click.echo(f"warming up: {name}", err=True)
            await run(contestant, texts, (), -1, options)
        for seed in seeds:
            names = [*contestants]
            for name in names[seed % len(names) :] + names[: seed % len(names)]:
                key = f"{name}-{options.rate:g}-{seed}-{code_digest()}".replace("/", "-")
                made = kept.get(key, Run)
                if made is None:
                    click.echo(f"seed {seed}: {name}", err=True)
                    made = await run(contestants[name], texts, course(seed), seed, options)
                    kept.put(key, made)
                found[name][seed] = made
            if seed == seeds[:TUNED][-1]:
                best = dict[str, tuple[float, float, str]]()
                for name, runs in found.items():
                    so_far, kind = pooled([*runs.values()]), without_delay(name)
                    differ = float((so_far.said != texts.model[so_far.texts]).mean())
                    rank = max(differ, DIFFER), quantile(so_far.latencies, 0.999), name
                    best[kind] = min(best.get(kind, rank), rank)
                for name in set(found) - {name for *_, name in best.values()}:
                    del contestants[name], found[name]
    return found


def without_delay(name: str) -> str:
    """Return a contestant's name without its delay."""
    return re.sub(r" after [\d.]+ ms", "", name)


async def tritons(stack: AsyncExitStack, work: Path) -> tuple[list[int], list[int], list[Client]]:
    """Start the instances; return their process ids, their ports, and clients."""
    pids, ports, clients = list[int](), list[int](), list[Client]()
    for number in range(INSTANCES):
        repository = (work / "repository").resolve()
        port, _, pid = stack.enter_context(triton(repository, on_core(number)))
        pids.append(pid)
        ports.append(port)
        clients.append(await stack.enter_async_context(Client(f"http://127.0.0.1:{port}")))
    return pids, ports, clients


async def _contestants(stack: AsyncExitStack, work: Path, texts: Texts) -> dict[str, Contestant]:
    pids, ports, clients = await tritons(stack, work)
    fleet = Fleet(clients, texts)
    backup = GatedBackup(open_bundle(work / "protected"), budgeted=True)
    answer, sure = (stand_in(texts, backup, each) for each in (0.0, texts.threshold))
    url, proxy = stack.enter_context(envoy(ports, DELAYS))
    client = await stack.enter_async_context(Client(url))
    proxied = Fleet([client], texts)

    def late(folder: str) -> Late:
        return stack.enter_context(Late(work / folder, differ=DIFFER))

    asks: dict[str, Ask] = {
        BASELINE: fleet.plain,
        **delayed("hedging", partial(hedged, fleet.plain)),
        **delayed("a default", partial(timed_out, fleet.plain, other=default(texts))),
        **delayed("the stand-in", partial(timed_out, fleet.plain, other=answer)),
        **delayed("a cascade, hedging", lambda after: cascade(sure, hedged(fleet.plain, after))),
        "Late": raced(fleet, texts, late("protected")),
        "Late, int8 as the stand-in": raced(fleet, texts, late("int8")),
    }
    through_envoy: dict[str, Ask] = {
        "no help, Envoy": proxied.plain,
        **delayed("Envoy, hedging", lambda after: Fleet([client], texts, hedging(after)).plain),
        "Late behind Envoy": raced(proxied, texts, late("protected")),
    }
    contestants = {
        **{name: Contestant(ask, fleet, pids) for name, ask in asks.items()},
        **{name: Contestant(ask, fleet, pids, (proxy,)) for name, ask in through_envoy.items()},
    }
    hedges = delayed("hedging", lambda after: PolicyChoice("hedging", {"hedge_delay": after}))
    own = {"none": PolicyChoice("none"), **hedges, "adaptive": PolicyChoice("adaptive")}
    for name, policy in own.items():
        options = ServeOptions(
            policy=policy,
            instances=INSTANCES,
            port=0,
            differ=DIFFER if name == "adaptive" else None,
            placements=tuple(Placement(on_core(each)) for each in range(INSTANCES)),
        )
        server = await stack.enter_async_context(served(work / "protected", options))
        client = await stack.enter_async_context(Client(server.message))
        fleet = Fleet([client], texts)
        contestants[f"parm serve, {name}"] = Contestant(fleet.plain, fleet, [server.pid])
    return contestants


# The command late

LIBRARIES: Mapping[str, Any] = {
    "hedge-python": HedgedHttpxTransport,
    "httpx-hedged": HedgedTransport,
}
NO_HELP, CHOOSES = "no help", "Late, chooses servers"


def round_robin() -> Balancer:
    """Choose the next server."""
    turns = count()
    return lambda in_flight: next(turns) % len(in_flight)


BALANCERS: Mapping[str, Callable[[], Balancer]] = {
    "round robin": round_robin,
    "the better of two": lambda: fewest_in_flight(2),
    "fewest in flight": fewest_in_flight,
}


def late(options: Comparison) -> None:
    """Compare parity_models.Late with libraries that hedge, behind three balancers.

    All is real, as in `real`, but seeds with an outage are left out. Times in ms. Runs are kept in
    the folder for intermediate results until the code changes.
    """
    texts, out = prepare(options), options.out
    chosen = [*filterfalse(has_outage, range(options.seed, options.seed + options.seeds))]
    runs = asyncio.run(compare(options, texts, chosen, _callers))
    results = {name: pooled([*found.values()]) for name, found in runs.items()}
    rows: list[Row] = []
    panels: dict[str, dict[str, Pooled]] = {each: {} for each in BALANCERS}
    for name, found in results.items():
        balancer, _, library = name.partition(": ")
        is_late = results[f"{balancer}: {NO_HELP}"].latencies > LATE
        ours = results[f"{balancer}: Late"]
        rows.append({"balancer": balancer, **row_of(library, found, is_late, texts, ours)})
        if library != CHOOSES:
            panels[balancer][without_delay(library)] = found
    title = f"Calls to four servers, {len(chosen)} seeds"
    report(title, rows, out / "late.json", seeds=chosen)
    plot_tails(out / "late.png", panels, ABOUT)


async def _callers(stack: AsyncExitStack, work: Path, texts: Texts) -> dict[str, Contestant]:
    pids, _, clients = await tritons(stack, work)
    asks = await asks_of(stack, clients, texts, work / "protected")
    return {name: Contestant(ask, fleet, pids) for name, (ask, fleet) in asks.items()}


async def asks_of(
    stack: AsyncExitStack, clients: Sequence[Client], texts: Texts, bundle: Path
) -> dict[str, tuple[Ask, Fleet]]:
    """Return what asks the servers in each way behind each balancer."""
    contestants = dict[str, tuple[Ask, Fleet]]()
    for name, balancer in BALANCERS.items():
        fleet = Fleet(clients, texts, balancer=balancer())
        hedging = delayed("hedging", partial(hedged, fleet.plain))
        asks: dict[str, Ask] = {NO_HELP: fleet.plain, **hedging}
        for library, transport in LIBRARIES.items():
            asks[library] = await _through(stack, transport, fleet)
        asks["Late"] = raced(fleet, texts, stack.enter_context(Late(bundle, differ=DIFFER)))
        contestants |= {f"{name}: {library}": (ask, fleet) for library, ask in asks.items()}
    servers = list(map(str, range(INSTANCES)))
    chooser = stack.enter_context(Late(bundle, servers=servers, differ=DIFFER))
    contestants[f"{name}: {CHOOSES}"] = raced(fleet, texts, chooser), fleet
    return contestants


async def _through(stack: AsyncExitStack, library: Any, fleet: Fleet) -> Ask:
    """Ask a fleet by requests that name a text, through a library's transport."""

    async def handle(request: httpx.Request) -> httpx.Response:
        said, _ = await fleet.plain(int(request.headers["text"]))
        return httpx.Response(200, text=str(said))

    async def ask(text: int) -> tuple[int, str]:
        answer = await client.get("http://fleet/", headers={"text": str(text)})
        return int(answer.text), Source.MODEL

    transport = library(httpx.MockTransport(handle))
    client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, timeout=None))
    return ask
