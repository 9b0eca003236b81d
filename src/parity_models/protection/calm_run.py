"""What serving takes besides the model: a calm run of a server on this machine.

Models are timed in a loop, which keeps their caches warm and a core to itself. An instance waits
between its units, and shares the cores with the others, the server and its clients; and answers
come by HTTP. So a server runs the model under part of the user's load, with nothing that slows it.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import numpy as np

from parity_models.emulation import LogNormal
from parity_models.errors import LoadError, ParityModelsError
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.served import Computed, served
from parity_models.models.bundle import Bundle
from parity_models.models.signature import Sizes
from parity_models.protection.scene import SPREAD
from parity_models.roles import DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources, StandIns
from parity_models.serving.server import ServeOptions
from parity_models.simulation import Cores, Simulation, simulate
from parity_models.simulation.overheads import SHARES, Observed, Overheads

INSTANCES = 2
"""For each core that is here, at most."""

COMPUTING = 0.25
"""The share of the cores that the model, the server and its clients take, about: more would be
contention."""

SERVING = 0.002
"""Seconds that server and clients may compute for a query."""

FEWEST = 200
"""Queries of which the tail says something; ..."""

WARM_UP = 0.1
"""... so many more, as a share, come first and do not count."""

ROWS = 64
"""Different queries, over and over."""

OVERLOADED = 10.0
"""A median latency of so many times a unit with what serving takes is that of a queue."""

TRIES, LOWER = 3, 4.0
"""Calm runs at most, each at the rate of the one before divided by LOWER."""


class ServingOverheads(msgspec.Struct, frozen=True):
    """What serving takes besides the model, in ms, as in `Overheads`; `queries` were asked.

    Where all instances fit on this machine, they share so many `cores` with server and clients; 0
    where they do not: then the time that an instance is held includes waiting for a core here.
    """

    held: float
    outside: tuple[float, ...]
    queries: int
    serving: float = 0.0
    unseen: float = 0.0
    unit: float = 0.0
    cores: int = 0

    @property
    def shared(self) -> Cores | None:
        """The cores, if instances share them."""
        if not self.cores:
            return None
        overheads = Overheads(self.held, self.outside, self.serving, self.unseen, self.unit)
        return overheads.cores(self.cores)

    def __str__(self) -> str:
        p50, p99 = np.interp((0.5, 0.99), SHARES, self.outside)
        said = (
            f"with what a calm server took here besides the model, of {self.queries:,} queries: "
            f"{self.held:.2f} ms on an instance, {p50:.2f} elsewhere ({p99:.2f} at p99)"
        )
        if not self.cores:
            return said
        return (
            f"{said}; and on {self.cores} cores that all share, {self.serving + self.unseen:.2f} "
            f"ms for a query in server and client, {self.unit:.2f} for a unit in a worker"
        )


class _Calm(NamedTuple):
    """A calm run: its latencies, and how long workers, and server and clients, computed for each
    of its `queries`, in ms; `failed` had no answer."""

    took: Observed
    workers_ms: float
    serving_ms: float
    queries: int
    failed: int

    def overloaded(self, ms: float) -> bool:
        """Whether queries queued or failed, where a unit takes `ms`."""
        return self.failed > 0 or self.took.p50_ms > OVERLOADED * (ms + 1e3 * SERVING)


def calm_rate(wanted: float, instances: int, unit: float) -> tuple[float, int]:
    """Return queries per second, and how many instances run them here.

    The load wanted is `wanted` on so many instances, and a unit takes `unit` seconds.
    """
    cores = len(os.sched_getaffinity(0))
    here = min(instances, INSTANCES * cores)
    return min(wanted * here / instances, COMPUTING * cores / (unit + SERVING)), here


def measure_serving(
    deployed: Bundle,
    sizes: Sizes,
    ms: float,
    wanted: float,
    instances: int,
    seconds: float,
    say: Callable[[str], None],
) -> ServingOverheads | None:
    """Serve the model of `deployed`, which takes `ms` in a loop, for some `seconds`.

    The load is `wanted` queries per second on so many `instances`, as far as this machine carries
    that: where queries queue or fail, the rate is lowered, and it is measured anew. Queries have
    these `sizes` along dynamic axes. None, and why is said, where it could not be served here; None
    where the time is too short to say anything of a tail.
    """
    rate, here = calm_rate(wanted, instances, ms / 1e3)
    with TemporaryDirectory(prefix="parm-calm-run-") as folder:
        data = Path(folder, "queries.npz")
        kind = deployed.manifest.deployed.signature.kind(sizes)
        arrays: dict[str, Any] = kind.input.draw(np.random.default_rng(0), ROWS)
        np.savez(data, **arrays)
        for _ in range(TRIES):
            count = int(rate * seconds)
            if count < FEWEST:
                return None
            load = LoadSpec(
                model=deployed.manifest.name,
                binary=True,
                inputs=str(data),
                rate=rate,
                queries=count,
                warm_up=int(WARM_UP * count),
            )
            try:
                calm = _apart(_served(deployed.path, here, load))
            except ParityModelsError as error:
                say(f"the model could not be served here, to measure what that takes: {error}")
                return None
            if not calm.overloaded(ms):
                return _overheads(calm, ms, load, here, shared=here == instances)
            rate /= LOWER
    say(
        f"a server was overloaded here even by {LOWER * rate:.1f} queries/s ({calm.failed} of "
        f"{calm.failed + calm.queries} failed), so simulations are without what serving takes"
    )
    return None


def _apart(run: Coroutine[Any, Any, _Calm]) -> _Calm:
    """In a thread, as this one may have an event loop that runs."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, run).result()


