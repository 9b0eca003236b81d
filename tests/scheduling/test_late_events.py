"""Events that are reported late, twice, or for what is gone lose nothing."""

from collections.abc import Iterator

import pytest

from parity_models.scheduling import Policy, Reason, Run, Source
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task
from scheduling_world import LOG, STRICT, world_of


class Test_an_output_that_is_reported_after_the_deadline:
    def test_answers_its_query_and_the_instance_goes_on(self) -> None:
        world = world_of("a", deadline=3.0)
        world.arrive(1, deadline=0.05)
        world.arrive(1)
        world.stall(0.06)
        world.finish("a")
        assert world.answers == {0: Source.MODEL}
        assert world.running["a"].subjects == (1,)

    def test_comes_too_late_if_its_timer_was_reported(self) -> None:
        world = world_of("a", deadline=3.0)
        world.arrive(1, deadline=0.05)
        world.end("a")
        world.pass_time(0.06)
        assert world.failures[0].reason is Reason.DEADLINE_EXCEEDED
        world.report("a")
        assert not world.answers
        assert world.scheduler.size() == 0


@pytest.mark.parametrize("how", ["fail", "leave"])
def test_what_fails_and_is_reported_after_the_deadline_fails_its_query_once(how: str) -> None:
    world = world_of("ab", deadline=3.0)
    world.arrive(1, deadline=0.05)
    world.stall(0.06)
    getattr(world, how)("a")
    assert world.failures[0].reason is Reason.DEADLINE_EXCEEDED
    assert not world.running


def test_a_query_that_arrives_after_its_deadline_is_never_run() -> None:
    world = world_of("a", deadline=3.0)
    world.stall(1.0)
    world.arrive(1, deadline=0.5)
    assert world.failures[0].reason is Reason.DEADLINE_EXCEEDED
    assert not any(isinstance(action, Run) for action in world.log)
    assert world.scheduler.size() == 0


class Test_a_query_that_its_client_abandons:
    def test_has_its_unit_cancelled_if_nobody_else_needs_it(self) -> None:
        world = world_of("a", deadline=3.0, max_batch=2)
        world.arrive(2)
        assert world.running["a"].subjects == (0, 1)
        world.abandon(0)
        assert not world.cancelled, "query 1 still needs it"
        world.abandon(1)
        assert world.cancelled == {world.running["a"].unit}


def test_a_query_whose_action_the_driver_could_not_carry_out_fails_and_the_rest_goes_on() -> None:
    world = world_of("a", deadline=3.0)
    world.arrive(2)
    world.do(world.scheduler.queries_failed(world.now, [0], "no memory"))
    assert world.failures[0].reason is Reason.INTERNAL
    assert world.failures[0].detail == "no memory"
    world.fail("a")
    assert world.running["a"].subjects == (1,)


@pytest.fixture
def logged_alone() -> Iterator[None]:
    """What the scheduler logs does not fail this test."""
    LOG.removeHandler(STRICT)
    yield
    LOG.addHandler(STRICT)


HOOKS = (
    "arrived",
    "starts",
    "on_prediction",
    "unit_ended",
    "on_loss_or_deadline",
    "resolved",
    "alarm",
)


@pytest.mark.parametrize("hook", HOOKS)
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
    if hook in ("on_prediction", "unit_ended", "on_loss_or_deadline", "resolved"):
        setattr(policy, hook, policy._raise)
    world = world_of("ab", policy, deadline=3.0)
    world.arrive(3)
    world.pass_time(0.2)
    for _ in range(5):
        world.finish_running()
    world.pass_time(5.0)
    assert world.answers.keys() | world.failures.keys() == {0, 1, 2}
    if hook in ("arrived", "starts", "alarm"):
        assert "a bug" in world.failures[1].detail
    assert world.scheduler.running() == {"a": None, "b": None}
    assert world.scheduler.size() == 0
