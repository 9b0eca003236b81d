"""Instances that answer wrongly are found by golden queries, at once where they are suspected."""

import pytest

from parity_models.roles import DEPLOYED, parity_role
from parity_models.scheduling.actions import Reason, RecycleReason
from parity_models.scheduling.dispatch import RULES, SINGLE_QUEUE, Dispatch
from parity_models.scheduling.health import State
from parity_models.scheduling.policies import Parity
from scheduling_world import BOTH, ORIGINALS, World, code, world_of


def pool(
    instances: int,
    verify_every: int = 3,
    rule: str = SINGLE_QUEUE,
    batch: int = 1,
    *,
    verified: bool = True,
) -> World:
    """Instances that answer golden queries, and have answered the first ones if `verified`."""
    names = map(str, range(instances))
    world = world_of(names, dispatch=Dispatch(rule), max_batch=batch, verify_every=verify_every)
    if verified:
        verify_all(world)
    return world


def verify_all(world: World) -> None:
    while world.verifying:
        world.verify(next(iter(world.verifying)))


def states(world: World) -> dict[str, State]:
    return dict(world.scheduler.instances())


class Test_an_instance_that_joins:
    def test_answers_a_golden_query_of_each_work_before_it_gets_any(self) -> None:
        world = world_of({"a": BOTH}, Parity(code()), code=code(), verify_every=100)
        (too_soon,) = world.arrive(1)
        assert world.failures[too_soon].reason is Reason.NO_INSTANCES
        assert states(world) == {"a": State.VERIFYING}
        assert world.scheduler.up(DEPLOYED) == 0
        assert world.verifying["a"].role == DEPLOYED
        world.verify("a")
        assert world.verifying["a"].role == parity_role(0)
        assert not world.running
        world.verify("a")
        (query,) = world.arrive(1)
        assert world.running["a"].subjects == (query,)
        assert states(world) == {"a": State.UP}

    def test_gets_none_if_it_answers_wrongly(self) -> None:
        world = pool(1, verified=False)
        world.verify("0", right=False)
        assert world.recycled["0"].reason is RecycleReason.QUARANTINED
        assert world.recycled["0"].why == "answered a golden query of the role deployed wrongly"
        (query,) = world.arrive(1)
        assert world.failures[query].reason is Reason.NO_INSTANCES
        world.pass_time(5.0)
        assert not world.running | world.verifying
        world.leave("0")
        world.join("1", ORIGINALS)
        verify_all(world)
        world.arrive(1)
        assert "1" in world.running

    def test_is_tried_again_after_a_while_if_it_does_not_answer(self) -> None:
        world = pool(1, verified=False)
        for _ in range(3):
            world.fail("0")
            assert "0" not in world.verifying
            world.pass_time(5.0)
        assert world.recycled["0"].reason is RecycleReason.FAILING
        world.verify("0")
        world.arrive(1)
        assert "0" in world.running

    def test_is_replaced_if_its_golden_query_is_lost(self) -> None:
        world = pool(1, verified=False)
        world.pass_time(15.0)
        assert world.recycled["0"].reason is RecycleReason.HUNG


@pytest.mark.parametrize("rule", RULES)
class Test_an_instance_at_work:
    def test_is_verified_after_so_many_queries(self, rule: str) -> None:
        world = pool(1, verify_every=3, rule=rule)
        world.arrive(10)
        for _ in range(3):
            world.finish("0")
        assert "0" in world.verifying
        assert "0" not in world.running
        world.verify("0")
        assert world.running["0"].subjects == (3,)

    def test_is_back_if_its_golden_query_fails(self, rule: str) -> None:
        world = pool(1, verify_every=1, rule=rule)
        world.arrive(2)
        world.finish("0")
        world.fail("0")
        assert "0" in world.running
        world.finish("0")
        assert "0" in world.verifying


@pytest.mark.parametrize("batch", [1, 6, 64])
def test_verify_every_bounds_how_many_queries_a_liar_answers(batch: int) -> None:
    world = pool(6, verify_every=100, batch=batch)
    lies = 0
    while "0" not in world.recycled:
        world.arrive(6 * batch)
        for instance in list(world.running):
            lies += len(world.running[instance].subjects) if instance == "0" else 0
            world.finish(instance)
        for instance in list(world.verifying):
            world.verify(instance, right=instance != "0")
        assert lies < 100 + batch


def test_those_on_the_node_of_a_liar_are_verified_next() -> None:
    world = world_of((), verify_every=3)
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
