"""Instances that are not needed any more end what they have, and go."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from histories import STEP_NAMES, Setup, check_nothing_is_left, draw_setup, run_history
from parity_models.scheduling import NoRedundancy, RecycleReason, Scheduler, SchedulerConfig
from parity_models.scheduling.health import State
from scheduling_world import ORIGINALS, PARITIES, World

STEPS = st.lists(
    st.tuples(st.sampled_from([*STEP_NAMES, "leave", "join"]), st.integers(0, 1000)), max_size=80
)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    return draw_setup(lambda options: draw(st.sampled_from(options)))


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(setups(), STEPS)
def test_every_query_is_answered_once_or_failed_once_though_instances_retire(
    setup: Setup, steps: list[tuple[str, int]]
) -> None:
    world = run_history(setup, steps, retires=True)
    if not any("deployed" in roles for roles in world.roles.values()):
        world.join("last", frozenset({"deployed"}))
    check_nothing_is_left(world, setup.code.k)


def world_of(*instances: str, verify_every: int = 0, deadline: float = 10.0) -> World:
    config = SchedulerConfig(verify_every=verify_every, deadline=deadline)
    world = World(Scheduler(NoRedundancy(), config))
    for instance in instances:
        world.join(instance, ORIGINALS)
    return world


def test_the_newest_idle_one_goes_at_once() -> None:
    world = world_of("a", "b", "c")
    world.arrive(1)
    assert world.running.keys() == {"a"}
    world.retire()
    assert world.roles.keys() == {"a", "b"}


def test_where_all_are_busy_the_one_with_the_oldest_unit_ends_it_first() -> None:
    world = world_of("a", "b")
    world.arrive(3)
    world.retire()
    assert dict(world.scheduler.instances())["a"] is State.LEAVING
    world.finish("a")
    assert world.roles.keys() == {"b"}
    assert len(world.answers) == 1
    world.finish("b")
    world.finish("b")
    assert len(world.answers) == 3


def test_one_that_does_not_answer_its_last_unit_is_replaced_as_others_are() -> None:
    world = world_of("a", "b")
    for _ in range(200):
        world.arrive(2)
        world.pass_time(0.01)
        world.finish("a")
        world.finish("b")
    world.arrive(1)
    (hung,) = world.running
    world.arrive(1)
    world.retire()
    assert dict(world.scheduler.instances())[hung] is State.LEAVING
    world.finish(*(world.running.keys() - {hung}))
    world.pass_time(9.0)
    assert world.recycled[hung].reason is RecycleReason.HUNG
    world.leave(hung)
    assert world.roles.keys() == world.running.keys()
    assert not world.failures


def test_one_that_gets_no_work_goes_first_and_does_not_come_back() -> None:
    world = world_of("a", "b", verify_every=100)
    world.verify("a")
    world.fail_to_verify("b")
    assert dict(world.scheduler.instances())["b"] is State.EJECTED
    world.retire()
    assert world.roles.keys() == {"a"}
    world.pass_time(100.0)


@pytest.mark.parametrize("right", [True, False])
def test_one_that_is_being_verified_goes_when_it_has_answered(right: bool) -> None:
    world = world_of("a", "b", verify_every=100)
    world.verify("a")
    world.retire()
    world.verify("b", right=right)
    assert ("b" in world.recycled) is not right
    assert ("b" in world.roles) is not right


def test_instances_of_stand_ins_alone_stay_and_none_goes_where_none_is_left() -> None:
    world = world_of("a")
    world.join("p", PARITIES)
    world.retire()
    world.retire()
    assert world.roles.keys() == {"p"}
