"""The adaptive policy asks the best stand-in for what is late, when that is worth it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scheduling_world
from adaptive_world import (
    BACKUPS,
    BOTH,
    CODE,
    PARITY,
    SOME_SLOW,
    answer_some,
    ran,
    run_times,
    runs,
    world_of,
)
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.actions import Encode, Run
from parity_models.scheduling.policies import Adaptive, StandIns
from parity_models.scheduling.policies.risk import FORGOTTEN, URGENCY, Benefit, Choice, StandIn
from parity_models.scheduling.work import SchedulerConfig
from scheduling_world import World, code


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


def test_a_lone_late_query_is_padded_where_parity_is_faster() -> None:
    world = world_of(stand_ins=CODE)
    answer_some(world)
    world.arrive(1)
    world.pass_time(1.1)
    assert runs(world) == [DEPLOYED, PARITY]
    (encode,) = [action for action in world.log if isinstance(action, Encode)]
    assert encode.members[0] == 4
    assert encode.members[1] in range(4)


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


def test_a_late_copy_is_sent_elsewhere_but_not_for_ever() -> None:
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


def test_no_work_is_added_while_many_wait() -> None:
    world = world_of(2, stand_ins=BACKUPS)
    world.arrive(200)
    world.pass_time(3.0)
    world.finish("0")
    assert world.queued(DEPLOYED) + world.queued(BACKUP) + len(world.running) == 199


# Where queries wait, a backup runs in place of the model

WAITED = 0.6
"""Seconds, more than half of a median run time."""


def waiting(world: World) -> World:
    """One query runs, and another waits."""
    world.arrive(2)
    world.pass_time(WAITED)
    return world


def test_a_backup_takes_the_place_of_a_query_that_waits() -> None:
    world = waiting(world_of(1, BACKUPS))
    assert (world.queued(DEPLOYED), world.queued(BACKUP)) == (0, 1)
    world.finish("0")
    assert runs(world) == [BACKUP]
    world.finish("0")
    assert world.answers == {0: Source.MODEL, 1: Source.BACKUP}
    assert not world.running


def test_the_model_runs_it_first_of_all_where_the_answer_is_refused() -> None:
    world = waiting(world_of(1, BACKUPS))
    world.refuses = lambda query, source: True
    world.arrive(1)
    for _ in range(2):
        world.finish("0")
    assert world.running["0"].role == DEPLOYED
    assert world.running["0"].subjects == (1,)
    world.finish("0")
    assert world.answers == {0: Source.MODEL, 1: Source.MODEL}


@pytest.mark.parametrize("reason", ["exact", "closed", "refused", "starts", "unknown", "code"])
def test_a_query_waits_for_the_model(reason: str) -> None:
    units = [] if reason == "unknown" else SOME_SLOW
    world = world_of(1, CODE if reason == "code" else BACKUPS, units)
    if reason == "refused":  # as often as its answers are refused, it does not save work
        world.refuses = lambda query, source: True
        for _ in range(150):
            waiting(world)
            answer_some(world, 0)
    elif reason == "closed":
        world.do(world.scheduler.gate_turned(world.now, Source.BACKUP, False))
    world.arrive(2, exact=reason == "exact")
    if reason == "starts":
        world.pass_time(0.1)
        world.finish("0")
    world.pass_time(WAITED)
    assert world.queued(BACKUP) == 0
    assert world.running["0"].role == DEPLOYED


# Queries on instances that are known to be slow are asked for at once


def slow_world(stand_ins: StandIns = BACKUPS) -> tuple[World, Adaptive]:
    """Instances a to h; a to d, which take first, have been late."""
    policy = Adaptive(stand_ins, run_times=run_times(*SOME_SLOW))
    world = scheduling_world.world_of("abcdefgh", policy, code=code())
    world.pass_time(10.0)
    ran(world, policy, 9.0, *"abcd")
    return world, policy


def test_a_query_on_a_slow_instance_is_asked_for_at_once_and_answered_once_late() -> None:
    world, _ = slow_world()
    world.arrive(1)
    world.pass_time(0.01)
    original, backup = world.running
    assert runs(world) == [DEPLOYED, BACKUP]
    world.pass_time(0.5)
    world.finish(backup)
    assert not world.answers, "the model may be in time"
    world.pass_time(0.6)
    assert world.answers == {0: Source.BACKUP}
    assert world.cancelled == {world.running[original].unit}


def test_a_model_that_is_in_time_answers_before_the_backup_that_is_kept() -> None:
    world, _ = slow_world()
    world.arrive(1)
    world.pass_time(0.01)
    original, backup = world.running
    world.finish(backup)
    world.pass_time(0.9)
    world.finish(original)
    assert world.answers == {0: Source.MODEL}
    world.pass_time(9.0)
    assert not world.running


def test_what_a_backup_says_is_kept_no_longer_than_the_original_s_instance_lives() -> None:
    world, _ = slow_world()
    world.arrive(1)
    world.pass_time(0.01)
    original, backup = world.running
    world.finish(backup)
    world.leave(original)
    assert world.answers == {0: Source.BACKUP}


def test_what_a_backup_says_is_the_answer_at_the_deadline() -> None:
    world, _ = slow_world()
    world.arrive(1, deadline=world.now + 0.6)
    world.pass_time(0.01)
    world.finish(list(world.running)[1])
    world.pass_time(0.6)
    assert world.answers == {0: Source.BACKUP}


@pytest.mark.parametrize(("stand_ins", "sent"), [(BACKUPS, BACKUP), (CODE, PARITY)])
def test_what_is_sent_waits_for_an_instance_that_is_not_slow(
    stand_ins: StandIns, sent: str
) -> None:
    policy = Adaptive(stand_ins, run_times=run_times(*SOME_SLOW))
    world = scheduling_world.world_of(("fast", "busy"), policy, code=code())
    answer_some(world)
    world.arrive(2, exact=True)
    for instance in "ab":
        world.join(instance, policy.roles(1, 0)[0])
    ran(world, policy, 9.0, *"ab")
    world.arrive(1)
    world.pass_time(0.01)
    assert runs(world) == [DEPLOYED] * 3
    assert world.queued(sent) == 1
    world.finish("fast")
    assert world.running["fast"].role == sent


def test_an_instance_is_slow_until_it_is_in_time_again() -> None:
    world, policy = slow_world()
    ran(world, policy, 1.0, *"abcd")
    world.arrive(1)
    world.pass_time(0.9)
    assert runs(world) == [DEPLOYED]
    ran(world, policy, 9.0, *(f"gone {n}" for n in range(100)))
    world.arrive(1)
    world.pass_time(0.01)
    assert runs(world) == [DEPLOYED] * 2, "what is gone says nothing of others"


def test_a_query_that_the_backup_may_not_answer_is_copied() -> None:
    world = world_of(stand_ins=BACKUPS)
    world.refuses = lambda query, source: True
    world.arrive(1)
    world.pass_time(1.2)
    assert runs(world) == [DEPLOYED, BACKUP]
    world.finish(next(name for name, run in world.running.items() if run.role == BACKUP))
    world.pass_time(0.01)
    assert runs(world) == [DEPLOYED] * 2
    assert not world.answers


# What a stand-in saves against what it costs


def asking(takes: float) -> Choice:
    """A stand-in that answers all queries."""
    return Choice(takes, ((1.0, takes), (0.0, takes + 1.0)))


def benefit(load: float = 0.0) -> Benefit:
    rule = Benefit()
    rule.learn(1.0, load)
    return rule


def test_what_is_saved_is_lateness_weighted_with_lateness() -> None:
    known = run_times(*[(1.0, True)] * 90, *[(3.0, True)] * 10)
    # A tenth of units run from 1 to 3; one asked at 1 that takes 0.5 ends its query at 1.5.
    saved = benefit().saved(asking(0.5), known, age=1.0)
    assert saved == pytest.approx(URGENCY * (2.0**2 - 0.5**2) / 2)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 5))
def test_instance_time_is_dearer_at_a_higher_load(
    load: float, other: float, waiting: float
) -> None:
    low, high = sorted((load, other))
    choice = asking(1.0)
    cheap = benefit(load=low).cost(choice)
    assert 1 <= cheap <= benefit(load=high).cost(choice)
    assert cheap <= benefit(load=low).cost(choice, waiting)


def test_a_stand_in_that_did_badly_is_asked_again_after_a_while() -> None:
    stand_in = StandIn(run_times((1.0, True)))
    for _ in range(100):
        stand_in.ran(9.0, finished=True)
        stand_in.answered(usable=False)
    assert stand_in.accepted < 0.2
    assert stand_in.takes == 9.0
    stand_in.not_asked(FORGOTTEN)
    assert (stand_in.accepted, stand_in.takes) == (1.0, 0.5)
