"""Stand-ins are compared with the model: units that come too late, and answered queries."""

from dataclasses import replace
from typing import Any

import pytest

import adaptive_world
import scheduling_world
from parity_models.roles import BACKUP, DEPLOYED, Source, parity_role
from parity_models.scheduling.actions import Compare, Encode, Run
from parity_models.scheduling.policies import (
    Adaptive,
    ApproximateBackup,
    Parity,
    Policy,
    Pool,
    StandIns,
)
from parity_models.scheduling.race import KNOWN
from parity_models.scheduling.work import SchedulerConfig
from scheduling_world import World, code

EVERY = 10.0


def world_of(policy: Policy, instances: int = 2, every: float = EVERY) -> World:
    names = map(str, range(instances))
    return scheduling_world.world_of(names, policy, code=code(), compare_every=every)


def adaptive(*, parity: bool = False, backup: bool = False) -> Policy:
    return Adaptive(StandIns(code() if parity else None, backup), Adaptive.Options(differ=0.0))


def answer(world: World, tenant: str | None = None, *, exact: bool = False) -> int:
    """A query that the model answers at once."""
    (query,) = world.arrive(1, tenant=tenant, exact=exact)
    (instance,) = [each for each, run in world.running.items() if query in run.subjects]
    world.finish(instance)
    assert world.answers[query] is Source.MODEL
    return query


def comparisons(world: World) -> list[str]:
    """The roles that have run for a comparison."""
    runs = {each.unit: each.role for each in world.log if isinstance(each, Run)}
    return [runs[each.unit] for each in world.log if isinstance(each, Compare)]


def test_an_answered_query_is_run_on_the_backup_once_in_a_while() -> None:
    world = world_of(adaptive(backup=True))
    answer(world)
    assert comparisons(world) == []
    world.pass_time(EVERY)
    query = answer(world)
    (run,) = world.running.values()
    assert (run.role, run.subjects) == (BACKUP, (query,))
    assert comparisons(world) == [BACKUP]
    world.finish_running()
    answer(world)
    assert comparisons(world) == [BACKUP]
    world.pass_time(EVERY)
    answer(world)
    assert comparisons(world) == [BACKUP, BACKUP]


def test_for_a_parity_model_a_group_of_answered_queries_is_encoded() -> None:
    world = world_of(adaptive(parity=True))
    answer(world)
    world.pass_time(EVERY)
    members = (answer(world), answer(world))
    (encode,) = [each for each in world.log if isinstance(each, Encode)]
    assert encode.members == members
    assert comparisons(world) == [parity_role(0)]


def test_tenants_are_not_encoded_together_and_exact_queries_not_at_all() -> None:
    world = world_of(adaptive(parity=True))
    answer(world)
    world.pass_time(EVERY)
    answer(world, "one")
    answer(world, "other")
    answer(world, "one", exact=True)
    assert comparisons(world) == []
    answer(world, "one")
    assert comparisons(world) == [parity_role(0)]


def test_stand_ins_take_turns_and_those_that_nobody_runs_are_passed_over() -> None:
    world = world_of(adaptive(parity=True, backup=True))
    answer(world)
    for _ in range(4):
        world.pass_time(EVERY)
        answer(world)
        answer(world)
        world.finish_running()
    assert comparisons(world) == [BACKUP, parity_role(0)] * 2
    for instance in list(world.roles):
        world.leave(instance)
    for instance in "xy":
        world.join(instance, frozenset({DEPLOYED, BACKUP}))
    for _ in range(4):
        world.pass_time(EVERY)
        answer(world)
        answer(world)
        world.finish_running()
    assert comparisons(world)[4:] == [BACKUP] * 4


ONE_IN = 5


def world_that_lets_finish(policy: Policy) -> World:
    instances = scheduling_world.numbered(policy.roles(2, 1))
    return scheduling_world.world_of(instances, policy, code=code(), compare_one_in=ONE_IN)


