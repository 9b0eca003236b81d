"""Which instance each dispatch rule gives a unit to."""

from parity_models.scheduling import NoRedundancy, Scheduler
from parity_models.scheduling.dispatch import LatencyAware, PowerOfTwoChoices, RoundRobin
from scheduling_world import ORIGINALS, World


def test_round_robin_takes_turns_and_moves_what_waits_when_an_instance_leaves() -> None:
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


def test_power_of_two_choices_prefers_the_shorter_queue() -> None:
    world = World(Scheduler(NoRedundancy(), dispatch=PowerOfTwoChoices()))
    for instance in ("a", "b"):
        world.join(instance, ORIGINALS)
    world.arrive(2)
    assert set(world.running) == {"a", "b"}


def test_latency_aware_takes_the_recently_slow_last() -> None:
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
