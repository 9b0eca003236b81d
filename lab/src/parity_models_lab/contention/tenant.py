"""Another tenant: a deployment of its own, with its own workers and a light load on them.

Run as a program, it is one, as a JSON spec says. It tells `ready`; the course of its queries
begins at the time that it then reads from its standard input, and it ends when that does.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import msgspec
import uvloop

from parity_models.emulation import FaultPlan
from parity_models.errors import ParityModelsError, ServingError
from parity_models.models.bundle import open_bundle
from parity_models.models.signature import TensorSpec
from parity_models.scheduling import DEPLOYED, SchedulerConfig
from parity_models.scheduling.policies import NoRedundancy
from parity_models.serving.engine import Placement
from parity_models.serving.errors import RequestError
from parity_models.serving.frontend import Frontend
from parity_models.serving.local.local_engine import LocalEngine
from parity_models.serving.metrics import Metrics
from parity_models_lab.contention.plan import Tenant

READY = "ready"
STOP_TIMEOUT = 10.0


class _Spec(msgspec.Struct):
    tenant: Tenant
    seed: int
    bundle: str
    placements: tuple[Placement, ...]


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """When the tenant's queries arrive, without end."""
    rng = Random(f"{seed}/tenant")
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


@contextmanager
def tenant(
    plan: Tenant, seed: int, bundle: Path, placements: Sequence[Placement], prefix: Sequence[str]
) -> Iterator[subprocess.Popen[str]]:
    """The tenant's process, by a command that begins with `prefix`, with all its workers up.

    It awaits the time to start on its standard input. Raises ServingError if it does not start.
    """
    spec = msgspec.json.encode(_Spec(plan, seed, str(bundle), tuple(placements)))
    process = subprocess.Popen(
        [*prefix, sys.executable, "-m", __name__, spec.decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        message = process.stdout.readline().strip()
        if message != READY:
            raise ServingError(f"the other tenant did not start: {message or 'it ended'}")
        yield process
    finally:
        try:
            process.communicate(timeout=STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


async def _serve(spec: _Spec) -> None:
    bundle = open_bundle(spec.bundle)
    manifest = bundle.manifest
    models = {DEPLOYED: bundle.pinned(manifest.deployed)}
    engine = LocalEngine(models, placements=spec.placements, allows_faults=True)
    frontend = Frontend(
        engine, NoRedundancy(), SchedulerConfig(), manifest.deployed.signature, None, Metrics()
    )
    await frontend.start([frozenset({DEPLOYED})] * len(spec.placements))
    try:
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        _tell(READY)
        if line := await commands.readline():
            start = float(line)
            engine.inject_faults(FaultPlan(spec.seed, spec.tenant.service_time), start)
            course = arrivals(spec.tenant.rate, spec.seed)
            load = asyncio.create_task(
                _ask(frontend, manifest.deployed.signature.input, course, start)
            )
            await commands.read()
            load.cancel()
    finally:
        await frontend.stop()


async def _ask(
    frontend: Frontend, query: TensorSpec, course: Iterator[float], start: float
) -> None:
    row = query.zeros(1)

    async def ask() -> None:
        with suppress(RequestError):  # one without answers is disturbed, but disturbs no less
            await frontend.infer(row)

    async with asyncio.TaskGroup() as queries:
        for at in course:
            await asyncio.sleep(start + at - time.monotonic())
            queries.create_task(ask())


def main(spec: str) -> int:
    """Be the tenant; tell `ready`, or why not, on standard output."""
    try:
        uvloop.run(_serve(msgspec.json.decode(spec, type=_Spec)))
    except ParityModelsError as error:
        _tell(str(error))
        return 1
    return 0


def _tell(message: str) -> None:
    sys.stdout.write(f"{message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
