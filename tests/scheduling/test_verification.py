"""Instances that answer wrongly are found by golden queries, at once where they are suspected."""

from collections.abc import Iterator
from itertools import cycle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_models.scheduling import (
    DEPLOYED,
    NoRedundancy,
    Parity,
    Reason,
    RecycleReason,
    Scheduler,
    SchedulerConfig,
    parity_role,
)
from parity_models.scheduling.dispatch import (
    Dispatch,
    LatencyAware,
    PowerOfTwoChoices,
    RoundRobin,
    SingleQueue,
)
from parity_models.scheduling.health import State
from parity_models_lab.latency.competitors import Prequal
from scheduling_world import BOTH, ORIGINALS, World, code
from verified_pool import pool, verify_all

RULES: list[type[Dispatch]] = [SingleQueue, LatencyAware, RoundRobin, PowerOfTwoChoices, Prequal]


def states(world: World) -> dict[str, State]:
    return dict(world.scheduler.instances())


class Test_an_instance_that_joins:
    def test_answers_a_golden_query_of_each_work_before_it_gets_any(self) -> None:
        config = SchedulerConfig(verify_every=100)
        world = World(Scheduler(Parity(code()), config), code())
        world.join("a", BOTH)
        (too_soon,) = world.arrive(1)
        assert world.failures[too_soon].reason is Reason.NO_INSTANCES
        assert states(world) == {"a": State.VERIFYING}
        assert world.scheduler.instances_up() == {}
        assert world.verifying["a"].role == DEPLOYED
        world.verify("a")
        assert world.verifying["a"].role == parity_role(0)
        assert not world.running
        world.verify("a")
        (query,) = world.arrive(1)
        assert world.running["a"].subjects == (query,)
        assert states(world) == {"a": State.UP}

    def test_gets_none_if_it_answers_wrongly(self) -> None:
        world = pool(1)
        world.verify("0", right=False)
        assert world.recycled["0"].reason is RecycleReason.QUARANTINED
        assert world.recycled["0"].why == "answered a golden query of the role deployed wrongly"
        (query,) = world.arrive(1)
        assert world.failures[query].reason is Reason.NO_INSTANCES
        world.pass_time(5.0)
        assert not world.running | world.verifying
        world.leave("0")
        world.join("1", ORIGINALS)
        world.verify("1")
        world.arrive(1)
        assert "1" in world.running

    def test_is_tried_again_after_a_while_if_it_does_not_answer(self) -> None:
        world = pool(1)
        for _ in range(3):
            world.fail_to_verify("0")
            assert "0" not in world.verifying
            world.pass_time(5.0)
        assert world.recycled["0"].reason is RecycleReason.FAILING
        world.verify("0")
        world.arrive(1)
        assert "0" in world.running

    def test_is_replaced_if_its_golden_query_is_lost(self) -> None:
        world = pool(1)
        world.pass_time(15.0)
        assert world.recycled["0"].reason is RecycleReason.HUNG


@pytest.mark.parametrize("rule", RULES)
class Test_an_instance_at_work:
    def test_is_verified_after_so_many_queries_and_gets_no_unit_meanwhile(
        self, rule: type[Dispatch]
    ) -> None:
        world = pool(1, verify_every=3, rule=rule)
        verify_all(world)
        world.arrive(10)
        for _ in range(3):
            world.finish("0")
        assert "0" in world.verifying
        assert "0" not in world.running
        world.verify("0")
        assert world.running["0"].subjects == (3,)

    def test_gets_no_more_units_once_it_has_lied(self, rule: type[Dispatch]) -> None:
        world = pool(2, verify_every=3, rule=rule)
        verify_all(world)
        world.arrive(20)
        while "0" not in world.verifying:
            world.finish("0")
        world.verify("0", right=False)
        while "1" in world.running or "1" in world.verifying:
            assert not {"0"} & world.running.keys()
            world.finish("1") if "1" in world.running else world.verify("1")
        assert len(world.answers) == 20

    def test_is_back_if_its_golden_query_fails(self, rule: type[Dispatch]) -> None:
        world = pool(1, verify_every=1, rule=rule)
        verify_all(world)
        world.arrive(2)
        world.finish("0")
        world.fail_to_verify("0")
        assert "0" in world.running
        world.finish("0")
        assert "0" in world.verifying

    def test_is_verified_at_once_when_it_disagrees_more_than_others(
        self, rule: type[Dispatch]
    ) -> None:
        world = pool(3, verify_every=1000, rule=rule)
        verify_all(world)
        for _ in range(100):
            for instance in ("0", "1"):
                world.compare(instance, agreed=True)
            world.compare("2", agreed=False)
            if "2" in world.verifying:
                break
        assert set(world.verifying) == {"2"}
        world.verify("2")
        assert states(world)["2"] is State.UP
        world.arrive(20)
        assert set(world.running) == {"0", "1", "2"}

    def test_is_verified_after_its_present_unit_if_it_has_one(self, rule: type[Dispatch]) -> None:
        world = pool(2, verify_every=1000, rule=rule)
        verify_all(world)
        world.arrive(2)
        for _ in range(50):
            world.compare("0", agreed=True)
        for _ in range(10):
            world.compare("1", agreed=False)
        assert "1" in world.running
        assert states(world)["1"] is State.SUSPECTED
        world.arrive(1)
        world.finish("1")
        assert "1" in world.verifying


