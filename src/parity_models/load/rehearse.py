"""A rehearsal of a failure: `rehearse` serves a bundle with an instance that stops now and then.

The same queries meet the same pauses under each policy: no redundancy, hedging, the default. In an
outage every instance stops, in front of which stand-ins run in the server. Everything is real, and
on this machine, except that the model may be slowed down, which the result says.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import numpy as np
import uvloop
from msgspec import structs
from rich import box
from rich.console import RenderableType
from rich.table import Table

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.errors import UserError, spell
from parity_models.evaluation.judging import GivenInputs, load_queries, metric_for
from parity_models.load import LoadSpec, offer_load
from parity_models.load.result import LoadReport, report_of
from parity_models.printed import Printed
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources, Hedging
from parity_models.serving.deployment import default_policy, stand_ins_of
from parity_models.serving.metrics import ANSWERED, COPY
from parity_models.serving.options import EngineChoice
from parity_models.serving.server import ServeOptions, Server
from parity_models.simulation.emulation import Constant, Distribution, FaultPlan, Pauses
from parity_models.tasks.metrics import METRICS
from parity_models.tensors.queries import LABELS, rows_in, take
from parity_models.tensors.signature import Batch

CALM, LEARNED = 0.4, 150
"""The share of each run before the fault, and the fewest queries, from which the policy learns."""

MAX_RATE = 100.0
"""The most queries per second: this machine runs both the load and the servers."""

LOADED = 0.5
"""The offered load, as a share of what the instances can carry."""

RECOVERS_WITHIN = 30.0
"""Seconds for which a server is waited for that was started again."""

COUNTS = ("model", "copies", "stand-ins")
"""The sources of answers in the tables."""

COPIES, DEADLINE = 0.3, 5.0
"""Hedging's copies per query at most, as many as the default policy's; seconds for a query."""

DRAWN, LABELLED = 1000, 2.0
"""The most queries to draw from, and about how many seconds the model may take to answer them."""


@dataclass(frozen=True)
class Run:
    """The answers under a `policy` during the fault; `copies` of them were given by copies.

    `common` is the share of queries with the commonest class of the model; None: it gives none.
    `recovered` is the time in seconds after which the model answers once an outage is over.
    """

    policy: str
    report: LoadReport
    copies: int
    common: float | None
    recovered: float | None = None

    @property
    def stood_in(self) -> int:
        """The number of answers of stand-ins."""
        return sum(self.report.came_from(each) for each in Source if each.stands_in)

    @property
    def answered(self) -> float:
        """The share of queries that were answered."""
        return self.report.answered / self.report.queries

    @property
    def right(self) -> float | None:
        """The share of all queries that got the model's own class; None without classes."""
        if self.common is None:
            return None
        return self.answered * (self.report.accuracy or 0.0)

    @property
    def cells(self) -> dict[str, str]:
        """The cells of its row, by heading."""
        ms = self.report.latency
        times = (ms.p50_ms, ms.p99_ms, ms.max_ms) if ms else (None,) * 3
        counts = {
            "model": self.report.answered - self.stood_in - self.copies,
            "copies": self.copies,
            "stand-ins": self.stood_in,
            "failed": self.report.queries - self.report.answered,
        }
        return {
            "policy": self.policy,
            **{
                heading: "-" if each is None else f"{each:.1f}"
                for heading, each in zip(("p50", "p99", "max"), times, strict=True)
            },
            **{heading: f"{each:,}" for heading, each in counts.items()},
            "answered": f"{self.answered:.1%}",
            "right": "" if self.right is None else f"{self.right:.1%}",
        }


