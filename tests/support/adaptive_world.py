"""Worlds under the adaptive policy, which knows how long units take."""

import scheduling_world
from estimates import run_times
from parity_models.scheduling import BACKUP, parity_role
from parity_models.scheduling.dispatch import Dispatch
from parity_models.scheduling.policies import Adaptive, StandIns
from scheduling_world import World, code

PARITY = parity_role(0)
CODE, BACKUPS, BOTH = StandIns(code()), StandIns(backups=(BACKUP,)), StandIns(code(), (BACKUP,))

SOME_SLOW = [(1.0, True)] * 90 + [(9.0, True)] * 10
"""Most units take a second, one in ten nine seconds."""


def world_of(
    instances: int = 9,
    stand_ins: StandIns = CODE,
    units: list[tuple[float, bool]] = SOME_SLOW,
    dispatch: Dispatch | None = None,
) -> World:
    """Idle instances, and a policy that has seen these units: how long they ran, to their end?"""
    policy = Adaptive(stand_ins, run_times=run_times(*units))
    names = map(str, range(instances))
    return scheduling_world.world_of(names, policy, code=code(), dispatch=dispatch)


def runs(world: World) -> list[str]:
    return [run.role for run in world.running.values()]


def answer_some(world: World, count: int = 4) -> None:
    """So many queries are answered soon by the model, for groups to be filled up with."""
    world.arrive(count)
    while world.running:
        world.finish(min(world.running))
