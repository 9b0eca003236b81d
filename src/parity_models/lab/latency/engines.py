"""One experiment on several engines: the same trials, served by each."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from enum import StrEnum
from functools import partial

from parity_models.lab.latency.served import Served, served
from parity_models.lab.latency.upstreams import emulated_fleet
from parity_models.models.bundle import Bundle
from parity_models.scheduling import BACKUP, DEPLOYED, parity_role
from parity_models.serving.engines import EngineChoice
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan
from parity_models.serving.remote.fleet import Fleet
from parity_models.serving.remote.remote_engine import RemoteEngine


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
    serve = partial(served, bundle.path, prefix=prefix, allow_code=bundle.allowed)
    if engine is EngineName.LOCAL:
        async with serve(options) as server:
            yield server
    elif engine is EngineName.REMOTE:
        roles = Plan(bundle, options).roles
        fleet_of = emulated_fleet(bundle.path, roles, options.faults, bundle.allowed)
        async with (
            fleet_of as (fleet, instances),
            serve(replace(options, faults=None, engine=_over(fleet))) as server,
        ):
            yield replace(server, instances=instances)
    else:
        # Imported there alone: it needs Ray.
        async with serve(options, module="parity_models.lab.latency.on_ray") as server:
            yield server


def _over(fleet: Fleet) -> EngineChoice:
    """The engine over these upstreams, whose models have their usual names there."""
    urls = {
        "deployed": [each.url for each in fleet.upstreams if DEPLOYED in each.roles],
        "parity": [each.url for each in fleet.upstreams if parity_role(0) in each.roles],
        "backup": [each.url for each in fleet.upstreams if BACKUP in each.roles],
    }
    given = {option: ",".join(each) for option, each in urls.items() if each}
    return EngineChoice(RemoteEngine.name, given)
