"""The scheduler keeps its promises whatever happens: properties over random histories."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_models.codes import Code, CodeSpec
from parity_models.scheduling import (
    BACKUP,
    DEPLOYED,
    Answer,
    Cancel,
    Decode,
    Encode,
    EqualResources,
    NoRedundancy,
    Parity,
    Policy,
    Reason,
    Run,
    Scheduler,
    SchedulerConfig,
    Source,
    parity_work,
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
from scheduling_world import World

BOTH = frozenset({DEPLOYED, parity_work(0)})
ORIGINALS = frozenset({DEPLOYED})
PARITIES = frozenset({parity_work(0)})


def code(k: int = 2, r: int = 1, decoder: str = "separate") -> Code:
    encoder = "stack" if decoder == "separate" else "sum"
    return Code(CodeSpec(encoder, decoder, k, r), (1,), (1,))


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
        code, hedge_budget=options["budget"], run_times=RunTimes(window=20, every=2)
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
    )


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["arrive", "arrive", "finish", "finish", "finish", "fail", "leave", "join", "time"]
        ),
        st.integers(0, 1000),
    ),
    max_size=80,
)


def run_history(setup: Setup, steps: list[tuple[str, int]]) -> World:
    world, policy = setup.build()
    works = cycle(policy.works(3, 2))
    for i in range(5):
        world.join(f"{i}", next(works))
    for number, (step, choice) in enumerate(steps):
        busy = sorted(world.running)
        if step == "arrive":
            deadline = world.now + 1.0 if choice % 7 == 0 else None
            world.arrive(1 + choice % 5, ["image", "text"][choice % 2], deadline)
        elif step == "finish" and busy:
            world.finish(busy[choice % len(busy)])
        elif step == "fail" and busy:
            world.fail(busy[choice % len(busy)])
        elif step == "leave" and world.works:
            world.leave(sorted(world.works)[choice % len(world.works)])
        elif step == "join":
            world.join(f"joined-{number}", next(works))
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
        world.arrive(1, "image")
        world.arrive(1, "text")
        world.arrive(2, "image")
        world.join("a", ORIGINALS)
        assert world.running["a"].subjects == (0, 2, 3)

    def test_are_refused_when_the_queue_is_full_all_or_none(self) -> None:
        world = World(Scheduler(NoRedundancy(), SchedulerConfig(max_queue=2)))
        world.arrive(2)
        world.arrive(1)
        assert [fail.reason for fail in world.failures.values()] == [Reason.OVERLOADED]
        assert world.scheduler.pending == 2

    def test_fail_at_their_own_deadline_when_no_instance_comes(self) -> None:
        world = World(Scheduler(NoRedundancy()))
        world.arrive(1, deadline=3.0)
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

    def test_fail_after_as_many_attempts_as_allowed(self) -> None:
        world = World(Scheduler(NoRedundancy(), SchedulerConfig(max_attempts=2)))
        world.join("a", ORIGINALS)
        world.arrive(1)
        world.fail("a")
        world.fail("a")
        assert world.failures[0].reason is Reason.INSTANCES_FAILED
        assert "the model raised" in world.failures[0].detail
        assert world.scheduler.size() == 0


def parity_world(
    instances: dict[str, frozenset[str]], decoder: str = "separate", **options: Any
) -> World:
    the_code = code(decoder=decoder)
    policy = Parity(the_code, **options)
    world = World(Scheduler(policy), the_code)
    for instance, works in instances.items():
        world.join(instance, works)
    return world


DEDICATED = {"a": ORIGINALS, "b": ORIGINALS, "p": PARITIES}


class Test_parity:
    def test_reconstructs_a_query_whose_instance_is_slow(self) -> None:
        world = parity_world(DEDICATED, "subtraction")
        world.arrive(2)
        world.finish("p")
        assert not world.answers
        world.finish("a")
        assert world.answers == {0: Source.MODEL, 1: Source.RECONSTRUCTION}
        assert any(isinstance(action, Cancel) for action in world.log)

    def test_with_separate_outputs_needs_no_other_prediction(self) -> None:
        world = parity_world(DEDICATED)
        world.arrive(2)
        world.finish("p")
        assert set(world.answers.values()) == {Source.RECONSTRUCTION}

    def test_sends_originals_before_it_encodes(self) -> None:
        world = parity_world({"a": BOTH, "b": BOTH, "c": BOTH})
        world.arrive(2)
        kinds = [type(action) for action in world.log if isinstance(action, Run | Encode)]
        assert kinds == [Run, Run, Encode, Run]

    def test_in_a_shared_pool_waits_until_no_original_does(self) -> None:
        world = parity_world({"a": BOTH})
        world.arrive(3)
        world.finish("a")
        world.finish("a")
        assert world.running["a"].subjects == (2,)

    def test_still_queued_is_dropped_when_its_group_is_complete(self) -> None:
        world = parity_world({"a": BOTH})
        world.arrive(2)
        world.finish("a")
        world.finish("a")
        assert not world.running
        assert not any(isinstance(action, Encode) for action in world.log)

    def test_an_original_still_queued_is_dropped_when_its_answer_has_gone_out(self) -> None:
        world = parity_world({"a": ORIGINALS, "p": PARITIES})
        world.arrive(2)
        world.finish("p")
        assert world.running["a"].subjects == (0,)
        assert world.scheduler.queue_depths()[DEPLOYED] == 0

    def test_pads_a_lonely_query_with_one_answered_before(self) -> None:
        world = parity_world(DEDICATED, "subtraction", max_group_wait=1.0)
        world.arrive(2)
        for instance in ("a", "b", "p"):
            world.finish(instance)
        world.arrive(1)
        world.pass_time(0.9)
        assert "p" not in world.running
        world.pass_time(0.2)
        assert world.members[world.running["p"].subjects[0]] == (2, 1)
        world.finish("p")
        assert world.answers[2] is Source.RECONSTRUCTION

    def test_closes_an_overdue_group_as_soon_as_there_is_padding(self) -> None:
        world = parity_world({"a": ORIGINALS, "b": ORIGINALS, "p": PARITIES}, max_group_wait=1.0)
        world.arrive(1, "image")
        world.pass_time(2.0)
        assert "p" not in world.running, "there is nothing to pad with yet"
        world.arrive(1, "image")
        assert "p" in world.running

    def test_of_different_kinds_never_share_a_group(self) -> None:
        world = parity_world(DEDICATED, max_group_wait=None)
        world.arrive(1, "image")
        world.arrive(1, "text")
        assert "p" not in world.running
        world.arrive(1, "image")
        assert world.members[world.running["p"].subjects[0]] == (0, 2)

    def test_delayed_is_sent_only_to_groups_still_incomplete(self) -> None:
        world = parity_world({**DEDICATED, "c": ORIGINALS, "d": ORIGINALS}, parity_delay=1.0)
        world.arrive(4)
        world.finish("a")
        world.finish("b")
        world.pass_time(1.5)
        encodes = [action for action in world.log if isinstance(action, Encode)]
        assert [encode.members for encode in encodes] == [(2, 3)]

    def test_under_the_deadline_rule_prefers_the_model_until_then(self) -> None:
        world = parity_world(DEDICATED, answer_rule=AnswerRule.DEADLINE, answer_after=1.0)
        world.arrive(2)
        world.finish("p")
        world.pass_time(0.5)
        world.finish("a")
        assert world.answers == {0: Source.MODEL}
        world.pass_time(0.6)
        assert world.answers[1] is Source.RECONSTRUCTION

    def test_under_the_deadline_rule_does_not_wait_for_a_lost_instance(self) -> None:
        world = parity_world(DEDICATED, answer_rule=AnswerRule.DEADLINE, answer_after=1.0)
        world.arrive(2)
        world.finish("p")
        world.leave("b")
        assert world.answers == {1: Source.RECONSTRUCTION}

    def test_encodes_once_even_when_a_parity_unit_is_retried(self) -> None:
        world = parity_world({"a": ORIGINALS, "b": ORIGINALS, "p": PARITIES})
        world.arrive(2)
        world.leave("p")
        world.join("q", PARITIES)
        assert world.running["q"].work == parity_work(0)
        assert sum(isinstance(action, Encode) for action in world.log) == 1

    def test_with_two_rows_recovers_two_of_three(self) -> None:
        the_code = code(3, 2, "subtraction")
        world = World(Scheduler(Parity(the_code, pool=Pool.DEDICATED)), the_code)
        both_rows = frozenset({parity_work(0), parity_work(1)})
        for instance in ("a", "b", "c"):
            world.join(instance, ORIGINALS)
        world.join("p", both_rows)
        world.join("q", both_rows)
        world.arrive(3)
        world.finish("b")
        world.finish("p")
        assert len(world.answers) == 1
        world.finish("q")
        decode = next(action for action in world.log if isinstance(action, Decode))
        assert decode.slots == (0, 2)
        assert [type(a) for a in world.log if isinstance(a, Decode | Answer)][-3:] == [
            Decode,
            Answer,
            Answer,
        ]


class Test_other_policies:
    def test_replication_runs_a_query_twice_and_answers_once(self) -> None:
        world = World(Scheduler(Replication(2)))
        for instance in ("a", "b"):
            world.join(instance, ORIGINALS)
        world.arrive(1)
        assert world.running["a"].subjects == world.running["b"].subjects == (0,)
        world.finish("b")
        assert world.answers == {0: Source.MODEL}
        assert world.cancelled == {world.running["a"].unit}

    def test_hedging_copies_a_query_that_takes_long(self) -> None:
        world = World(Scheduler(Hedging(delay=1.0)))
        for instance in ("a", "b"):
            world.join(instance, ORIGINALS)
        world.arrive(1)
        world.pass_time(0.9)
        assert "b" not in world.running
        world.pass_time(0.2)
        assert world.running["b"].subjects == (0,)

    def test_hedging_does_not_copy_what_waits_in_the_common_queue(self) -> None:
        world = World(Scheduler(Hedging(delay=1.0)))
        world.arrive(1)
        world.pass_time(1.5)
        world.join("a", ORIGINALS)
        world.join("b", ORIGINALS)
        assert "b" not in world.running
        world.pass_time(1.0)
        assert world.running["b"].subjects == (0,)

    def test_hedging_stays_within_its_budget(self) -> None:
        world = World(Scheduler(Hedging(delay=1.0, budget=0.1)))
        for i in range(400):
            world.join(f"{i}", ORIGINALS)
        world.arrive(200)
        world.pass_time(2.0)
        assert sum(isinstance(action, Run) for action in world.log) == 210

    def test_hedging_learns_its_delay(self) -> None:
        world = World(Scheduler(Hedging(quantile=0.95)))
        world.join("a", ORIGINALS)
        for _ in range(50):
            world.arrive(1)
            world.pass_time(0.5)
            world.finish("a")
        world.join("b", ORIGINALS)
        world.arrive(1)
        world.pass_time(0.4)
        assert len(world.running) == 1
        world.pass_time(0.2)
        assert len(world.running) == 2

    def test_a_backup_answers_when_it_is_first(self) -> None:
        world = World(Scheduler(ApproximateBackup()))
        world.join("a", ORIGINALS)
        world.join("cheap", frozenset({BACKUP}))
        world.arrive(1)
        world.finish("cheap")
        assert world.answers == {0: Source.BACKUP}

    def test_a_backup_waits_for_the_answer_rules_deadline(self) -> None:
        policy = ApproximateBackup(answer_rule=AnswerRule.DEADLINE, answer_after=1.0)
        world = World(Scheduler(policy))
        world.join("a", ORIGINALS)
        world.join("cheap", frozenset({BACKUP}))
        world.arrive(1)
        world.finish("cheap")
        assert not world.answers
        world.pass_time(1.1)
        assert world.answers == {0: Source.BACKUP}

    def test_a_default_prediction_answers_at_the_deadline(self) -> None:
        world = World(Scheduler(NoRedundancy(), SchedulerConfig(default_prediction=True)))
        world.arrive(1, deadline=1.0)
        world.pass_time(1.0)
        assert world.answers == {0: Source.DEFAULT}


class Test_dispatch:
    def test_round_robin_takes_turns_and_moves_what_waits_when_an_instance_leaves(self) -> None:
        world = World(Scheduler(NoRedundancy(), dispatch=RoundRobin()))
        for instance in ("a", "b"):
            world.join(instance, ORIGINALS)
        world.arrive(4)
        world.finish("a")
        assert world.running["a"].subjects == (2,)
        world.leave("b")
        world.finish("a")
        world.finish("a")
        world.finish("a")
        assert len(world.answers) == 4

    def test_power_of_two_choices_prefers_the_shorter_queue(self) -> None:
        world = World(Scheduler(NoRedundancy(), dispatch=PowerOfTwoChoices()))
        for instance in ("a", "b"):
            world.join(instance, ORIGINALS)
        world.arrive(2)
        assert set(world.running) == {"a", "b"}

    def test_latency_aware_takes_the_recently_slow_last(self) -> None:
        world = World(Scheduler(NoRedundancy(), dispatch=LatencyAware()))
        for instance in ("slow", "fast"):
            world.join(instance, ORIGINALS)
        world.arrive(2)
        world.pass_time(0.1)
        world.finish("fast")
        world.pass_time(0.9)
        world.finish("slow")
        for _ in range(3):
            world.arrive(1)
            assert set(world.running) == {"fast"}
            world.pass_time(0.1)
            world.finish("fast")


@pytest.mark.parametrize(
    ("policy", "works"),
    [
        (NoRedundancy(), [ORIGINALS] * 2),
        (EqualResources(), [ORIGINALS] * 3),
        (Parity(code(), pool=Pool.DEDICATED), [ORIGINALS] * 2 + [PARITIES]),
        (Parity(code(), pool=Pool.SHARED), [BOTH] * 3),
    ],
)
def test_policies_say_what_each_instance_runs(policy: Policy, works: list[frozenset[str]]) -> None:
    assert policy.works(2, 1) == works


def test_a_driver_that_breaks_the_contract_is_told() -> None:
    scheduler = Scheduler(NoRedundancy())
    scheduler.queries_arrived(0.0, [1], "image")
    with pytest.raises(ValueError, match="query 1 is here already"):
        scheduler.queries_arrived(0.0, [1], "image")
    scheduler.instance_joined(0.0, "a", ORIGINALS)
    with pytest.raises(ValueError, match="joined already"):
        scheduler.instance_joined(0.0, "a", ORIGINALS)
    with pytest.raises(ValueError, match="never joined"):
        scheduler.instance_left(0.0, "b")
    with pytest.raises(ValueError, match="max_batch must be greater than 0"):
        SchedulerConfig(max_batch=0)
