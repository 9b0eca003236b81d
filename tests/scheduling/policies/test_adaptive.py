"""The adaptive policy asks the best stand-in for what is late, when that is worth it."""

import pytest

import scheduling_world
from adaptive_world import (
    BACKUPS,
    BOTH,
    CODE,
    PARITY,
    SOME_SLOW,
    answer_some,
    port_at,
    run_times,
    runs,
    world_of,
)
from parity_models.scheduling import (
    BACKUP,
    DEPLOYED,
    Encode,
    Run,
    Scheduler,
    SchedulerConfig,
    Source,
)
from parity_models.scheduling.policies import Adaptive, Hedging, Policy
from parity_models.scheduling.work import Task, Unit
from scheduling_world import code


def test_nothing_is_sent_while_nothing_is_late() -> None:
    world = world_of(stand_ins=BOTH)
    world.arrive(4)
    world.pass_time(0.99)
    assert runs(world) == [DEPLOYED] * 4
    assert not any(isinstance(action, Encode) for action in world.log)


def test_before_run_times_are_known_each_thing_is_sent_once_the_cheapest_first() -> None:
    world = world_of(stand_ins=BOTH, units=[])
    answer_some(world)
    (query,) = world.arrive(1)
    deadline = SchedulerConfig().deadline
    sent = [DEPLOYED]
    for role in (BACKUP, DEPLOYED):
        world.pass_time(deadline * 0.51)
        deadline *= 0.5
        sent.append(role)
        assert runs(world) == sent
    world.pass_time(deadline * 0.9)
    assert runs(world) == sent, "three run at most"
    world.finish(max(world.running))
    assert query in world.answers


def test_the_backup_is_asked_for_a_late_query_and_answers_it() -> None:
    world = world_of(stand_ins=BACKUPS)
    world.arrive(2)
    world.finish("0")
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED, BACKUP]
    original, backup = world.running
    world.finish(backup)
    assert world.answers == {0: Source.MODEL, 1: Source.BACKUP}
    assert world.cancelled == {world.running[original].unit}


def test_two_that_are_late_share_a_parity_query() -> None:
    world = world_of(stand_ins=CODE)
    world.arrive(2)
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED, DEPLOYED, PARITY]
    world.finish("2")
    assert world.answers == dict.fromkeys((0, 1), Source.RECONSTRUCTION)


def test_a_lone_late_query_is_padded_where_its_parity_query_is_faster_than_a_copy() -> None:
    world = world_of(stand_ins=CODE)
    answer_some(world)
    world.arrive(1)
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED, PARITY]
    (encode,) = [action for action in world.log if isinstance(action, Encode)]
    assert encode.members[0] == 4
    assert encode.members[1] in range(4)


def test_a_lone_late_query_is_copied_where_parity_takes_as_long() -> None:
    policy = Adaptive(CODE, run_times=run_times(*SOME_SLOW))
    world = scheduling_world.world_of("abc", policy, code=code())
    answer_some(world)
    world.pass_time(1.0)
    port = port_at(world.now, policy)
    for _ in range(20):
        unit = Unit(-1, "a", PARITY, [Task(PARITY, 0, "image")], 0.0, took=world.now)
        policy.unit_ended(port, unit, finished=True)
    world.arrive(1)
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED] * 2


def test_an_exact_query_that_is_late_is_copied() -> None:
    world = world_of(stand_ins=BOTH)
    world.arrive(2, exact=True)
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED] * 4


def test_a_query_whose_stand_in_is_refused_is_copied_at_once() -> None:
    for stand_ins, role in ((BACKUPS, BACKUP), (CODE, PARITY)):
        world = world_of(stand_ins=stand_ins)
        answer_some(world)
        world.refuses = lambda query, source: True
        world.arrive(1)
        world.pass_time(1.1)
        assert runs(world) == [DEPLOYED, role]
        world.finish(list(world.running)[1])
        world.pass_time(0.001)
        assert runs(world) == [DEPLOYED] * 2
        assert 4 not in world.answers


def test_what_one_stand_in_is_refused_no_other_answers() -> None:
    world = world_of(stand_ins=BOTH)
    answer_some(world)
    world.arrive(2)
    world.pass_time(1.1)
    world.pass_time(3.0)
    _, _, parity, backup, _ = world.running
    assert runs(world) == [DEPLOYED] * 2 + [PARITY] + [BACKUP] * 2
    (other, refused) = world.members[world.running[parity].subjects[0]]
    assert world.running[backup].subjects == (other,)
    world.wrong = (0,)
    world.finish(parity)
    assert world.answers.get(refused) == Source.RECONSTRUCTION
    assert world.running[backup].unit in world.cancelled
    world.finish(backup)
    assert other not in world.answers


