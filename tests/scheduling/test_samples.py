"""Units of stand-ins that nobody needs any more are cancelled, but for those to be compared."""

import pytest

from parity_models.scheduling import (
    BACKUP,
    DEPLOYED,
    Cancel,
    Compare,
    Parity,
    Policy,
    Scheduler,
    SchedulerConfig,
    Source,
)
from parity_models.scheduling.policies import ApproximateBackup, Pool, Replication
from scheduling_world import World, code

ONE_IN = 5


def world_of(policy: Policy) -> World:
    world = World(Scheduler(policy, SchedulerConfig(compare_one_in=ONE_IN)), code())
    for number, roles in enumerate(policy.roles(2, 1)):
        world.join(f"{number}", roles)
    return world


def parity() -> Policy:
    return Parity(code(), Parity.Options(pool=Pool.DEDICATED))


def answer_by_the_model(world: World, queries: int = 2) -> str:
    """The instance whose unit nobody needs thereby."""
    world.arrive(queries)
    for instance in [each for each, run in world.running.items() if run.role == DEPLOYED]:
        world.finish(instance)
    (instance,) = world.running
    return instance


def compared(world: World, units: int) -> list[int]:
    """Which of so many units that nobody needs run on; all of them end before the next begins."""
    numbers = []
    for number in range(1, units + 1):
        instance = answer_by_the_model(world)
        if world.running[instance].unit in world.compared:
            numbers.append(number)
        world.finish(instance)
    return numbers


def test_one_parity_unit_in_many_runs_on() -> None:
    assert compared(world_of(parity()), 3 * ONE_IN) == [ONE_IN, 2 * ONE_IN, 3 * ONE_IN]


def test_all_do_while_their_gate_is_closed() -> None:
    world = world_of(parity())
    world.do(world.scheduler.gate_turned(world.now, Source.BACKUP, False))
    assert compared(world, ONE_IN - 1) == []
    world.do(world.scheduler.gate_turned(world.now, Source.RECONSTRUCTION, False))
    assert compared(world, 3) == [1, 2, 3]
    world.do(world.scheduler.gate_turned(world.now, Source.RECONSTRUCTION, True))
    assert compared(world, ONE_IN) == [3]


@pytest.mark.parametrize("how", ["finish", "fail", "leave"])
def test_one_at_a_time_until_it_is_over(how: str) -> None:
    policy = ApproximateBackup()
    world = World(Scheduler(policy, SchedulerConfig(compare_one_in=1)))
    for instance in "abc":
        world.join(instance, frozenset({DEPLOYED}))
    for instance in "xyz":
        world.join(instance, frozenset({BACKUP}))
    world.arrive(2)
    for instance in "ab":
        world.finish(instance)
    assert [run.role for run in world.running.values()] == [BACKUP] * 2
    first, second = world.running
    assert world.compared == {world.running[first].unit}
    assert world.cancelled == {world.running[second].unit}
    getattr(world, how)(first)
    world.arrive(1)
    world.finish(next(each for each, run in world.running.items() if run.role == DEPLOYED))
    assert len(world.compared) == 2


def test_copies_are_always_cancelled() -> None:
    policy = Replication(Replication.Options(copies=2))
    world = World(Scheduler(policy, SchedulerConfig(compare_one_in=1)))
    for instance in "ab":
        world.join(instance, frozenset({DEPLOYED}))
    world.arrive(1)
    world.finish("a")
    assert [type(action) for action in world.log if isinstance(action, Cancel | Compare)] == [
        Cancel
    ]
