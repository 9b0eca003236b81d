"""Worlds under the adaptive policy, which knows how long units take, or is told so by hand."""

from collections.abc import Iterable

import scheduling_world
from parity_models.roles import DEPLOYED, parity_role
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.policies import Adaptive, Policy, StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Task, Unit
from scheduling_world import ORIGINALS, World, code

PARITY = parity_role(0)
CODE, BACKUPS, BOTH = StandIns(code()), StandIns(backup=True), StandIns(code(), True)

SOME_SLOW = [(1.0, True)] * 90 + [(9.0, True)] * 10
"""Most units take a second, one in ten nine seconds."""


def run_times(*units: tuple[float, bool]) -> RunTimes:
    """Return the run times after these units: seconds, and whether they ran to their end."""
    times = RunTimes(every=max(1, len(units)))
    for seconds, finished in units:
        times.add(seconds, finished=finished)
    return times


def ran(
    world: World, policy: Adaptive, seconds: float, *instances: str, role: str = DEPLOYED
) -> None:
    """The policy hears that each of these has run a unit of this role for so long."""
    port = port_at(world.now, policy, world.roles)
    for instance in instances:
        tasks = [Task(role, -1, "image")]
        unit = Unit(-1, instance, role, tasks, world.now - seconds, took=seconds)
        policy.unit_ended(port, unit, finished=True)


def port_at(now: float, policy: Policy, up: Iterable[str] = ()) -> Port:
    """A port on which nothing has happened, for a policy that is told something by hand."""
    dispatch = Dispatch()
    for instance in up:
        dispatch.join(instance, ORIGINALS, None)
    port = Scheduler(policy, dispatch=dispatch)
    port.now = now
    return port


def world_of(
    instances: int = 9,
    stand_ins: StandIns = CODE,
    units: list[tuple[float, bool]] = SOME_SLOW,
    dispatch: Dispatch | None = None,
) -> World:
    """Return idle instances, and a policy that has seen these units, as for `run_times`."""
    policy = Adaptive(stand_ins, run_times=run_times(*units))
    names = map(str, range(instances))
    return scheduling_world.world_of(names, policy, code=code(), dispatch=dispatch)


def runs(world: World) -> list[str]:
    return [run.role for run in world.running.values()]


def answer_some(world: World, count: int = 4) -> None:
    """So many queries are answered soon by the model, for groups to be filled up with."""
    world.arrive(count)
    world.finish_all()