def test_golden_queries_take_turns() -> None:
    world = pool(1, verify_every=1)
    seen = [world.verifying["0"].probe]
    verify_all(world)
    for _ in range(3):
        world.arrive(1)
        world.finish("0")
        seen.append(world.verifying["0"].probe)
        verify_all(world)
    assert seen == [0, 1, 2, 3]


def test_a_golden_query_that_hits_a_busy_instance_is_asked_later() -> None:
    world = pool(1, verify_every=1)
    unit = world.verifying.pop("0").unit
    world.do(world.scheduler.unit_failed(world.now, unit, "is busy", busy=2.0))
    assert not world.verifying
    world.pass_time(2.1)
    assert "0" in world.verifying
    assert not world.recycled


OFTEN = ["finish", "right"]
SELDOM = ["arrive", "arrive", "fail", "leave", "join", "time", "wrong", "stuck", "again", "compare"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(OFTEN * 3 + SELDOM),
        st.integers(0, 1000),
    ),
    max_size=100,
)


class Steps:
    """What may happen to a world, and in it."""

    def __init__(self, world: World, roles: Iterator[frozenset[str]]) -> None:
        self.world, self.roles = world, roles
        self.verified: list[int] = []

    def take(self, number: int, step: str, choice: int) -> None:
        """Take a step, where it can be taken; `choice` says of what."""
        world, busy = self.world, sorted(self.world.running)
        if step == "arrive":
            world.arrive(1 + choice % 5)
        elif step == "finish" and busy:
            world.finish(busy[choice % len(busy)])
        elif step == "fail" and busy:
            world.fail(busy[choice % len(busy)])
        elif step == "leave" and world.roles:
            world.leave(sorted(world.roles)[choice % len(world.roles)])
        elif step == "join":
            world.join(f"joined-{number}", next(self.roles))
        elif step == "time":
            world.pass_time(choice / 200)
        elif step == "compare" and world.roles:
            instance = sorted(world.roles)[choice % len(world.roles)]
            for _ in range(choice % 7):
                world.compare(instance, agreed=choice % 3 == 0)
        elif step in ("right", "wrong", "stuck") and world.verifying:
            self.verify(step, sorted(world.verifying)[choice % len(world.verifying)])
        elif step == "again" and self.verified:
            unit = self.verified[choice % len(self.verified)]
            world.do(world.scheduler.unit_verified(world.now, unit, choice % 2 == 0))
            world.do(world.scheduler.unit_finished(world.now, unit))

    def verify(self, step: str, instance: str) -> None:
        self.verified.append(self.world.verifying[instance].unit)
        if step == "stuck":
            self.world.fail_to_verify(instance)
        else:
            self.world.verify(instance, right=step == "right")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rule=st.sampled_from(RULES),
    coded=st.booleans(),
    verify_every=st.integers(1, 4),
    max_batch=st.integers(1, 3),
    steps=STEPS,
)
def test_whatever_happens_no_instance_is_lost_and_no_query_has_no_end(
    rule: type[Dispatch],
    coded: bool,
    verify_every: int,
    max_batch: int,
    steps: list[tuple[str, int]],
) -> None:
    policy = Parity(code(), Parity.Options(max_group_wait=0.5)) if coded else NoRedundancy()
    config = SchedulerConfig(max_batch=max_batch, verify_every=verify_every)
    world = World(Scheduler(policy, config, rule()), code(), max_batch)
    roles = cycle(policy.roles(3, 1))
    for i in range(4):
        world.join(f"{i}", next(roles))
    happening = Steps(world, roles)
    for number, (step, choice) in enumerate(steps):
        happening.take(number, step, choice)
    for _ in range(1000):
        liars = [name for name, action in world.recycled.items() if action.reason in OVER]
        for name in liars:
            world.leave(name)
        if world.verifying:
            world.verify(min(world.verifying))
        elif world.running:
            world.finish(min(world.running))
        else:
            world.pass_time(1.0)
        if world.now > 200 and not world.running and not world.verifying:
            break
    assert world.answers.keys() | world.failures.keys() == set(range(world.arrived))
    assert set(states(world).values()) <= {State.UP}
    before = len(world.answers)
    world.arrive(1)
    if any(DEPLOYED in roles for roles in world.roles.values()):
        world.finish(min(world.running))
        assert len(world.answers) == before + 1


OVER = (RecycleReason.QUARANTINED, RecycleReason.HUNG)


def test_those_on_the_node_of_a_liar_are_verified_next() -> None:
    world = World(Scheduler(NoRedundancy(), SchedulerConfig(verify_every=3)))
    for instance, node in (("0", "a"), ("1", "a"), ("2", "a"), ("3", "b"), ("4", None)):
        world.join(instance, ORIGINALS, node)
        if instance != "0":
            world.verify(instance)
    world.arrive(1)
    (busy,) = world.running
    world.verify("0", right=False)
    beside = {"1", "2"}
    assert world.verifying.keys() == beside - {busy}
    world.finish(busy)
    assert world.verifying.keys() == beside
    verify_all(world)
    assert {state for name, state in world.scheduler.instances() if name != "0"} == {State.UP}