def parity() -> Policy:
    return Parity(code(), Parity.Options(pool=Pool.DEDICATED))


def compared(world: World, units: int) -> list[int]:
    """Return which of so many units run on after the model's answer; each ends before the next."""
    numbers = []
    for number in range(1, units + 1):
        world.arrive(2)
        for instance in [each for each, run in world.running.items() if run.role == DEPLOYED]:
            world.finish(instance)
        (instance,) = world.running
        if world.running[instance].unit in world.compared:
            numbers.append(number)
        world.finish(instance)
    return numbers


def test_one_parity_unit_in_many_runs_on() -> None:
    assert compared(world_that_lets_finish(parity()), 3 * ONE_IN) == [
        ONE_IN,
        2 * ONE_IN,
        3 * ONE_IN,
    ]


def test_all_do_while_their_gate_is_closed() -> None:
    world = world_that_lets_finish(parity())
    world.do(world.scheduler.gate_turned(world.now, Source.BACKUP, False))
    assert compared(world, ONE_IN - 1) == []
    world.do(world.scheduler.gate_turned(world.now, Source.RECONSTRUCTION, False))
    assert compared(world, 3) == [1, 2, 3]
    world.do(world.scheduler.gate_turned(world.now, Source.RECONSTRUCTION, True))
    assert compared(world, ONE_IN) == [3]


def test_who_comes_alone_does_not_keep_others_from_being_compared_for_ever() -> None:
    world = world_of(adaptive(parity=True))
    answer(world)
    world.pass_time(EVERY)
    answer(world, "alone")
    answer(world, "other")
    world.pass_time(EVERY)
    answer(world, "other")
    answer(world, "other")
    assert comparisons(world) == [parity_role(0)]


# Audits of answers that stand-ins gave


def audited(instances: str = "ab", **config: Any) -> tuple[World, int]:
    """The backup has answered a query, whose original runs if there are two instances."""
    roles = dict.fromkeys(instances, frozenset({DEPLOYED, BACKUP}))
    policy = ApproximateBackup()
    world = scheduling_world.world_of(roles, policy, compare_one_in=1, compare_every=0, **config)
    (query,) = world.arrive(1)
    return world, query


def test_the_model_runs_on_to_be_compared_with_an_answer_of_a_stand_in() -> None:
    world, query = audited()
    world.finish("b")
    assert world.answers == {query: Source.BACKUP}
    assert not world.cancelled
    assert query in world.inputs
    world.finish("a")
    assert world.audited == {query}
    assert not world.inputs


@pytest.mark.parametrize("lose", ["fail", "leave"])
def test_an_audit_ends_with_the_unit_or_the_instance(lose: str) -> None:
    world, _ = audited()
    world.finish("b")
    getattr(world, lose)("a")
    assert not world.running
    assert not world.inputs | world.audited
    assert world.scheduler.size() == 0


def queued_audit(busy: int) -> World:
    """The model is only asked after the backup, and so many queries come meanwhile."""
    world = adaptive_world.world_of(1, adaptive_world.BACKUPS, doubts=[0.0] * KNOWN)
    world.scheduler.config = replace(world.scheduler.config, compare_one_in=1)
    world.arrive(1)
    world.arrive(busy, exact=True)
    world.finish("0")
    assert world.answers == {0: Source.BACKUP}
    return world


def test_a_queued_audit_delays_no_query() -> None:
    world = queued_audit(2)
    for query in (1, 2, 0):
        assert world.running["0"].subjects == (query,)
        world.finish("0")
    assert world.audited == {0}


def test_a_queued_audit_is_given_up_at_the_deadline() -> None:
    world = queued_audit(1)
    world.leave("0")
    world.pass_time(SchedulerConfig().deadline)
    assert world.queued(DEPLOYED) == world.scheduler.size() == 0
    assert not world.inputs | world.audited
