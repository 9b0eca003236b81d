"""What the deployed model takes where it is served: a calm run of a server on this machine.

Models are timed in a loop, which keeps their caches warm and a core to itself. An instance waits
between its units, and shares the cores with the others, the server and its clients; and answers
come by HTTP. So a server runs the model under part of the user's load, with nothing that slows it.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import numpy as np

from parity_models.errors import LoadError, ParityModelsError
from parity_models.faults import LogNormal
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.computing import Computed
from parity_models.load.served import served
from parity_models.models.bundle import Bundle
from parity_models.models.signature import Sizes
from parity_models.scheduling import DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources, StandIns
from parity_models.serving.server import ServeOptions
from parity_models.simulation import Cores, Simulation, simulate
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.besides import Besides, Took, besides
from parity_models.simulation.course import SHARES, SPREAD

INSTANCES = 2
"""For each core that is here, at most."""

COMPUTING = 0.25
"""The share of the cores that the model takes, at most: more would be contention."""

FEWEST = 200
"""Queries of which the tail says something; ..."""

WARM_UP = 0.1
"""... so many more, as a share, come first and do not count."""

ROWS = 64
"""Different queries, over and over."""


class InPlace(msgspec.Struct, frozen=True):
    """What serving takes besides the model, in ms, as in `Besides`; `queries` were asked.

    Where all instances fit on this machine, they share so many `cores` with server and clients; 0
    where they do not: then what holds an instance includes that it waited for a core here.
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
        besides = Besides(self.held, self.outside, self.serving, self.unseen, self.unit)
        return besides.cores(self.cores)


class _Calm(NamedTuple):
    """A calm run: what `queries` took, and how long workers, and server and clients, computed for
    each, in ms."""

    took: Took
    workers_ms: float
    serving_ms: float
    queries: int


def calm_rate(wanted: float, instances: int, unit: float) -> tuple[float, int]:
    """Queries a second, and how many instances run them here, for a load of `wanted` on so many,
    where a unit takes `unit` seconds."""
    cores = len(os.sched_getaffinity(0))
    here = min(instances, INSTANCES * cores)
    return min(wanted * here / instances, COMPUTING * cores / unit), here


def in_place(
    deployed: Bundle,
    sizes: Sizes,
    ms: float,
    wanted: float,
    instances: int,
    seconds: float,
    say: Callable[[str], None],
) -> InPlace | None:
    """Serve the model of `deployed`, which takes `ms` in a loop, for some `seconds` of a load of
    `wanted` queries a second on so many `instances`, as far as this machine carries that.

    Queries have these `sizes` along dynamic axes. None, and why is said, where it could not be
    served here; None where the time is too short to say anything of a tail.
    """
    rate, here = calm_rate(wanted, instances, ms / 1e3)
    count = int(rate * seconds)
    if count < FEWEST:
        return None
    with TemporaryDirectory(prefix="parm-in-place-") as folder:
        data = Path(folder, "queries.npz")
        kind = deployed.manifest.deployed.signature.kind(sizes)
        arrays: dict[str, Any] = kind.input.draw(np.random.default_rng(0), ROWS)
        np.savez(data, **arrays)
        load = LoadSpec(
            model=deployed.manifest.name,
            data=str(data),
            rate=rate,
            count=count,
            warm_up=int(WARM_UP * count),
        )
        try:
            calm = _apart(_served(deployed.path, here, load))
        except ParityModelsError as error:
            say(f"the model could not be served here, to see what that takes besides: {error}")
            return None
    return _besides(calm, ms, load, here, shared=here == instances)


def _apart(run: Coroutine[Any, Any, _Calm]) -> _Calm:
    """In a thread, as this one may have an event loop that runs."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, run).result()


async def _served(bundle: Path, instances: int, load: LoadSpec) -> _Calm:
    options = ServeOptions(
        policy=PolicyChoice(EqualResources.name),
        instances=instances,
        parity_instances=0,
        port=0,
        max_batch=1,
    )
    async with served(bundle, options) as server:
        before = await server.busy_seconds()
        computed: list[Computed] = []

        def begin() -> None:
            computed.append(Computed.until_now(server.pid))

        there = msgspec.structs.replace(load, url=server.url)
        result = await offer_load_from_own_process(there, begin)
        took = Computed.until_now(server.pid).since(*computed)
        busy = await server.busy_seconds() - before
    answered = result.answered
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}")
    ms = 1e3 * result.latency[answered]
    each = 1e3 / load.requests
    quantiles = tuple(np.quantile(ms, SHARES).tolist())
    real = Took(float(np.median(ms)), each * busy, quantiles)
    return _Calm(real, each * took.workers, each * took.serving, int(answered.sum()))


def _besides(calm: _Calm, ms: float, load: LoadSpec, instances: int, *, shared: bool) -> InPlace:
    """What the calm run took besides a model that runs for `ms`."""
    if not shared:
        outside = np.array(calm.took.quantiles_ms) - calm.took.busy_ms
        held = max(0.0, calm.took.busy_ms - ms)
        return InPlace(held, tuple(np.maximum(0.0, outside).tolist()), calm.queries)
    cores = len(os.sched_getaffinity(0))

    def simulated(known: Besides) -> Took:
        simulation = Simulation(
            poisson_arrivals(load.rate or 1.0, load.requests, load.seed),
            instances,
            0,
            {DEPLOYED: LogNormal(ms / 1e3, SPREAD)},
            cores=known.cores(cores),
            overhead=known.held_ms / 1e3,
        )
        result = simulate(simulation, *PolicyChoice(EqualResources.name).build(StandIns()))
        took = 1e3 * result.latencies[~np.isnan(result.latencies)]
        busy = 1e3 * sum(result.busy.values()) / len(result.latencies)
        return Took(float(np.median(took)), busy, tuple(np.quantile(took, SHARES).tolist()))

    known = besides(calm.took, calm.workers_ms - ms, calm.serving_ms, simulated)
    return InPlace(
        known.held_ms,
        known.outside_ms,
        calm.queries,
        known.serving_ms,
        known.unseen_ms,
        known.unit_ms,
        cores,
    )