@dataclass(frozen=True)
class Rehearsal(Printed):
    """The runs of a rehearsal, each under a policy: while one instance stops now and then, and, if
    there was one, in an `outage` of all.

    A query takes the model `usual_ms`, and `slowed_ms` here; `rate` queries are sent a second.
    """

    usual_ms: float
    slowed_ms: float
    rate: float
    instances: int
    runs: Sequence[Run]
    outage: Sequence[Run] = ()

    @property
    def parts(self) -> Sequence[RenderableType]:
        """A table of the runs, and what shortened the tail; likewise for an outage."""
        slowed = f" (slowed down from {self.usual_ms:.1f})"
        load = (
            f"{self.rate:.0f} queries per second, {LOADED:.0%} of what {self.instances} instances "
            f"carry at {self.slowed_ms:.1f} ms each"
            f"{slowed if self.slowed_ms > 1.05 * self.usual_ms else ''}; times in ms"
        )
        usual = [run.cells for run in self.runs]
        times = ("p50", "p99", "max")
        title = f"an instance stops now and then; {load}"
        table = _table(title, (*times, *COUNTS, "failed"), usual)
        parts: list[RenderableType] = [table, self.explanation]
        if self.outage:
            rows, alone = [run.cells for run in self.outage], self.outage[0]
            if alone.common is not None and alone.right is not None:
                right = alone.right + (1 - alone.answered) * alone.common
                default = {"policy": "time-out, default answer", "answered": "100.0%"}
                rows.append({**default, "right": f"{right:.1%}"})
            shown = ("p99", *COUNTS, "answered", "right")
            parts += [_table("every instance stops", shown, rows), self.outage_explanation]
        return parts

    @property
    def explanation(self) -> str:
        """A sentence on what shortened the tail."""
        alone, *_, helped = self.runs
        assert alone.report.latency is not None
        assert helped.report.latency is not None
        before, after = alone.report.latency.p99_ms, helped.report.latency.p99_ms
        given = f"{helped.copies:,} answers came from copies and {helped.stood_in:,} from stand-ins"
        if after > 0.9 * before:
            return f"Nothing shortened the tail: {given}."
        spared = round(0.01 * alone.report.queries) > helped.copies + helped.stood_in
        rest = ", so dispatch around the slow instance did most" if spared else ""
        return f"With {helped.policy}, p99 fell from {before:.1f} to {after:.1f} ms: {given}{rest}."

    @property
    def outage_explanation(self) -> str:
        """A sentence on who answered while every instance was stopped."""
        helped = self.outage[-1]
        return (
            f"A copy needs an instance that runs: copies gave {helped.copies:,} answers, stand-ins "
            f"{helped.stood_in:,} of {helped.report.queries:,}. An instance that started again was "
            + (
                "not in use soon."
                if helped.recovered is None
                else f"in use {helped.recovered:.1f} s later."
            )
        )


def _table(title: str, headings: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, title=title, title_justify="left")
    table.add_column("policy", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row["policy"], *(row.get(heading, "") for heading in headings))
    return table


