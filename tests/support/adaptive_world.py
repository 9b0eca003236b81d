"""Worlds under the adaptive policy, which knows how long units take, or is told so by hand."""

from collections.abc import Iterable
from typing import Any

import scheduling_world
from parity_models.roles import BACKUP, parity_role
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.policies import Adaptive, Policy, StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.race import KNOWN
from parity_models.scheduling.run_times import RunTimes
from parity_models.scheduling.work import Unit
from scheduling_world import World, code

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


def teach(policy: Adaptive, doubts: Iterable[float] = (), seconds: float = 0.01) -> None:
    """Stand-ins have run units that took so long; the backup's outputs had these doubts."""
    for role in (BACKUP, PARITY):
        for _ in range(KNOWN):
            unit = Unit(-1, "", role, [], 0.0, took=seconds)
            policy.unit_ended(port_at(0.0, policy), unit, finished=True)
    for doubt in doubts:
        policy.race_rule.output(seconds, doubt)


def port_at(now: float, policy: Policy) -> Port:
    """A port on which nothing has happened, for a policy that is told something by hand."""
    port = Scheduler(policy)
    port.now = now
    return port


def world_of(
    instances: int = 9,
    stand_ins: StandIns = CODE,
    units: list[tuple[float, bool]] = SOME_SLOW,
    dispatch: Dispatch | None = None,
    *,
    doubts: Iterable[float] | None = None,
    **options: Any,
) -> World:
    """Return idle instances, and a policy that has seen these units, as for `run_times`, and
    outputs of quick stand-ins with these `doubts`."""
    policy = Adaptive(stand_ins, Adaptive.Options(**options), runs=run_times(*units))
    if doubts is not None:
        teach(policy, doubts)
    names = map(str, range(instances))
    return scheduling_world.world_of(names, policy, code=code(), dispatch=dispatch, audited=1000)


def runs(world: World) -> list[str]:
    return [run.role for run in world.running.values()]
