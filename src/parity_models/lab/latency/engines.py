"""One experiment on several engines: the same trials, served by each."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum

from parity_models.lab.latency.served import Served, served
from parity_models.lab.latency.upstreams import emulated_fleet
from parity_models.models.bundle import Bundle
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan


class EngineName(StrEnum):
    """What runs the instances of a real trial."""

    LOCAL = "local"
    """Worker processes."""
    REMOTE = "remote"
    """Servers of the Open Inference Protocol; here with emulated accelerators, in one process."""
    RAY = "ray"
    """Replicas on Ray Serve; here on a cluster of this machine alone."""


@asynccontextmanager
async def served_on(
    engine: EngineName, bundle: Bundle, options: ServeOptions, prefix: Sequence[str] = ()
) -> AsyncIterator[Served]:
    """Serve `bundle` with the instances of `options` on an engine, with their faults; `prefix` as
    of `served`."""
    if engine is EngineName.LOCAL:
        async with served(bundle.path, options, prefix) as server:
            yield server
    elif engine is EngineName.REMOTE:
        works = Plan(bundle, options).works
        async with emulated_fleet(bundle.path, works, options.faults) as (fleet, instances):
            front = replace(options, faults=None, fleet=fleet)
            async with served(bundle.path, front, prefix) as server:
                yield replace(server, instances=instances)
    else:
        # Imported there alone: it needs Ray.
        async with served(
            bundle.path, options, prefix, "parity_models.lab.latency.on_ray"
        ) as server:
            yield server
