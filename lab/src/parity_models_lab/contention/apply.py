"""Contention for a server and its workers, while a context lasts.

    async with contended(plan, 18, bundle) as contention:
        options = replace(options, placements=contention.placements)
        async with served(bundle, options, contention.prefix) as server:
            contention.begin(server.pid)

Kills are part of the server's own fault plan; so are service times, if they are emulated.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import msgspec
import numpy as np

from parity_models.emulation import FaultPlan
from parity_models.errors import ContentionError
from parity_models.load import LoadSpec, offer_load_from_own_process
from parity_models.load.child import Child, child
from parity_models.load.served import served
from parity_models.models.bundle import open_bundle
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import NoRedundancy
from parity_models.serving.engine import Placement
from parity_models.serving.server import ServeOptions
from parity_models_lab.contention.plan import Contention, Tenant
from parity_models_lab.contention.process import Begin, Ready, Spec

LONGEST = 3600.0
"""Seconds for which another tenant's queries come, if the contention does not end before."""


@dataclass(frozen=True)
class Contended:
    """Contention that is set up, and begins on command.

    The server's i-th instance belongs at the i-th of `placements`. `prefix` must come before
    the commands of the server and of its clients: only they reach the workers and the server.
    """

    prefix: tuple[str, ...]
    placements: tuple[Placement, ...]
    _process: Child
    _begin_tenant: Callable[[], None] | None

    def begin(self, server: int) -> None:
        """Let the contention's time begin now, for the server with this process id; once."""
        begin = Begin(time.monotonic(), server)
        self._process.tell(msgspec.json.encode(begin) + b"\n")
        if self._begin_tenant is not None:
            self._begin_tenant()


@asynccontextmanager
async def contended(plan: Contention, workers: int, bundle: Path) -> AsyncIterator[Contended]:
    """Make the contention of `plan` for a server of `bundle` with so many workers.

    The server is to be started, and stopped again, while the context lasts. At its end, however
    it comes, nothing is left. Raises ContentionError if the plan cannot be carried out here.
    """
    spec = msgspec.json.encode(Spec(plan, workers)).decode()
    module = "parity_models_lab.contention.process"
    async with AsyncExitStack() as stack:
        process = await stack.enter_async_context(child((sys.executable, "-m", module, spec)))
        try:
            ready = msgspec.json.decode(process.message, type=Ready)
        except msgspec.DecodeError:
            raise await process.failure(ContentionError) from None
        begin_tenant = None
        if plan.tenant is not None:
            shared = [ready.placements[machine] for machine in plan.shared(workers)]
            begin_tenant = await stack.enter_async_context(
                _tenant(plan.tenant, plan.seed, bundle, shared, ready.prefix)
            )
        yield Contended(ready.prefix, ready.placements, process, begin_tenant)


@asynccontextmanager
async def _tenant(
    plan: Tenant, seed: int, bundle: Path, placements: Sequence[Placement], prefix: Sequence[str]
) -> AsyncIterator[Callable[[], None]]:
    """Serve the bundle to another tenant, whose load begins when the function is called.

    Raises BundleError or ServingError if it cannot be served.
    """
    manifest = open_bundle(bundle).manifest
    options = ServeOptions(
        policy=PolicyChoice(NoRedundancy.name),
        instances=len(placements),
        port=0,
        placements=tuple(placements),
        faults=FaultPlan(seed, plan.service_time),
    )
    loads: list[asyncio.Task[object]] = []
    with NamedTemporaryFile(suffix=".npy") as queries:
        np.save(queries, manifest.deployed.signature.input.zeros(1))
        queries.flush()
        async with served(bundle, options, prefix) as server:
            load = LoadSpec(
                url=server.url,
                model=manifest.name,
                inputs=queries.name,
                rate=plan.rate,
                queries=max(1, int(plan.rate * LONGEST)),
                seed=seed,
            )

            def begin() -> None:
                offering = offer_load_from_own_process(load, server.begin_faults, prefix)
                loads.append(asyncio.create_task(offering))

            try:
                yield begin
            finally:
                for each in loads:
                    each.cancel()
                await asyncio.gather(*loads, return_exceptions=True)
