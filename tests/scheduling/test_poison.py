"""Queries of death end three instances at most, and nobody fails with them."""

from random import Random
from typing import Any

import pytest

from histories import every_policy
from parity_models.roles import BACKUP, DEPLOYED
from parity_models.scheduling.actions import Reason, Run
from parity_models.scheduling.dispatch import RULES, Dispatch
from parity_models.scheduling.policies import Hedging
from scheduling_world import ORIGINALS, World, code, numbered, world_of

POLICIES = every_policy(0.001)


def poisoned(world: World, run: Run, poison: set[int]) -> bool:
    if run.role in (DEPLOYED, BACKUP):
        return not poison.isdisjoint(run.subjects)
    return any(not poison.isdisjoint(world.members.get(group, ())) for group in run.subjects)


def serve(world: World, random: Random, poison: set[int]) -> int:
    """Let instances finish, in any order, until all is over. Return how many the poison ended."""
    lost = 0
    for _ in range(20_000):
        if not world.running:
            break
        instance = random.choice(sorted(world.running))
        world.pass_time(0.0005)
        if instance not in world.running:
            continue
        if poisoned(world, world.running[instance], poison):
            lost += 1
            roles = world.roles[instance]
            world.leave(instance)
            world.join(f"{instance.split('.')[0]}.{lost}", roles)
        elif world.running[instance].unit in world.cancelled and random.random() < 0.5:
            world.fail(instance)  # as engines say of what they have ended
        else:
            world.finish(instance)
    return lost


@pytest.mark.parametrize(
    ("policy", "k", "r"),
    [(policy, 2, 1) for policy in POLICIES]
    + [(policy, k, r) for policy in ("parity", "adaptive") for k, r in ((2, 2), (3, 1))],
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("max_batch", [1, 4])
def test_query_of_death_fails_alone(policy: str, k: int, r: int, rule: str, max_batch: int) -> None:
    for seed in range(10):
        random = Random(seed)
        built = POLICIES[policy](code(k, r))
        given: dict[str, Any] = {"max_batch": max_batch, "deadline": 100.0}
        instances = numbered(built.roles(6, 2))
        world = world_of(instances, built, code=code(k, r), dispatch=Dispatch(rule), **given)
        innocent = set(world.arrive(random.randrange(8)))
        (poison,) = world.arrive(1)
        innocent |= set(world.arrive(random.randrange(1, 20)))
        lost = serve(world, random, {poison})
        world.pass_time(1.0)
        # Where three shared batches can run it at once, it is tried alone for its mates' sake.
        assert lost <= 3 + (max_batch > 1 and (r > 1 or policy == "three copies"))
        assert not innocent & world.failures.keys()
        assert innocent <= world.answers.keys()
        if poison in world.failures:
            assert world.failures[poison].reason is Reason.POISON
        assert world.scheduler.pending == 0


def test_no_copy_runs_beside_a_suspect() -> None:
    world = world_of("0123", Hedging(Hedging.Options(hedge_delay=0.1, hedge_budget=1.0)))
    world.arrive(1)
    world.pass_time(0.15)
    first, second = world.running
    world.leave(first)
    assert set(world.running) == {second}, "it is not tried again beside its copy"
    world.leave(second)
    assert len(world.running) == 1
    world.pass_time(1.0)
    assert len(world.running) == 1


def test_a_query_is_excused_where_instances_were_broken_before_but_not_for_ever() -> None:
    world, lost = world_of("0", deadline=1000.0), 0
    (poison,) = world.arrive(1)
    while poison not in world.failures:
        world.fail(f"{lost}", 0.1)
        world.pass_time(0.2)
        world.join(f"{lost + 1}", ORIGINALS)
        assert world.running[f"{lost}"].subjects == (poison,)
        world.leave(f"{lost}")
        lost += 1
    assert 3 < lost <= 20, "others are refused after three"
    assert world.failures[poison].reason is Reason.POISON
    assert len(world.roles) == 1


@pytest.mark.slow
def test_random_kills_fail_nobody() -> None:
    random = Random(4)
    for policy in POLICIES:
        built = POLICIES[policy](code())
        world = world_of(numbered(built.roles(10, 4)), built, code=code(), max_batch=2)
        for step in range(3000):
            world.arrive(1)
            world.pass_time(0.001)
            for instance in list(world.running):
                if instance in world.running and random.random() < 0.7:
                    if random.random() < 0.01:
                        roles = world.roles[instance]
                        world.leave(instance)
                        world.join(f"{instance.split('.')[0]}.{step}", roles)
                    else:
                        world.finish(instance)
            world.log.clear()
        serve(world, random, set())
        assert not world.failures
