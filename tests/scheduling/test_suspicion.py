"""Instances that disagree with stand-ins more than others are suspected, and verified at once."""

from random import Random

import pytest

from parity_models.scheduling import (
    DEPLOYED,
    Parity,
    RecycleReason,
    Scheduler,
    SchedulerConfig,
    parity_role,
)
from parity_models.scheduling.dispatch import LatencyAware
from scheduling_world import BOTH, ORIGINALS, World, code
from verified_pool import pool, verify_all


def comparisons(
    world: World, random: Random, rates: dict[str, float], count: int
) -> dict[str, list[int]]:
    """Compare instances drawn at random, that disagree at these rates; when was each verified?"""
    verified: dict[str, list[int]] = {name: [] for name in rates}
    names = list(rates)
    for number in range(count):
        name = names[int(random.random() * len(names))]
        world.compare(name, agreed=random.random() >= rates[name])
        if name in world.verifying:
            verified[name].append(number)
            verify_all(world)
            world.log.clear()
    return verified


@pytest.mark.parametrize("instances", [2, 6, 50])
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_honest_instances_are_hardly_ever_suspected(instances: int, rate: float) -> None:
    world = pool(instances, verify_every=10**9)
    verify_all(world)
    rates = {f"{i}": rate for i in range(instances)}
    verified = comparisons(world, Random(1), rates, 30_000)
    assert sum(map(len, verified.values())) <= 1


@pytest.mark.parametrize("instances", [3, 6, 50])
def test_inputs_that_drift_make_nobody_suspected(instances: int) -> None:
    world = pool(instances, verify_every=10**9)
    verify_all(world)
    random, suspected = Random(2), 0
    for rate in [0.05, 0.6] * 20:
        rates = {f"{i}": rate for i in range(instances)}
        verified = comparisons(world, random, rates, 1000)
        suspected += sum(map(len, verified.values()))
    assert suspected <= 20, "once for each time that all of them got worse"


@pytest.mark.parametrize("instances", [2, 6, 50])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_another_models_weights_are_suspected_within_30_comparisons(
    instances: int, rate: float
) -> None:
    found = []
    for seed in range(9):
        world = pool(instances, verify_every=10**9)
        verify_all(world)
        random = Random(seed)
        rates = {f"{i}": rate for i in range(instances)}
        comparisons(world, random, rates, 1000)
        rates["0"] = 0.9
        verified = comparisons(world, random, rates, 60 * instances)
        assert verified["0"]
        found.append(verified["0"][0] / instances)
    assert sorted(found)[len(found) // 2] < 30


@pytest.mark.parametrize("batch", [1, 6, 64])
def test_verify_every_bounds_how_many_queries_a_liar_answers(batch: int) -> None:
    world = pool(6, verify_every=100, batch=batch)
    verify_all(world)
    lies = 0
    while "0" not in world.recycled:
        world.arrive(6 * batch)
        for instance in list(world.running):
            lies += len(world.running[instance].subjects) if instance == "0" else 0
            world.finish(instance)
        for instance in list(world.verifying):
            world.verify(instance, right=instance != "0")
        assert lies < 100 + batch


def test_a_liar_is_found_by_its_own_queries_of_which_it_gets_none_while_faster_ones_do() -> None:
    world = pool(2, verify_every=100, rule=LatencyAware)
    verify_all(world)
    ran = {"0": 0, "1": 0}

    def ask(queries: int) -> None:
        world.arrive(queries)
        for instance in sorted(world.running, reverse=True):
            ran[instance] += 1
            world.pass_time(0.1)
            world.finish(instance)
        for instance in list(world.verifying):
            world.verify(instance, right=instance != "0")

    ask(2)  # "0" takes twice as long
    for _ in range(3000):
        ask(1)
    assert ran == {"0": 1, "1": 3001}
    assert not world.recycled
    for _ in range(99):
        ask(2)
    assert world.recycled["0"].reason is RecycleReason.QUARANTINED
    assert ran["0"] == 100


def test_a_work_is_verified_after_so_many_queries_of_its_own() -> None:
    config = SchedulerConfig(verify_every=4)
    world = World(Scheduler(Parity(code()), config), code())
    world.join("a", ORIGINALS)
    world.join("b", BOTH)
    verify_all(world)
    seen = []
    for number in range(1, 9):
        world.arrive(2)
        while world.running or world.verifying:
            if "b" in world.verifying:
                seen.append((number, world.verifying["b"].role))
            if world.verifying:
                world.verify(max(world.verifying))
            else:
                world.finish(max(world.running))
    assert seen == [(number, role) for number in (4, 8) for role in (DEPLOYED, parity_role(0))]