async def _served(bundle: Path, instances: int, load: LoadSpec) -> _Calm:
    options = ServeOptions(
        policy=PolicyChoice(EqualResources.name),
        instances=instances,
        port=0,
        max_batch=1,
    )
    async with served(bundle, options) as server:
        before = await server.busy_seconds()
        computed: list[Computed] = []

        def begin() -> None:
            computed.append(Computed.until_now(server.pid))

        there = replace(load, url=server.url)
        result = await offer_load_from_own_process(there, begin)
        took = Computed.until_now(server.pid).since(*computed)
        busy = await server.busy_seconds() - before
    answered = result.answered
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}")
    ms = 1e3 * result.latency[answered]
    each = 1e3 / len(load.due)
    quantiles = tuple(np.quantile(ms, SHARES).tolist())
    real = Observed(float(np.median(ms)), each * busy, quantiles)
    count = int(answered.sum())
    return _Calm(real, each * took.workers, each * took.serving, count, len(answered) - count)


def _overheads(
    calm: _Calm, ms: float, load: LoadSpec, instances: int, *, shared: bool
) -> ServingOverheads:
    """Return what the calm run took besides a model that runs for `ms`."""
    if not shared:
        outside = np.array(calm.took.quantiles_ms) - calm.took.busy_ms
        held = max(0.0, calm.took.busy_ms - ms)
        return ServingOverheads(held, tuple(np.maximum(0.0, outside).tolist()), calm.queries)
    cores = len(os.sched_getaffinity(0))

    def simulated(known: Overheads) -> Observed:
        simulation = Simulation(
            load.due,
            instances,
            0,
            {DEPLOYED: LogNormal(ms / 1e3, SPREAD)},
            cores=known.cores(cores),
            overhead=known.held_ms / 1e3,
        )
        result = simulate(simulation, *PolicyChoice(EqualResources.name).build(StandIns()))
        took = 1e3 * result.latencies[~np.isnan(result.latencies)]
        busy = 1e3 * sum(result.busy.values()) / len(result.latencies)
        return Observed(float(np.median(took)), busy, tuple(np.quantile(took, SHARES).tolist()))

    known = Overheads.of_calm_run(calm.took, calm.workers_ms - ms, calm.serving_ms, simulated)
    return ServingOverheads(
        known.held_ms,
        known.outside_ms,
        calm.queries,
        known.serving_ms,
        known.unseen_ms,
        known.unit_ms,
        cores,
    )
