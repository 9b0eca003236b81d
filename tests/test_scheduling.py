"""The scheduler keeps its promises to every query, whatever happens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_models.codes import Code
from parity_models.scheduling import (
    EqualResources,
    NoRedundancy,
    Parity,
    Policy,
    Reason,
    Scheduler,
    SchedulerConfig,
    Source,
)
from parity_models.scheduling.dispatch import (
    Dispatch,
    LatencyAware,
    PowerOfTwoChoices,
    RoundRobin,
    SingleQueue,
)
from parity_models.scheduling.policies import (
    AdaptiveParity,
    AnswerRule,
    ApproximateBackup,
    Hedging,
    Pool,
    Replication,
)
from parity_models.scheduling.run_times import RunTimes
from scheduling_world import ORIGINALS, World, code, undisturbed

BUILDERS: dict[str, Callable[[Code, dict[str, Any]], Policy]] = {
    "none": lambda code, options: NoRedundancy(),
    "equal resources": lambda code, options: EqualResources(),
    "replication": lambda code, options: Replication(2),
    "hedging": lambda code, options: Hedging(delay=0.5, budget=options["budget"]),
    "live hedging": lambda code, options: Hedging(quantile=0.5),
    "backup": lambda code, options: ApproximateBackup(
        answer_rule=options["answer_rule"], answer_after=options["answer_after"]
    ),
    "adaptive parity": lambda code, options: AdaptiveParity(
        code,
        hedge_budget=options["budget"],
        run_times=RunTimes(window=20, every=2),
        interference=undisturbed(),
    ),
    "parity": lambda code, options: Parity(
        code, **{name: value for name, value in options.items() if name != "budget"}
    ),
}


@dataclass
class Setup:
    """One configuration of scheduler and policy, built anew as often as needed."""

    policy: str
    dispatch: type[Dispatch]
    code: Code
    options: dict[str, Any]
    config: SchedulerConfig
    nodes: int | None

    def build(self) -> tuple[World, Policy]:
        policy = BUILDERS[self.policy](self.code, self.options)
        scheduler = Scheduler(policy, self.config, self.dispatch())
        return World(scheduler, self.code, self.config.max_batch), policy


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    k = draw(st.integers(2, 4))
    decoder = draw(st.sampled_from(["separate", "subtraction"]))
    return Setup(
        draw(st.sampled_from([*BUILDERS, "parity", "parity", "parity", "adaptive parity"])),
        draw(
            st.sampled_from([SingleQueue, SingleQueue, LatencyAware, RoundRobin, PowerOfTwoChoices])
        ),
        code(k, draw(st.integers(1, 2)), decoder),
        {
            "pool": draw(st.sampled_from(list(Pool))),
            "max_group_wait": draw(st.sampled_from([None, 0.0, 0.5, 3.0])),
            "parity_delay": draw(st.sampled_from([0.0, 1.0])),
            "answer_rule": draw(st.sampled_from(list(AnswerRule))),
            "answer_after": 2.0,
            "budget": draw(st.sampled_from([0.05, 1.0])),
        },
        SchedulerConfig(
            max_batch=draw(st.integers(1, 3)),
            max_queue=draw(st.sampled_from([4, 1000])),
            deadline=draw(st.sampled_from([5.0, 50.0])),
            max_attempts=draw(st.integers(1, 4)),
            default_prediction=draw(st.booleans()),
        ),
        draw(st.sampled_from([None, 1, 2, 3, 4])),
    )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "arrive",
                "arrive",
                "finish",
                "finish",
                "finish",
                "fail",
                "leave",
                "join",
                "time",
                "busy",
            ]
        ),
        st.integers(0, 1000),
    ),
    max_size=80,
)


def run_history(setup: Setup, steps: list[tuple[str, int]]) -> World:
    world, policy = setup.build()
    works = cycle(policy.works(3, 2))
    nodes = cycle([None] if setup.nodes is None else [str(node) for node in range(setup.nodes)])
    for i in range(5):
        world.join(f"{i}", next(works), next(nodes))
    for number, (step, choice) in enumerate(steps):
        busy = sorted(world.running)
        if step == "arrive":
            deadline = world.now + 1.0 if choice % 7 == 0 else None
            world.arrive(1 + choice % 5, ["image", "text"][choice % 2], deadline)
        elif step == "finish" and busy:
            world.finish(busy[choice % len(busy)])
        elif step == "fail" and busy:
            world.fail(busy[choice % len(busy)])
        elif step == "busy" and busy:
            world.turn_away(busy[choice % len(busy)], choice / 500 + 0.01)
        elif step == "leave" and world.works:
            world.leave(sorted(world.works)[choice % len(world.works)])
        elif step == "join":
            world.join(f"joined-{number}", next(works), next(nodes))
        elif step == "time":
            world.pass_time(choice / 500)
    return world


def run_out(world: World) -> None:
    """Let every instance finish and every deadline pass."""
    for _ in range(1000):
        if not world.running:
            break
        world.finish(min(world.running))
    world.pass_time(100.0)
    for instance in sorted(world.running):
        world.finish(instance)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(setups(), STEPS)
def test_every_query_is_answered_once_or_failed_once_and_nothing_is_left(
    setup: Setup, steps: list[tuple[str, int]]
) -> None:
    world = run_history(setup, steps)
    run_out(world)
    assert world.answers.keys() | world.failures.keys() == set(range(world.arrived))
    assert world.scheduler.pending == 0
    assert sum(world.scheduler.queue_depths().values()) == 0
    assert not world.running
    # What stays is padding: at most 2k - 2 answered queries and an open group, for each kind.
    kept = 2 * (3 * setup.code.k - 3)
    assert world.scheduler.size() <= kept
    assert len(world.inputs) <= kept
    assert world.predictions <= world.inputs
    assert not world.members
    assert not world.parity_outputs


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(setups(), STEPS)
def test_the_same_events_give_the_same_actions(setup: Setup, steps: list[tuple[str, int]]) -> None:
    assert run_history(setup, steps).log == run_history(setup, steps).log


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(setups(), STEPS)
def test_where_all_instances_share_a_node_all_is_as_where_they_name_none(
    setup: Setup, steps: list[tuple[str, int]]
) -> None:
    on_one, on_none = (replace(setup, nodes=nodes) for nodes in (1, None))
    assert run_history(on_one, steps).log == run_history(on_none, steps).log


@pytest.mark.parametrize("pool", list(Pool))
def test_a_hundred_thousand_queries_leave_no_more_behind_than_a_hundred(pool: Pool) -> None:
    policy = Parity(code(), pool=pool, max_group_wait=0.5)
    world = World(Scheduler(policy, SchedulerConfig(max_batch=2)), code(), 2)
    for i, works in enumerate(policy.works(4, 2)):
        world.join(f"{i}", works)
    sizes = []
    for round_ in range(20_000):
        world.arrive(5)
        world.pass_time(0.01)
        while world.running:
            world.finish(next(iter(world.running)))
        world.log.clear()
        if round_ in (20, 19_999):
            sizes.append(world.scheduler.size())
    assert len(world.answers) == 100_000
    assert sizes[1] <= sizes[0]
    assert len(world.inputs) <= 3


class Test_originals:
    def test_go_out_at_once_and_oldest_first(self) -> None:
        world = World(Scheduler(NoRedundancy()))
        world.join("a", ORIGINALS)
        world.arrive(3)
        assert world.running["a"].subjects == (0,)
        world.finish("a")
        assert world.running["a"].subjects == (1,)
        assert world.answers == {0: Source.MODEL}

    def test_share_a_batch_only_with_their_own_kind(self) -> None:
        world = World(Scheduler(NoRedundancy(), SchedulerConfig(max_batch=3)), max_batch=3)
        world.join("a", ORIGINALS)
        world.arrive(1, "audio")
        world.arrive(1, "image")
        world.arrive(1, "text")
        world.arrive(2, "image")
        world.finish("a")
        assert world.running["a"].subjects == (1, 3, 4)

    def test_are_refused_when_the_queue_is_full_all_or_none(self) -> None:
        world = World(Scheduler(NoRedundancy(), SchedulerConfig(max_queue=2)))
        world.join("a", ORIGINALS)
        world.arrive(1)
        world.arrive(1)
        world.arrive(2)
        assert [fail.reason for fail in world.failures.values()] == [Reason.OVERLOADED] * 2
        assert "at most 2 may" in world.failures[2].detail
        assert world.scheduler.pending == 2

    def test_wait_once_however_many_copies_do(self) -> None:
        world = World(Scheduler(Replication(3), SchedulerConfig(max_queue=2)))
        world.join("a", ORIGINALS)
        world.arrive(1)
        world.arrive(2)
        assert not world.failures
        world.arrive(1)
        assert set(world.failures) == {3}

    def test_of_which_a_copy_runs_do_not_wait(self) -> None:
        world = World(Scheduler(Replication(2), SchedulerConfig(max_queue=1)))
        world.join("a", ORIGINALS)
        world.arrive(1)
        world.arrive(1)
        assert not world.failures
        world.fail("a")
        world.arrive(1)
        assert set(world.failures) == {2}

    def test_fail_at_their_own_deadline_when_no_instance_comes(self) -> None:
        world = World(Scheduler(NoRedundancy()))
        world.join("a", ORIGINALS)
        world.arrive(1, deadline=3.0)
        world.leave("a")
        world.pass_time(2.9)
        assert not world.failures
        world.pass_time(0.2)
        assert world.failures[0].reason is Reason.DEADLINE_EXCEEDED
        assert world.scheduler.size() == 0

    def test_are_retried_elsewhere_when_their_instance_is_lost(self) -> None:
        world = World(Scheduler(NoRedundancy()))
        world.join("a", ORIGINALS)
        world.arrive(2)
        world.leave("a")
        world.join("b", ORIGINALS)
        assert world.running["b"].subjects == (0,)

    def test_keep_away_from_an_instance_that_failed_them_while_there_are_others(self) -> None:
        world = World(Scheduler(NoRedundancy()))
        world.join("bad", ORIGINALS)
        world.arrive(1)
        world.join("good", ORIGINALS)
        world.arrive(1)
        world.fail("bad")
        assert "bad" not in world.running
        world.finish("good")
        assert world.running["good"].subjects == (0,)

    def test_are_tried_elsewhere_at_once_when_turned_away_by_an_instance_that_then_rests(
        self,
    ) -> None:
        world = World(Scheduler(NoRedundancy(), SchedulerConfig(max_attempts=1)))
        world.join("busy", ORIGINALS)
        world.arrive(1)
        for other in ("b", "c"):
            world.join(other, ORIGINALS)
        world.turn_away("busy", 2.0)
        assert world.running["b"].subjects == (0,)
        world.arrive(2)
        assert world.running["c"].subjects == (1,)
        assert "busy" not in world.running
        world.pass_time(1.9)
        assert "busy" not in world.running
        world.pass_time(0.2)
        assert world.running["busy"].subjects == (2,)
        world.turn_away("busy", 2.0)
        world.leave("busy")  # as what rests may
        world.pass_time(3.0)
        assert not world.failures

    def test_fail_after_as_many_attempts_as_allowed(self) -> None:
        world = World(Scheduler(NoRedundancy(), SchedulerConfig(max_attempts=2)))
        world.join("a", ORIGINALS)
        world.arrive(1)
        world.fail("a")
        world.fail("a")
        assert world.failures[0].reason is Reason.INSTANCES_FAILED
        assert "the model raised" in world.failures[0].detail
        world.pass_time(5.0)  # by then nothing is held against the instance
        assert world.scheduler.size() == 0


def test_a_driver_that_breaks_the_contract_is_told() -> None:
    scheduler = Scheduler(NoRedundancy())
    scheduler.instance_joined(0.0, "a", ORIGINALS)
    scheduler.queries_arrived(0.0, [1], "image")
    with pytest.raises(ValueError, match="query 1 is here already"):
        scheduler.queries_arrived(0.0, [1], "image")
    with pytest.raises(ValueError, match="max_batch must be greater than 0"):
        SchedulerConfig(max_batch=0)
