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
from typing import Any

import msgspec
import numpy as np

from parity_models.errors import LoadError, ParityModelsError
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.served import served
from parity_models.models.bundle import Bundle
from parity_models.models.signature import Sizes
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import EqualResources
from parity_models.serving.server import ServeOptions
from parity_models.simulation.course import SHARES

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
    """In ms: how long a unit of one query has an instance `held` besides its run, and quantiles at
    SHARES of what an answer takes `outside` of queue and instance. `queries` were asked."""

    held: float
    outside: tuple[float, ...]
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
        rows = kind.input.draw(np.random.default_rng(0), ROWS)
        arrays: dict[str, Any] = kind.input.split(rows)
        np.savez(data, **arrays)
        load = LoadSpec(
            model=deployed.manifest.name,
            data=str(data),
            rate=rate,
            count=count,
            warm_up=int(WARM_UP * count),
        )
        try:
            return _apart(_served(deployed.path, here, load, ms))
        except ParityModelsError as error:
            say(f"the model could not be served here, to see what that takes besides: {error}")
            return None


def _apart(run: Coroutine[Any, Any, InPlace]) -> InPlace:
    """In a thread, as this one may have an event loop that runs."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, run).result()


async def _served(bundle: Path, instances: int, load: LoadSpec, ms: float) -> InPlace:
    options = ServeOptions(
        policy=PolicyChoice(EqualResources.name),
        instances=instances,
        parity_instances=0,
        port=0,
        max_batch=1,
    )
    async with served(bundle, options) as server:
        before = await server.busy_seconds()
        there = msgspec.structs.replace(load, url=server.url)
        result = await offer_load_from_own_process(there, lambda: None)
        busy = await server.busy_seconds() - before
    answered = result.answered
    if not answered.any():
        raise LoadError(f"no query was answered: {result.errors()}")
    unit = 1e3 * busy / load.requests
    outside = np.quantile(1e3 * result.latency[answered], SHARES) - unit
    return InPlace(
        max(0.0, unit - ms), tuple(np.maximum(0.0, outside).tolist()), int(answered.sum())
    )