def rehearse(
    bundle: Bundle | Path | str,
    inputs: GivenInputs | None = None,
    /,
    *,
    instances: int = 4,
    seconds: float = 4.0,
    outage: bool = False,
    differ: float | None = None,
    on_run: Callable[[str], None] = lambda text: None,
) -> Rehearsal:
    """Serve a bundle with an instance that stops now and then, without redundancy, with hedging,
    and with the default policy.

    The instances are half loaded. If this machine can not compute so much, or send so many queries,
    the model and its stand-ins are slowed down. A run takes longer than `seconds` if the policy
    would see fewer than 150 queries before the fault.

    Args:
        bundle: A bundle with a stand-in, or its folder.
        inputs: Queries: a file, an array (n, *query_shape), or an array for each input by name. By
            default random ones; stand-ins may not be confident about these.
        instances: The instances of each run.
        seconds: The duration of each run.
        outage: Rehearse also that all instances stop; stand-ins run in the server in front of them.
        differ: The share of all answers that may differ from the model's; None: the default.
        on_run: Called with a description of each run before it starts.

    Returns:
        The answers of all runs during the faults. It prints as a table.

    Raises:
        UserError: For a bundle without a stand-in, for no instances or no time, or if no query is
            answered.
        DataError: For queries that do not fit.
        ServingError: If a server cannot start.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if not stand_ins_of(opened):
        raise UserError(
            f"{opened.path} has no stand-in to see at work; find one with: parm protect"
        )
    if instances < 1 or not 0 < seconds < inf:
        raise UserError(
            f"a rehearsal has 1 instance or more, and lasts for a time above 0; got "
            f"{spell('instances', instances)} and {spell('seconds', seconds)}"
        )
    if inputs is None:
        queries = opened.manifest.deployed.signature.largest.input
        batch: Batch = queries.draw(np.random.default_rng(0), 64)
    else:
        batch = load_queries(inputs, opened)
    coroutine = _rehearse(opened, batch, instances, seconds, outage, differ, on_run)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return uvloop.run(coroutine)
    with ThreadPoolExecutor(1) as thread:  # this thread's event loop is in use
        return thread.submit(uvloop.run, coroutine).result()


async def _rehearse(
    bundle: Bundle,
    queries: Batch,
    instances: int,
    seconds: float,
    outage: bool,
    differ: float | None,
    on_run: Callable[[str], None],
) -> Rehearsal:
    usual, queries, common = await _measure(bundle, queries)
    rate = min(MAX_RATE, LOADED * min(instances, os.cpu_count() or 1) / usual)
    slowed = LOADED * instances / rate
    policies = [
        PolicyChoice(EqualResources.name),
        PolicyChoice(Hedging.name, {"hedge_budget": COPIES}),
        PolicyChoice(default_policy(bundle)).within(differ),
    ]
    calm, faulty = max(CALM * seconds, LEARNED / rate), (1 - CALM) * seconds
    with TemporaryDirectory() as folder:
        inputs = f"{folder}/inputs.npz"
        texts = {name: each.astype(str) for name, each in queries.items() if each.dtype.hasobject}
        np.savez(inputs, allow_pickle=False, **{**queries, **texts})
        load = LoadSpec(
            binary=True,
            inputs=inputs,
            rate=rate,
            warm_up=round(rate * calm),
            queries=max(1, round(rate * faulty)),
        )
        rehearsed = _Rehearsed(bundle, instances, slowed, _slowed(bundle, usual, slowed), common)

        async def run(policy: PolicyChoice, *, gone: bool) -> Run:
            stopped = "every instance stops, " if gone else ""
            on_run(f"{policy.name}: {stopped}{calm + faulty:.0f} s, {rate:.0f} queries/s")
            async with AsyncExitStack() as stack:
                start = rehearsed.in_front_of_a_fleet if gone else rehearsed.with_instances
                return await rehearsed.run(load, policy, *await start(stack, policy))

        runs = [await run(policy, gone=False) for policy in policies]
        for each in runs:
            if not each.report.answered:
                raise UserError(f"no query was answered with the policy {each.policy}")
        without = [await run(policy, gone=True) for policy in policies] if outage else []
    return Rehearsal(1e3 * usual, 1e3 * slowed, rate, instances, runs, without)


async def _measure(bundle: Bundle, queries: Batch) -> tuple[float, Batch, float | None]:
    """Return the model's usual time for a query in seconds, some of the queries with their labels,
    the model's classes, and the share of the commonest; None if it gives no classes."""
    options = ServeOptions(port=0, deadline=DEADLINE, instances=1, policy=PolicyChoice("none"))
    times, outputs = [], []
    imitated = bundle.manifest.imitated_output
    async with Server(bundle, options) as server:
        for number in range(max(30, min(DRAWN, rows_in(queries)))):
            row = number % rows_in(queries)
            began = time.monotonic()
            answer = await server.predict(take(queries, slice(row, row + 1)))
            times.append(time.monotonic() - began)
            if imitated is not None:
                outputs.append(answer.outputs[imitated.name])
            if number >= 29 and sum(times) > LABELLED:
                break
    queries = take(queries, slice(len(times)))
    try:
        metric = metric_for(bundle, None)
    except UserError:  # of no fixed shape
        return median(times), queries, None
    if METRICS[metric].kind != "classes":
        return median(times), queries, None
    classes = np.concatenate(outputs).argmax(axis=1)[: rows_in(queries)]
    common = float(np.bincount(classes).max() / len(classes))
    return median(times), {**queries, LABELS: classes}, common


