"""Stand-ins are compared with the model: units that come too late, and answered queries."""

from collections.abc import Callable
from dataclasses import replace

import pytest

import adaptive_world
import scheduling_world
from parity_models import Adaptive, ApproximateBackup, Policy
from parity_models.roles import BACKUP, DEPLOYED, Source, parity_role
from parity_models.scheduling.actions import Compare, Encode, Run
from parity_models.scheduling.comparison import MAX_WAIT
from parity_models.scheduling.policies import StandIns
from parity_models.scheduling.race import KNOWN
from parity_models.scheduling.work import SchedulerConfig
from scheduling_world import World, code


def world_of(policy: Policy, instances: int = 2, compare: float = 1.0) -> World:
    names = map(str, range(instances))
    return scheduling_world.world_of(names, policy, code=code(), compare=compare)


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


@pytest.mark.parametrize("compare", [0.0, 0.1, 1.0])
def test_a_share_of_the_answered_queries_is_run_on_the_backup(compare: float) -> None:
    world = world_of(adaptive(backup=True), compare=compare)
    asked = 0
    for _ in range(400):
        query = answer(world)
        asked += len(world.running)
        assert {run.subjects for run in world.running.values()} <= {(query,)}
        world.finish_running()
    assert comparisons(world) == [BACKUP] * asked
    assert asked / 400 == pytest.approx(compare, abs=0.05)
    assert all(not each.late for each in world.log if isinstance(each, Compare))


def test_queries_are_drawn_whatever_the_outcome() -> None:
    """In two worlds whose stand-ins answer otherwise, the same ones are."""
    drawn = []
    refusals: list[Callable[[int, Source], bool]] = [lambda *_: False, lambda *_: True]
    for refuses in refusals:
        world = world_of(adaptive(backup=True), compare=0.3)
        world.refuses = refuses
        for _ in range(50):
            answer(world)
            world.finish_running()
        drawn.append([each.unit for each in world.log if isinstance(each, Compare)])
    assert drawn[0] == drawn[1] != []


def test_queries_for_which_a_stand_in_was_asked_first_are_not_drawn() -> None:
    world = adaptive_world.world_of(2, adaptive_world.BACKUPS, doubts=[0.0] * KNOWN)
    world.scheduler._background._share = 1.0
    world.refuses = lambda query, source: True
    for _ in range(20):
        (query,) = world.arrive(1)
        world.finish_all()
        assert world.answers[query] is Source.MODEL
    assert comparisons(world) == []


def test_while_a_query_waits_none_is_compared() -> None:
    world = world_of(adaptive(backup=True), instances=1)
    world.arrive(3)
    for _ in range(2):
        world.finish("0")
        assert world.running["0"].role == DEPLOYED
    world.finish("0")
    assert comparisons(world) == [BACKUP]


def test_for_a_parity_model_a_group_of_answered_queries_is_encoded() -> None:
    world = world_of(adaptive(parity=True))
    members = (answer(world), answer(world))
    (encode,) = [each for each in world.log if isinstance(each, Encode)]
    assert encode.members == members
    assert comparisons(world) == [parity_role(0)]


def test_tenants_are_not_encoded_together_and_exact_queries_not_at_all() -> None:
    world = world_of(adaptive(parity=True))
    answer(world, "one")
    answer(world, "other")
    answer(world, "one", exact=True)
    assert comparisons(world) == []
    answer(world, "one")
    assert comparisons(world) == [parity_role(0)]


def test_stand_ins_take_turns_and_those_that_nobody_runs_are_passed_over() -> None:
    world = world_of(adaptive(parity=True, backup=True))
    for _ in range(4):
        answer(world)
        world.finish_running()
        answer(world)
        answer(world)
        world.finish_running()
    assert comparisons(world) == [BACKUP, parity_role(0)] * 4
    for instance in list(world.roles):
        world.leave(instance)
    for instance in "xy":
        world.join(instance, frozenset({DEPLOYED, BACKUP}))
    before = len(comparisons(world))
    for _ in range(8):
        answer(world)
        world.finish_running()
    found = comparisons(world)[before:]
    assert set(found) == {BACKUP}
    assert len(found) >= 4


def test_single_queries_do_not_keep_batches_from_being_compared() -> None:
    world = world_of(adaptive(parity=True))
    answer(world, "alone")
    answer(world, "other")
    world.pass_time(MAX_WAIT)
    answer(world, "other")
    answer(world, "other")
    assert comparisons(world) == [parity_role(0)]


# Audits of answers that stand-ins gave


@pytest.mark.parametrize("lose", ["fail", "leave"])
def test_an_audit_ends_with_the_unit_or_the_instance(lose: str) -> None:
    roles = dict.fromkeys("ab", frozenset({DEPLOYED, BACKUP}))
    world = scheduling_world.world_of(roles, ApproximateBackup(), compare_one_in=1, compare=0)
    (query,) = world.arrive(1)
    world.finish("b")
    assert world.answers == {query: Source.BACKUP}
    assert query in world.inputs, "the model runs on, to be compared"
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
    assert world.scheduler.queued(DEPLOYED) == world.scheduler.size() == 0
    assert not world.inputs | world.audited


def test_the_first_answers_are_all_audited_and_later_ones_seldom() -> None:
    """A stand-in that is wrong from the start is found out at once."""
    roles = dict.fromkeys("ab", frozenset({DEPLOYED, BACKUP}))
    world = scheduling_world.world_of(roles, ApproximateBackup(), compare=0, compare_one_in=20)
    audited = []
    for _ in range(2000):
        world.arrive(1)
        (backup,) = [each for each, run in world.running.items() if run.role == BACKUP]
        world.finish(backup)
        world.finish_running()
        audited.append(len(world.audited))
    assert audited[0] == 1
    assert audited[9] >= 7
    assert 180 < audited[-1] < 360
    assert audited[-1] - audited[999] < audited[999]
