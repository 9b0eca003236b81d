"""A calm run of a server on this machine: the overheads of serving besides the model.

Models are timed in a loop, which keeps their caches warm and a core to itself. An instance waits
between its units and shares the cores with the others, the server and its clients; and answers
travel by HTTP. So a server runs the model under part of the user's load, with nothing that slows
it down.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from parity_models.errors import LoadError, ParityModelsError
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.served import served
from parity_models.models.bundle import Bundle
from parity_models.models.signature import Sizes
from parity_models.protection.rehearse import run_apart
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models.serving.server import ServeOptions

PER_CORE = 2
"""The most instances for each core of this machine."""

COMPUTING = 0.25
"""The share of the cores that the model, the server and its clients take: more is contention."""

SERVING = 0.002
"""Seconds that server and clients may compute for a query."""

FEWEST, WARM_UP = 200, 0.1
"""Queries that say something of the tail, and the share of further ones that come first."""

QUANTILES = 201
"""Quantiles of the time outside of queue and instance, equally spaced."""

ROWS = 64
"""Different queries, repeated."""

OVERLOADED = 10.0
"""If the median latency is this many times the time of a unit, queries have queued."""

TRIES, LOWER = 3, 4.0
"""The most calm runs, each at the rate of the one before divided by LOWER."""


@dataclass(frozen=True)
class ServingOverheads:
    """The overheads in ms, measured in a calm run that answered `queries`.

    A unit holds its instance for `held_ms` longer than the model runs, including the wait for a
    core. `outside_ms` are equally spaced quantiles of the rest of a query's latency. `failed` is
    the number of queries without an answer.
    """

    held_ms: float
    outside_ms: tuple[float, ...]
    queries: int
    failed: int = 0

    def overloaded(self, ms: float) -> bool:
        """Return whether queries queued or failed, where a unit takes `ms`."""
        latency = ms + self.held_ms + float(np.quantile(self.outside_ms, 0.5))
        return self.failed > 0 or latency > OVERLOADED * (ms + 1e3 * SERVING)

    def __str__(self) -> str:
        p50, p99 = np.quantile(self.outside_ms, (0.5, 0.99))
        return (
            f"with the overheads of a calm server here, over {self.queries:,} queries: "
            f"{self.held_ms:.2f} ms on an instance, {p50:.2f} elsewhere ({p99:.2f} at p99)"
        )


def calm_rate(wanted: float, instances: int, unit: float) -> tuple[float, int]:
    """Return queries per second, and the number of instances that serve them here.

    The user's load is `wanted` on `instances`; a unit takes `unit` seconds.
    """
    cores = len(os.sched_getaffinity(0))
    here = min(instances, PER_CORE * cores)
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
    """Serve a model for some seconds, at a load that this machine can carry.

    If queries queue or fail, the run is repeated at a lower rate, so that an overloaded server is
    never measured.

    Args:
        deployed: The bundle with the model.
        sizes: The sizes of queries along dynamic axes.
        ms: The milliseconds that the model takes in a loop.
        wanted: The user's load in queries per second, on all `instances`.
        instances: The user's instances.
        seconds: The duration of a run.
        say: Called with the reason where the model cannot be served here.

    Returns:
        The overheads; None if they cannot be measured, or there are too few queries for a tail.
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
            run = _serve(deployed.path, here, load, ms)
            try:
                found = run_apart(run)
            except ParityModelsError as error:
                say(f"the model could not be served here, to measure the overheads: {error}")
                return None
            if not found.overloaded(ms):
                return found
            rate /= LOWER
    say(
        f"a server was overloaded here even by {LOWER * rate:.1f} queries/s ({found.failed} of "
        f"{count} failed), so simulations are without the overheads of serving"
    )
    return None


async def _serve(bundle: Path, instances: int, load: LoadSpec, ms: float) -> ServingOverheads:
    options = ServeOptions(
        policy=PolicyChoice(EqualResources.name), instances=instances, port=0, max_batch=1
    )
    async with served(bundle, options) as server:
        began = await server.busy_seconds()
        there = replace(load, url=server.url)
        result = await offer_load_from_own_process(there, lambda: None)
        busy_ms = 1e3 * (await server.busy_seconds() - began) / len(load.due)
    answered = result.answered
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}")
    shares = np.linspace(0, 1, QUANTILES)
    outside = np.quantile(1e3 * result.latency[answered], shares) - busy_ms
    count = int(answered.sum())
    return ServingOverheads(
        max(0.0, busy_ms - ms),
        tuple(np.maximum(0.0, outside).tolist()),
        count,
        len(answered) - count,
    )
