"""A frontend over an engine whose instances do nothing until the test says so."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity_models.codes import Code, CodeSpec
from parity_models.roles import Source
from parity_models.scheduling.policies import Parity, Policy
from parity_models.scheduling.work import SchedulerConfig
from parity_models.serving.engine import Engine, EngineListener
from parity_models.serving.frontend import Frontend, Golden
from parity_models.serving.metrics import Metrics
from parity_models.serving.models import Result
from parity_models.serving.stand_ins import StandInOutputs
from parity_models.simulation.emulation import FaultPlan
from parity_models.tensors.signature import Signature, TensorSpec
from parity_models.trust.evidence import EvidenceStore
from parity_models.trust.gates import OutputGate

WEIGHTS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
OUTPUT = TensorSpec("output", "FP32", (3,))
SIGNATURE = Signature.of(TensorSpec("input", "FP32", (4,)), OUTPUT)
CODE = Code(CodeSpec("sum", "subtraction", 2), (6,), (3,))


@dataclass
class Unit:
    id: int
    instance: str
    role: str
    rows: Sequence[NDArray[Any]]


class Puppet(Engine):
    """An engine whose instances do nothing until the test says so. Every model is linear."""

    name = "puppet"
    tolerance = 1e-5

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.log: list[tuple[str, str]] = []
        self.stopped = False
        self.broken = False

    async def start(self, roles: Sequence[frozenset[str]], listener: EngineListener) -> None:
        self.listener = listener
        self.roles = {str(number): each for number, each in enumerate(roles)}
        for instance, each in self.roles.items():
            listener.instance_joined(instance, each)

    def run(self, instance: str, unit: int, role: str, rows: Sequence[NDArray[Any]]) -> None:
        if self.broken:
            raise RuntimeError("the engine is broken")
        self.units.append(Unit(unit, instance, role, rows))
        self.log.append((instance, role))

    def cancel(self, instance: str, unit: int) -> None:
        self.log.append((instance, "cancel"))

    def recycle(self, instance: str, why: str) -> None:
        self.log.append((instance, "recycle"))
        self.lose(instance, f"{instance}'")

    def running(self) -> dict[str, int | None]:
        return dict.fromkeys(self.roles) | {unit.instance: unit.id for unit in self.units}

    async def stop(self) -> None:
        self.stopped = True

    def finish(self, unit: Unit, outputs: NDArray[Any] | None = None) -> None:
        """Finish a unit, with other outputs than the right ones if they are given."""
        self.units.remove(unit)
        right = np.stack(unit.rows) @ WEIGHTS
        self.listener.unit_finished(unit.id, right if outputs is None else outputs)

    def finish_all(self, role: str | None = None) -> None:
        """Finish what is here, and what comes thereby; or only the units that have this role."""
        while units := [unit for unit in self.units if role in (None, unit.role)]:
            self.finish(units[0])

    async def finish_until(self, request: asyncio.Task[Result]) -> None:
        """Finish the oldest unit, time and again, until the request is answered."""
        while not request.done():
            self.finish(self.units[0])
            await settle()

    def fail(self, unit: Unit, detail: str) -> None:
        self.units.remove(unit)
        self.listener.unit_failed(unit.id, detail)

    def join(self, instance: str, roles: frozenset[str], node: str | None = None) -> None:
        self.roles[instance] = roles
        self.listener.instance_joined(instance, roles, node)

    def leave(self, instance: str) -> frozenset[str]:
        self.units = [unit for unit in self.units if unit.instance != instance]
        roles = self.roles.pop(instance)
        self.listener.instance_left(instance, "killed")
        return roles

    def lose(self, instance: str, replacement: str) -> None:
        self.join(replacement, self.leave(instance))


def frontend_over(
    engine: Engine,
    policy: Policy,
    gate: OutputGate | None = None,
    store: EvidenceStore | None = None,
    faults: FaultPlan | None = None,
    **config: Any,
) -> Frontend:
    """A frontend that has not been started."""
    code, metrics = CODE if isinstance(policy, Parity) else None, Metrics()
    of_scheduler = SchedulerConfig(**config)
    stand_ins = StandInOutputs(
        code,
        gate or OutputGate(),
        metrics,
        differ=policy.differ,
        faults=faults or FaultPlan(),
        one_in=of_scheduler.compare_one_in,
        store=store,
    )
    return Frontend(engine, policy, of_scheduler, SIGNATURE, code, metrics, stand_ins)


@asynccontextmanager
async def serving(
    policy: Policy,
    instances: int = 2,
    extra_instances: int = 1,
    *,
    gate: OutputGate | None = None,
    store: EvidenceStore | None = None,
    faults: FaultPlan | None = None,
    golden: Mapping[str, Golden] | None = None,
    repairs: int = 0,
    **config: Any,
) -> AsyncIterator[tuple[Frontend, Puppet]]:
    """A frontend over a puppet. Scheduler and engine may differ as often as `repairs` says."""
    engine = Puppet()
    frontend = frontend_over(engine, policy, gate, store, faults, **config)
    starting = asyncio.create_task(frontend.start(policy.roles(instances, extra_instances), golden))
    while not (starting.done() or engine.units):
        await asyncio.sleep(0)
    yield frontend, engine
    await starting
    async with asyncio.timeout(120):
        drained = asyncio.create_task(frontend.drain())
        while not drained.done():
            await asyncio.sleep(0)
            for unit in list(engine.units):
                engine.finish(unit)
        frontend.check_engine()
        frontend.check_engine()
        await frontend.stop()
    assert engine.stopped
    assert metric(frontend, "parm_repairs_total") == repairs


def metric(frontend: Frontend, name: str, **labels: str) -> float:
    """Return the value of a metric of the server."""
    return frontend.metrics.registry.get_sample_value(name, labels) or 0.0


def queries(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32)


async def asked(infer: Awaitable[Result]) -> asyncio.Task[Result]:
    """The request as a task, after its units have started."""
    task = asyncio.ensure_future(infer)
    for _ in range(2):
        await asyncio.sleep(0)
    assert isinstance(task, asyncio.Task)
    return task


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def sources(
    frontend: Frontend, engine: Puppet, rows: NDArray[np.float32] | None = None
) -> list[Source]:
    """Those of the answers to a group, one of whose predictions comes after its parity output."""
    request = await asked(frontend.infer(queries(2) if rows is None else rows))
    late, other, parity = engine.units
    engine.finish(other)
    engine.finish(parity)
    await settle()
    engine.finish(late)
    return list((await request).sources)