def _slowed(bundle: Bundle, usual: float, slowed: float) -> FaultPlan:
    """Return a plan by which the model takes `slowed` seconds, and stand-ins as much longer."""
    if slowed <= usual:
        return FaultPlan()
    times, least = bundle.manifest.inference_times, {DEPLOYED: Constant(slowed)}
    for role in bundle.manifest.models:
        own = None if times is None else times.backup if role == BACKUP else times.parity
        if role != DEPLOYED:
            least[role] = Constant(slowed * (own / times.deployed if times and own else 1.0))
    return FaultPlan(service_times=dict[str, Distribution](least))


@dataclass(frozen=True)
class _Rehearsed:
    """A bundle, and the instances that run it: a query takes `slowed` seconds as by the plan."""

    bundle: Bundle
    instances: int
    slowed: float
    plan: FaultPlan
    common: float | None

    async def with_instances(
        self, stack: AsyncExitStack, policy: PolicyChoice
    ) -> tuple[Server, Callable[[], None]]:
        """Start a server, and return it, and a function that stops an instance now and then."""
        # As in a long garbage collection.
        length = Constant(max(0.1, 10 * self.slowed))
        pauses = Pauses(max(0.2, 20 * self.slowed), length, workers=(0,))
        server = await self._serve(stack, policy, self.instances)
        plan = structs.replace(self.plan, pauses=pauses)
        return server, partial(server.deployment.engine.inject_faults, plan)

    async def in_front_of_a_fleet(
        self, stack: AsyncExitStack, policy: PolicyChoice
    ) -> tuple[Server, Callable[[], None], Callable[[], Awaitable[float | None]]]:
        """Start servers of an instance each, and one in front of them; return that, a function
        that stops the others, and one that starts one again and returns the seconds until it is in
        use."""
        alone = PolicyChoice("none")
        fleet = [await self._serve(stack, alone, 1) for _ in range(self.instances)]
        urls = [each.url for each in fleet]
        engine = EngineChoice("remote", {"deployed": ",".join(urls)})
        options = ServeOptions(port=0, deadline=DEADLINE, policy=policy, engine=engine)
        server = await stack.enter_async_context(Server(self.bundle, options))
        stopping: list[asyncio.Future[None]] = []

        def stop() -> None:
            stopping.extend(asyncio.ensure_future(each.stop()) for each in fleet)

        async def restart() -> float | None:
            await asyncio.gather(*stopping)
            await self._serve(stack, alone, 1, port=urlsplit(urls[0]).port or 0)
            began = time.monotonic()
            while not server.deployment.frontend.instances_up()[DEPLOYED]:
                if time.monotonic() > began + RECOVERS_WITHIN:
                    return None
                await asyncio.sleep(0.01)
            return time.monotonic() - began

        return server, stop, restart

    async def _serve(
        self, stack: AsyncExitStack, policy: PolicyChoice, instances: int, port: int = 0
    ) -> Server:
        options = ServeOptions(
            port=port, deadline=DEADLINE, instances=instances, policy=policy, faults=self.plan
        )
        server = await stack.enter_async_context(Server(self.bundle, options))
        server.deployment.begin_faults()
        return server

    async def run(
        self,
        load: LoadSpec,
        policy: PolicyChoice,
        server: Server,
        fail: Callable[[], None],
        restart: Callable[[], Awaitable[float | None]] | None = None,
    ) -> Run:
        """Offer the load; the fault begins with the first counted query. Then, `restart`."""
        before = []

        def copies() -> int:
            labels = {"kind": COPY, "fate": ANSWERED}
            registry = server.deployment.frontend.metrics.registry
            return int(registry.get_sample_value("parm_redundant_tasks_total", labels) or 0)

        def begin() -> None:
            before.append(copies())
            fail()

        load = replace(load, url=server.url)
        report = report_of(load, await offer_load(load, begin))
        given = copies() - before[0]
        recovered = None if restart is None else await restart()
        return Run(policy.name, report, given, self.common, recovered)
