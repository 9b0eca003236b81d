"""Units that hang are told from units that are slow, before their queries expire."""

from typing import Any

import pytest

from parity_models.roles import DEPLOYED
from parity_models.scheduling.actions import Reason, RecycleReason
from parity_models.scheduling.policies import EqualResources
from parity_models.scheduling.work import SchedulerConfig
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.emulation import (
    Constant,
    Exponential,
    FaultPlan,
    LogNormal,
    Pauses,
    Shuffles,
    Slowdowns,
    Uniform,
)
from parity_models.simulation.simulation import Simulation
from scheduling_world import ORIGINALS, World, world_of


def experienced(instances: int, seconds: float = 0.01, **config: Any) -> World:
    """Instances that have run units that took so long."""
    world = world_of(map(str, range(instances)), **config)
    for _ in range(120):
        world.arrive(instances)
        while world.running:
            world.pass_time(seconds)
            world.finish_running()
    return world


@pytest.mark.parametrize(
    ("seconds", "deadline"), [(1.0, 10.0), (0.01, 10.0), (0.01, 1.2), (0.01, 1.0), (0.01, 0.6)]
)
def test_it_is_told_before_its_query_expires(seconds: float, deadline: float) -> None:
    world = experienced(4, seconds=seconds, deadline=deadline)
    (query,) = world.arrive(1)
    world.pass_time(0.97 * deadline)
    ((hung, action),) = world.recycled.items()
    assert action.reason is RecycleReason.HUNG
    world.leave(hung)
    world.finish(next(iter(world.running)))
    assert query in world.answers


def test_no_unit_has_hung_within_half_a_second_or_while_run_times_are_unknown() -> None:
    world = experienced(4, deadline=0.1)
    world.arrive(1)
    world.pass_time(0.5)
    assert not world.recycled
    world = world_of("ab")
    world.arrive(2)
    world.pass_time(30.0)
    assert not world.recycled


@pytest.mark.parametrize("instances", [1, 2, 3, 8])
def test_at_most_half_of_the_instances_are_replaced_however_many_hang(instances: int) -> None:
    world = experienced(instances, deadline=1000.0)
    world.arrive(instances)
    world.pass_time(100.0)
    assert len(world.recycled) == instances // 2
    for instance in list(world.recycled):
        world.leave(instance)
    world.pass_time(10.0)
    assert not world.recycled, "those that left are not back yet"


def test_unit_that_finished_during_a_stall_has_not_hung() -> None:
    world = experienced(4)
    world.arrive(4)
    world.now += 5.0  # nothing was reported meanwhile, timers included
    world.wake_at = None
    world.do(world.scheduler.time_passed(world.now))
    world.finish_running()
    world.pass_time(5.0)
    assert not world.recycled
    assert not world.failures


def test_a_query_that_hangs_two_instances_has_the_second_until_its_deadline() -> None:
    world = experienced(8)
    (query,) = world.arrive(1)
    lost = 0
    for life in range(10):
        for instance in list(world.recycled):
            lost += 1
            world.leave(instance)
            world.join(f"again-{life}", ORIGINALS)
        world.pass_time(1.5)
    assert world.failures[query].reason is Reason.DEADLINE_EXCEEDED
    assert lost + len(world.recycled) == 2, "the second, once the deadline is over"


class Kinds:
    """Serves short and long queries of one model; those `hung` never end."""

    def __init__(self, short: float, long: float, instances: int = 4, **config: Any) -> None:
        self.world = world_of(map(str, range(instances)), **config)
        self.took = {"short": short, "long": long}
        self.hung: set[int] = set()
        self.kinds: dict[int, str] = {}
        self.began: dict[int, float] = {}
        self.lost: list[tuple[str, float]] = []
        """Instances that were replaced: the kind of query, and how long it had run."""

    def arrive(self, kind: str) -> int:
        (query,) = self.world.arrive(1, kind)
        self.kinds[query] = kind
        return query

    def serve(self, seconds: float) -> None:
        """Let time pass; units end when they should, and what is recycled is back at once."""
        world, end = self.world, self.world.now + seconds
        while world.now < end:
            for instance, run in list(world.running.items()):
                began = self.began.setdefault(run.unit, world.now)
                (query,) = run.subjects
                if instance in world.recycled:
                    self.lost.append((self.kinds[query], world.now - began))
                    world.leave(instance)
                    world.join(f"{instance.split('.')[0]}.{run.unit}", ORIGINALS)
                elif query not in self.hung and world.now >= began + self.took[self.kinds[query]]:
                    world.finish(instance)
            world.pass_time(self.took["short"])
            world.log.clear()


@pytest.mark.parametrize("ratio", [10, 100])
def test_a_rare_and_long_kind_of_query_is_not_taken_for_a_hang(ratio: int) -> None:
    served = Kinds(0.03, 0.03 * ratio)
    for _ in range(4):
        for _ in range(600):
            served.arrive("short")
            served.serve(0.03)
        for _ in range(3):
            served.arrive("long")
            served.serve(4.0)
    assert not served.lost
    assert len(served.world.answers) == served.world.arrived


@pytest.mark.parametrize(("kind", "seconds"), [("short", 0.5), ("long", 3.0)])
def test_a_hang_is_found_in_three_times_what_its_kind_takes(kind: str, seconds: float) -> None:
    served = Kinds(0.5, 3.0, deadline=20.0)
    for _ in range(25):
        served.arrive("short")
        served.arrive("long")
        served.serve(3.5)
    hung = served.arrive(kind)
    served.hung.add(hung)
    for _ in range(30):
        served.serve(0.5)
        served.arrive("short")
    ((found, after),) = served.lost[:1]
    assert found == kind
    assert after <= max(3 * seconds, 2.0)


MILDER = {
    "shuffles and slowdowns": FaultPlan(
        seed=1,
        shuffles=Shuffles(4, 12, Exponential(1.0), Uniform(0.02, 0.06)),
        slowdowns=Slowdowns(4.0, 1.0, Uniform(0.02, 0.06)),
        service_time=LogNormal(0.02, 0.1),
    ),
    "10 times as slow for long": FaultPlan(seed=1, slowdowns=Slowdowns(20.0, 20.0, Constant(0.2))),
    "pauses": FaultPlan(seed=1, pauses=Pauses(10.0, Exponential(0.1))),
    "wild run times": FaultPlan(seed=1, service_time=LogNormal(0.02, 1.0)),
}


@pytest.mark.parametrize("plan", MILDER)
@pytest.mark.slow
def test_slow_instances_are_not_replaced(plan: str) -> None:
    simulation = Simulation(
        arrivals=poisson_arrivals(60.0, 20_000, seed=2),
        instances=12,
        extra_instances=0,
        service={DEPLOYED: Constant(0.02)},
        faults=MILDER[plan],
        config=SchedulerConfig(deadline=10.0),
    )
    assert not simulation.run(EqualResources()).recycled
