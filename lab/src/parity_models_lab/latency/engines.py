"""One experiment on several engines: the same trials, served by each."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from parity_models.errors import UserError, install
from parity_models.load.served import Served, served
from parity_models.models.bundle import Bundle
from parity_models.registry import is_own
from parity_models.scheduling import BACKUP, DEPLOYED, parity_role
from parity_models.serving.engines import ENGINES, EngineChoice
from parity_models.serving.options import ServeOptions
from parity_models.serving.plan import Plan
from parity_models.serving.ray.ray_engine import RayEngine
from parity_models.serving.remote.fleet import Fleet
from parity_models.serving.remote.remote_engine import RemoteEngine
from parity_models_lab.latency.upstreams import emulated_fleet

WHAT = {
    "local": "worker processes of one server",
    "remote": "servers of the Open Inference Protocol, over REST",
    "ray": "replicas on Ray Serve, on a cluster of this machine alone",
}
"""What the built-in engines are here."""


def check_engine(engine: EngineChoice) -> None:
    """Raise UserError for an engine that cannot run real trials: whose instances can emulate
    nothing, or a built-in one with options, which it is given here."""
    if not is_own(engine.name):
        if engine.options:
            raise UserError(
                f"the engine {engine.name} is set up by the experiment: leave out its options"
            )
    elif not engine.kind.takes_faults:
        raise UserError(
            f"the engine {engine.name} takes no faults, so it can emulate no accelerator: set "
            "takes_faults and define inject_faults (docs/how-to/extend-serving.md)"
        )


def choose_engines(named: Sequence[EngineChoice], *, has_ray: bool) -> dict[str, EngineChoice]:
    """The engines to run an experiment on, by what they are called in the report.

    Those `named`, or all built-in ones that are installed. Raises UserError for Ray where there is
    none, and for engines that cannot run real trials.
    """
    installed = (each for each in ENGINES if each is not RayEngine or has_ray)
    chosen = named or [EngineChoice(each.name) for each in installed]
    if not has_ray and any(each.kind is RayEngine for each in chosen):
        raise UserError(f"there is no Ray here; {install('ray')}, or choose other engines")
    for each in chosen:
        check_engine(each)
    return {str(each): each for each in chosen}


@asynccontextmanager
async def served_on(
    engine: EngineChoice, bundle: Bundle, options: ServeOptions, prefix: Sequence[str] = ()
) -> AsyncIterator[Served]:
    """Serve `bundle` with the instances of `options` on an engine, with their faults; `prefix` as
    of `served`."""
    serve = partial(served, bundle.path, prefix=prefix, allow_code=bundle.allowed)
    if engine.kind is RemoteEngine:
        roles = Plan(bundle, options).roles
        fleet_of = emulated_fleet(bundle.path, roles, options.faults, bundle.allowed)
        async with (
            fleet_of as (fleet, instances),
            serve(replace(options, faults=None, engine=_over(fleet))) as server,
        ):
            yield replace(server, instances=instances)
    elif engine.kind is RayEngine:
        # Imported there alone: it needs Ray.
        async with serve(options, module="parity_models_lab.latency.on_ray") as server:
            yield server
    else:
        async with serve(replace(options, engine=engine)) as server:
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
