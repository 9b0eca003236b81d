"""A rehearsal of a failure: `rehearse` serves a bundle with an instance that stops now and then.

The same queries meet the same pauses twice: once with the model alone on all instances, once with
the bundle's stand-ins. Everything is real, and on this machine.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import uvloop
from rich import box
from rich.console import RenderableType
from rich.table import Table

from parity_models.bundle.bundle import Bundle, open_bundle
from parity_models.errors import UserError, spell
from parity_models.evaluation.judging import GivenInputs, load_queries
from parity_models.load import LoadSpec, offer_load
from parity_models.load.result import LoadReport, report_of
from parity_models.printed import Printed
from parity_models.roles import SOURCES
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models.serving.deployment import default_policy, stand_ins_of
from parity_models.serving.server import ServeOptions, Server
from parity_models.simulation.emulation import Constant, FaultPlan, Pauses
from parity_models.tensors.queries import rows_in
from parity_models.tensors.signature import Batch

CALM, LEARNED = 0.4, 150
"""The share of each run before the fault, and the fewest queries, from which the policy learns."""

MAX_RATE = 200.0
"""The most queries per second: this machine runs both the load and the servers."""

LOADED = 0.3
"""The largest offered load, as a share of what the instances can carry."""


@dataclass(frozen=True)
class Rehearsal(Printed):
    """Both runs of a rehearsal, without stand-ins and with those of a `policy`.

    A query usually takes `usual_ms`; `rate` queries are sent a second.
    """

    usual_ms: float
    rate: float
    policy: str
    without: LoadReport
    with_stand_ins: LoadReport

    @property
    def parts(self) -> Sequence[RenderableType]:
        """A table of both runs, and a sentence on the stand-ins."""
        title = (
            f"an instance stops now and then; {self.rate:.0f} queries per second of "
            f"{self.usual_ms:.1f} ms each; times in ms"
        )
        table = Table(box=box.SIMPLE_HEAD, padding=0, title=title, title_justify="left")
        table.add_column("policy", overflow="fold")
        for heading in ("p50", "p99", "longest", *SOURCES, "failed"):
            table.add_column(heading, justify="right", no_wrap=True)
        helped = self.with_stand_ins
        for policy, run in ((EqualResources.name, self.without), (self.policy, helped)):
            assert run.latency is not None
            ms = run.latency
            table.add_row(
                policy,
                *(f"{each:.1f}" for each in (ms.p50_ms, ms.p99_ms, ms.max_ms)),
                *(f"{run.came_from(source):,}" for source in SOURCES),
                f"{run.queries - run.answered:,}",
            )
        stood_in = sum(helped.came_from(each) for each in SOURCES if each.stands_in)
        said = f"{stood_in:,} of {helped.answered:,} answers were a stand-in's."
        if not stood_in:
            said = (
                "The stand-in answered nothing: no query was late enough, a copy was as good, or "
                f"the stand-in was not sure; give queries like yours with {spell('inputs')}."
            )
        return [table, said]


def rehearse(
    bundle: Bundle | Path | str,
    inputs: GivenInputs | None = None,
    /,
    *,
    instances: int = 4,
    seconds: float = 4.0,
    on_run: Callable[[str], None] = lambda text: None,
) -> Rehearsal:
    """Serve a bundle with an instance that stops now and then, with stand-ins and without.

    The load leaves the instances idle most of the time. A run takes longer than `seconds` if the
    policy would see fewer than 150 queries before the fault.

    Args:
        bundle: A bundle with a stand-in, or its folder.
        inputs: Queries: a file, an array (n, *query_shape), or an array for each input by name. By
            default random ones; stand-ins may not be confident about these.
        instances: The instances of each run.
        seconds: The duration of each run.
        on_run: Called with a description of each run before it starts.

    Returns:
        The answers of both runs during the pauses. It prints as a table.

    Raises:
        UserError: For a bundle without a stand-in, or if no query is answered.
        DataError: For queries that do not fit.
        ServingError: If a server cannot start.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if not stand_ins_of(opened):
        raise UserError(
            f"{opened.path} has no stand-in to see at work; find one with: parm protect"
        )
    if inputs is None:
        queries = opened.manifest.deployed.signature.largest.input
        batch: Batch = queries.draw(np.random.default_rng(0), 64)
    else:
        batch = load_queries(inputs, opened)
    coroutine = _rehearse(opened, batch, instances, seconds, on_run)
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
    on_run: Callable[[str], None],
) -> Rehearsal:
    options = ServeOptions(port=0, deadline=5.0, instances=1, policy=PolicyChoice("none"))
    async with Server(bundle, options) as server:
        times = []
        for number in range(30):
            row = number % rows_in(queries)
            began = time.monotonic()
            await server.predict({name: each[row : row + 1] for name, each in queries.items()})
            times.append(time.monotonic() - began)
    usual = median(times)
    rate = min(MAX_RATE, LOADED * instances / usual)
    calm, faulty = max(CALM * seconds, LEARNED / rate), (1 - CALM) * seconds
    # As in a long garbage collection.
    pauses = Pauses(max(0.2, 20 * usual), Constant(max(0.1, 10 * usual)), workers=(0,))
    options = replace(options, instances=instances, faults=FaultPlan(pauses=pauses))
    runs = []
    with TemporaryDirectory() as folder:
        inputs = f"{folder}/inputs.npz"
        texts = {name: each.astype(str) for name, each in queries.items() if each.dtype.hasobject}
        np.savez(inputs, allow_pickle=False, **{**queries, **texts})
        for policy in (EqualResources.name, default_policy(bundle)):
            on_run(f"{policy}: {calm + faulty:.0f} s, {rate:.0f} queries/s")
            tried = replace(options, policy=PolicyChoice(policy))
            async with Server(bundle, tried) as server:
                load = LoadSpec(
                    url=server.url,
                    binary=True,
                    inputs=inputs,
                    rate=rate,
                    warm_up=round(rate * calm),
                    queries=max(1, round(rate * faulty)),
                )
                result = await offer_load(load, server.deployment.begin_faults)
            runs.append(report_of(load, result))
            if not runs[-1].answered:
                raise UserError(f"no query was answered with the policy {policy}")
    return Rehearsal(1e3 * usual, rate, policy, *runs)
