"""Redundancy is judged by what it does, kept to a budget, and not blamed on a slow server."""

from random import Random

import pytest

from adaptive_world import BACKUPS, SOME_SLOW, run_times, world_of
from parity_models.roles import BACKUP, DEPLOYED
from parity_models.scheduling.core import Scheduler
from parity_models.scheduling.effect import FIRST_PAUSE, Effect
from parity_models.scheduling.policies import Adaptive, Redundancy

LIMIT = 1.0


class Stream:
    """Queries at 100 a second, a share of which is late: by whether they are helped."""

    def __init__(self, late_helped: float, late_alone: float) -> None:
        self.effect = Effect()
        self.now = 0.0
        self.late = {True: late_helped, False: late_alone}
        self.helped = 0
        self._random = Random(1)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            self.now += 0.01
            acts = self.now >= self.effect.acts_from
            group = self.effect.arrived(self.now) if acts else 0
            helps = self.effect.helps_from(group, self.now) <= self.now
            self.helped += helps
            late = self._random.random() < self.late[helps]
            self.effect.ended(self.now, group, 2 * LIMIT if late else 0.0, LIMIT)

    def until(self, state: Redundancy, within: float) -> None:
        """Run until this state, for so many seconds at most."""
        began = self.now
        while self.effect.state is not state:
            assert self.now < began + within, f"still {self.effect.state} after {within} s"
            self.run(0.01)


def test_on_a_machine_that_cannot_keep_up_redundancy_stops_at_once() -> None:
    stream = Stream(0.9, 0.9)
    stream.until(Redundancy.PAUSED, within=5)
    stream.late = {True: 0.002, False: 0.002}
    stream.until(Redundancy.ON, within=60)


@pytest.mark.parametrize(
    ("helped", "alone", "within", "after"),
    [(0.1, 0.1, 120, LIMIT), (0.3, 0.1, 10, LIMIT), (0.9, 0.9, 5, FIRST_PAUSE)],
)
def test_harmful_redundancy_stops_in_time_and_then_only_late_queries_are_helped(
    helped: float, alone: float, within: float, after: float
) -> None:
    stream = Stream(helped, alone)
    stream.until(Redundancy.PAUSED, within)
    assert stream.effect.helps_from(0, stream.now) == pytest.approx(stream.now + after, abs=0.1)


def test_redundancy_that_helps_some_goes_on_though_most_are_late() -> None:
    stream = Stream(0.6, 0.95)
    stream.run(600)
    assert stream.helped > 0.97 * 60_000


@pytest.mark.parametrize("late", [0.05, 0.5, 1.0])
def test_redundancy_that_makes_no_difference_is_sent_ever_more_seldom(late: float) -> None:
    stream = Stream(late, late)
    shares = []
    for _ in range(3):
        before = stream.helped
        stream.run(600)
        shares.append((stream.helped - before) / 60_000)
    if late == 1.0:  # as by an adversary
        assert shares[-1] < 0.02
    assert shares[-1] < 0.5  # where all is chance, about half of the tests say so


def slow_server(world_now: float, scheduler: Scheduler, lag: float, busy: float = 0.5) -> None:
    for step in range(1000):
        scheduler.process_measured(world_now + step / 1000, lag, busy)


def test_a_server_that_is_its_own_bottleneck_sends_nothing_redundant() -> None:
    policy = Adaptive(BACKUPS, runs=run_times(*SOME_SLOW))
    scheduler = Scheduler(policy)
    for instance in "abc":
        scheduler.instance_joined(0.0, instance, policy.roles(1, 0)[0])
    slow_server(0.0, scheduler, 0.5)
    assert scheduler.redundancy.value == "bottleneck"
    scheduler.queries_arrived(1.0, [1], "kind")
    scheduler.time_passed(6.0)
    assert scheduler.queued(BACKUP) == 0
    assert sum(unit is not None for unit in scheduler.running().values()) == 1
    slow_server(6.0, scheduler, 0.0)
    assert scheduler.redundancy.value == "on"


def test_a_server_that_only_waits_for_a_processor_is_no_bottleneck() -> None:
    scheduler = Scheduler(Adaptive(BACKUPS, runs=run_times(*SOME_SLOW)))
    slow_server(0.0, scheduler, 0.5, busy=0.2)
    assert scheduler.redundancy.value == "on"
    slow_server(1.0, scheduler, 0.0, busy=0.95)
    assert scheduler.redundancy.value == "bottleneck"


def test_reports_wait_long_if_they_wait_a_tenth_of_a_models_run_not_of_a_stand_ins() -> None:
    world = world_of(stand_ins=BACKUPS, doubts=[0.0] * 400)
    for role, seconds in ((DEPLOYED, 1.0), (BACKUP, 0.001)):
        for _ in range(300):
            world.arrive(1, exact=role == DEPLOYED)
            world.pass_time(seconds)
            for name in [name for name, run in world.running.items() if run.role == role]:
                world.finish(name)
    slow_server(world.now, world.scheduler, 0.05)
    assert world.scheduler.redundancy.value == "on"
    slow_server(world.now, world.scheduler, 0.15)
    assert world.scheduler.redundancy.value == "bottleneck"


def test_redundancy_can_be_switched_off_and_on_while_it_serves() -> None:
    world = world_of(stand_ins=BACKUPS)
    world.scheduler.redundancy_switched(world.now, False)
    assert world.scheduler.redundancy is Redundancy.OFF
    world.arrive(1)
    world.pass_time(4.0)
    assert [run.role for run in world.running.values()] == [DEPLOYED]
    world.scheduler.redundancy_switched(world.now, True)
    world.arrive(1)
    world.pass_time(4.0)
    assert BACKUP in [run.role for run in world.running.values()]
