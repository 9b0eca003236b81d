"""The scheduler keeps its promises to every query, whatever happens and whatever its state."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histories import STEP_NAMES, Setup, check_nothing_is_left, draw_setup, history, run_history
from parity_models.roles import BACKUP, DEPLOYED, Source
from parity_models.scheduling.actions import Reason, Run
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.policies import NoRedundancy, Policy, Replication, StandIns
from parity_models.scheduling.port import Port
from parity_models.scheduling.states import ENDED, QueryState
from parity_models.scheduling.work import Query, Task
from scheduling_world import LOG, ORIGINALS, STRICT, world_of

STEPS = st.lists(st.tuples(st.sampled_from(STEP_NAMES), st.integers(0, 1000)), max_size=80)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    def choose(options: Sequence[Any]) -> Any:
        return draw(st.sampled_from(options))

    return draw_setup(choose)


@settings(max_examples=80)
@given(setups(), STEPS)
def test_queries_end_once_and_leave_nothing(setup: Setup, steps: list[tuple[str, int]]) -> None:
    check_nothing_is_left(run_history(setup, steps), setup.code.k)


@pytest.mark.parametrize("seeds", [range(start, start + 250) for start in range(0, 1000, 250)])
@pytest.mark.slow
def test_invariants_hold_in_long_histories(seeds: range) -> None:
    for seed in seeds:
        setup, steps = history(Random(seed))
        check_nothing_is_left(run_history(setup, steps), setup.code.k)


@settings(max_examples=40)
@given(setups(), STEPS)
def test_the_same_events_give_the_same_actions(setup: Setup, steps: list[tuple[str, int]]) -> None:
    assert run_history(setup, steps).log == run_history(setup, steps).log


LOGS = """
from random import Random
from histories import history, run_history
print([run_history(*history(Random(seed))).log for seed in range(130, 134)])
"""


def test_actions_are_the_same_in_every_process() -> None:
    one, other = (
        subprocess.run(
            [sys.executable, "-c", LOGS],
            env={"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for hash_seed in "12"
    )
    assert one == other


@settings(max_examples=40)
@given(setups(), STEPS)
def test_one_node_for_all_is_like_none(setup: Setup, steps: list[tuple[str, int]]) -> None:
    on_one, on_none = (replace(setup, nodes=nodes) for nodes in (1, None))
    assert run_history(on_one, steps).log == run_history(on_none, steps).log


class Test_originals:
    def test_go_out_at_once_and_oldest_first(self) -> None:
        world = world_of("a")
        world.arrive(3)
        assert world.running["a"].subjects == (0,)
        world.finish("a")
        assert world.running["a"].subjects == (1,)
        assert world.answers == {0: Source.MODEL}

    def test_are_refused_when_the_queue_is_full_all_or_none(self) -> None:
        world = world_of("a", max_queue=2)
        world.arrive(1)
        world.arrive(1)
        world.arrive(2)
        assert [fail.reason for fail in world.failures.values()] == [Reason.OVERLOADED] * 2
        assert "at most 2 may" in world.failures[2].detail
        assert world.scheduler.pending == 2

    def test_are_tried_elsewhere_when_turned_away_by_an_instance_that_rests(self) -> None:
        world = world_of(("busy",), max_attempts=1)
        world.arrive(1)
        for other in ("b", "c"):
            world.join(other, ORIGINALS)
        world.fail("busy", 2.0)
        assert world.running["b"].subjects == (0,)
        world.arrive(2)
        assert world.running["c"].subjects == (1,)
        assert "busy" not in world.running
        world.pass_time(1.9)
        assert "busy" not in world.running
        world.pass_time(0.2)
        assert world.running["busy"].subjects == (2,)
        world.fail("busy", 2.0)
        world.leave("busy")  # as what rests may
        world.pass_time(3.0)
        assert not world.failures

    def test_fail_after_as_many_attempts_as_allowed(self) -> None:
        world = world_of("a", max_attempts=2)
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


# Events that are reported late, twice, or for what is gone


def test_an_output_that_is_reported_after_the_deadline_answers_its_query() -> None:
    world = world_of("a", deadline=3.0)
    world.arrive(1, deadline=0.05)
    world.arrive(1)
    world.stall(0.06)
    world.finish("a")
    assert world.answers == {0: Source.MODEL}
    assert world.running["a"].subjects == (1,)


def test_a_query_that_arrives_after_its_deadline_is_never_run() -> None:
    world = world_of("a", deadline=3.0)
    world.stall(1.0)
    world.arrive(1, deadline=0.5)
    assert world.failures[0].reason is Reason.DEADLINE_EXCEEDED
    assert not any(isinstance(action, Run) for action in world.log)
    assert world.scheduler.size() == 0


def test_unit_of_abandoned_queries_is_cancelled_once_no_query_needs_it() -> None:
    world = world_of("a", deadline=3.0, max_batch=2)
    world.arrive(2)
    assert world.running["a"].subjects == (0, 1)
    world.abandon(0)
    assert not world.cancelled, "query 1 still needs it"
    world.abandon(1)
    assert world.cancelled == {world.running["a"].unit}


@pytest.fixture
def logged_alone() -> Iterator[None]:
    """Let the scheduler log without failing the test."""
    LOG.removeHandler(STRICT)
    yield
    LOG.addHandler(STRICT)


REPLACED_HOOKS = ("on_prediction", "unit_ended", "on_loss_or_deadline", "resolved")


@pytest.mark.parametrize("hook", ["arrived", "starts", "alarm", *REPLACED_HOOKS])
@pytest.mark.usefixtures("logged_alone")
def test_a_policy_that_raises_loses_no_instance_and_no_query(hook: str) -> None:
    class Faulty(Policy):
        def arrived(self, port: Port, query: Query) -> None:
            if query.id == 1:
                port.set_timer(query.arrived + 0.1, self._raise, (query.id,))
                if hook == "arrived":
                    self._raise()

        def starts(self, port: Port, task: Task) -> None:
            if hook == "starts" and task.subject == 1:
                self._raise()

        def _raise(self, *_: object, **__: object) -> None:
            raise RuntimeError("a bug")

    policy = Faulty()
    if hook in REPLACED_HOOKS:
        setattr(policy, hook, policy._raise)
    world = world_of("ab", policy, deadline=3.0)
    world.arrive(3)
    world.pass_time(0.2)
    for _ in range(5):
        world.finish_running()
    world.pass_time(5.0)
    assert world.answers.keys() | world.failures.keys() == {0, 1, 2}
    if hook not in REPLACED_HOOKS:
        assert "a bug" in world.failures[1].detail
    assert world.scheduler.running() == {"a": None, "b": None}
    assert world.scheduler.size() == 0


# The states of queries


BOTH = frozenset({DEPLOYED, BACKUP})


class AskFirst(Policy):
    """Asks the backup first, and once more when the model starts if `again`."""

    asks = StandIns(backup=True)

    def __init__(self, *, again: bool = False) -> None:
        self._again = again

    def arrived(self, port: Port, query: Query) -> None:
        port.ask(query, first=True)

    def starts(self, port: Port, task: Task) -> None:
        if self._again:
            port.ask(port.queries[task.subject], first=True)

    def redundancy_finished(self, port: Port, task: Task) -> None:
        port.answer(port.queries[task.subject], Source.BACKUP)


def state_of(query: Query) -> QueryState:
    """Return the state; the type checker takes an attribute for unchanged."""
    return query.state


def test_a_query_is_deferred_then_replaced_then_waits_if_the_backup_fails() -> None:
    world = world_of({"a": BOTH}, AskFirst())
    (query,) = world.arrive(1)
    pending = world.scheduler.queries[query]
    assert state_of(pending) is QueryState.REPLACED
    (other,) = world.arrive(1)
    assert world.scheduler.queries[other].state is QueryState.DEFERRED
    assert world.scheduler.waiting == 1
    world.fail("a")
    assert world.scheduler.waiting == 1
    assert state_of(pending) is QueryState.WAITING
    world.finish_all()
    assert world.answers == {query: Source.MODEL, other: Source.BACKUP}
    assert state_of(pending) is ENDED
    assert world.scheduler.waiting == 0


def test_a_suspect_waits_until_none_of_its_copies_runs() -> None:
    world = world_of("ab", Replication())
    (query,) = world.arrive(1)
    pending = world.scheduler.queries[query]
    assert state_of(pending) is QueryState.RUNNING
    world.leave("a")
    assert state_of(pending) is QueryState.SUSPECT
    assert not world.scheduler.queued(DEPLOYED)
    world.fail("b")
    assert state_of(pending) is QueryState.RUNNING, "it is tried alone"


@pytest.mark.usefixtures("logged_alone")
def test_a_query_that_runs_cannot_be_asked_of_the_backup_first() -> None:
    world = world_of({"a": BOTH, "b": BOTH}, AskFirst(again=True))
    (query,) = world.arrive(1)
    world.fail("a")
    assert world.failures[query].reason is Reason.INTERNAL
    assert "is RUNNING, not to be ASKED_FIRST" in world.failures[query].detail