def test_what_shared_a_parity_query_with_a_suspect_is_asked_for_otherwise() -> None:
    world = world_of(4, stand_ins=CODE)
    answer_some(world, 2)
    lost, late = world.arrive(2)
    world.pass_time(0.5)
    world.arrive(2, exact=True)
    world.pass_time(0.6)
    assert world.queued(PARITY) == 1
    (instance,) = (each for each, run in world.running.items() if run.subjects == (lost,))
    world.leave(instance)
    assert world.queued(PARITY) == 0
    for each in [each for each, run in world.running.items() if run.subjects[0] > late]:
        world.finish(each)
    world.pass_time(2.0)
    assert [run.subjects for run in world.running.values()].count((late,)) == 2


def test_what_is_asked_and_is_late_itself_is_asked_again_elsewhere_but_not_for_ever() -> None:
    world = world_of(stand_ins=BACKUPS)
    world.arrive(1)
    for _ in range(30):
        world.pass_time(3.0 if world.now < 90 else 0.1)
        if world.failures:
            break
    asked = [action for action in world.log if isinstance(action, Run)]
    assert len(asked) == 3, "the original, and two more"
    assert len({run.instance for run in asked}) == 3


def test_what_is_sent_for_a_late_query_goes_before_queries_that_wait() -> None:
    world = world_of(2, stand_ins=BACKUPS)
    late, other = world.arrive(2)
    world.pass_time(1.1)
    assert world.queued(BACKUP) == 2
    world.arrive(1)
    (instance,) = (each for each, run in world.running.items() if run.subjects == (other,))
    world.finish(instance)
    assert world.running[instance].role == BACKUP
    assert world.running[instance].subjects == (late,)


def test_a_unit_that_hangs_is_late_though_none_ever_was() -> None:
    world = world_of(stand_ins=CODE, units=[(1.0, True)] * 100)
    world.arrive(1, exact=True)
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED] * 2


def test_a_query_is_answered_though_all_recent_units_were_turned_away() -> None:
    world = world_of(stand_ins=BOTH)
    (query,) = world.arrive(1)
    for _ in range(1100):
        (busy,) = world.running
        world.fail(busy, 0.001)
        world.pass_time(0.002)
    world.pass_time(3.0)
    assert not world.failures
    world.finish(max(world.running))
    assert query in world.answers


def test_no_work_is_added_while_many_wait() -> None:
    world = world_of(2, stand_ins=BACKUPS)
    world.arrive(200)
    world.pass_time(3.0)
    world.finish("0")
    assert world.queued(DEPLOYED) + world.queued(BACKUP) + len(world.running) == 199


@pytest.mark.parametrize("name", ["adaptive", "hedging"])
def test_units_that_took_no_time_do_not_have_queries_looked_at_for_ever(name: str) -> None:
    """A query that waits in the queue is looked at again, after some time."""
    policy: Policy = (
        Adaptive(BOTH, run_times=run_times(*[(1e-12, True)] * 100))
        if name == "adaptive"
        else Hedging(Hedging.Options(hedge_delay=1e-12))
    )
    scheduler = Scheduler(policy, SchedulerConfig())
    scheduler.instance_joined(1e6, "a", frozenset({DEPLOYED, PARITY, BACKUP}))
    scheduler.queries_arrived(1e6, [0, 1], "kind")
    later = scheduler.queries_arrived(1e6 + 1, [2], "kind")
    assert later


def test_nothing_is_kept_of_a_query_that_was_at_risk_on_an_instance_that_left() -> None:
    world = world_of(stand_ins=BACKUPS)
    policy = world.scheduler._policy
    assert isinstance(policy, Adaptive)
    world.scheduler.redundancy_switched(world.now, False)
    (query,) = world.arrive(1)
    world.pass_time(5.0)
    assert policy._unassisted
    world.leave("0")
    assert runs(world) == [DEPLOYED]
    assert policy._fresh
    world.finish(max(world.running))
    assert world.answers == {query: Source.MODEL}
    assert not policy._fresh
    assert not policy._unassisted
