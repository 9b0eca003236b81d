"""Simulated cores are shared in equal parts by all that compute on them."""

import heapq
from collections.abc import Callable
from functools import partial
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity_models.roles import DEPLOYED
from parity_models.scheduling.choice import PolicyChoice
from parity_models.scheduling.policies import StandIns
from parity_models.simulation.arrivals import poisson_arrivals
from parity_models.simulation.emulation import (
    Constant,
    Exponential,
    FaultPlan,
    Kill,
    LogNormal,
    Pauses,
)
from parity_models.simulation.simulation import FAILED, Simulation, SimulationResult
from parity_models_lab.latency.cores import Cores, DriverOnCores, Processor, Thread


class Calendar:
    """Callbacks by time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0

    def at(self, time: float, happens: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._entries, (max(time, self.now), self._order, happens))

    def run(self, until: float = 1e9) -> None:
        while self._entries and self._entries[0][0] <= until:
            self.now, _, happens = heapq.heappop(self._entries)
            happens()


Work = tuple[float, float, float | None]
"""The start, the amount, and the time until it is stopped, if it is."""

WORK = st.lists(
    st.tuples(st.floats(0, 2), st.floats(0.01, 1), st.none() | st.floats(0.01, 1)),
    min_size=1,
    max_size=8,
)


def ends_of(cores: int, works: list[Work]) -> list[float | None]:
    """Return the time at which each is done on so many cores; None if it is stopped first."""
    calendar = Calendar()
    computing = Processor(cores, inf, calendar.at)
    ends: list[float | None] = [None] * len(works)

    def start(i: int) -> None:
        def done(now: float) -> None:
            ends[i] = now

        job = computing.start(calendar.now, works[i][1], done)
        after = works[i][2]
        if after is not None:
            calendar.at(calendar.now + after, lambda: computing.stop(calendar.now, job))

    for i, (begin, _, _) in enumerate(works):
        calendar.at(begin, partial(start, i))
    calendar.run()
    return ends


def expected(cores: int, works: list[Work], step: float = 1e-3) -> list[float | None]:
    """The same in small steps."""
    left = [work for _, work, _ in works]
    ends: list[float | None] = [None] * len(works)
    time = 0.0
    while time < 20:
        there = [
            i
            for i, (begin, _, after) in enumerate(works)
            if begin <= time and left[i] > 0 and (after is None or time < begin + after)
        ]
        for i in there:
            left[i] -= step * min(1.0, cores / len(there))
            if left[i] <= 0:
                ends[i] = time + step
        time += step
    return ends


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), WORK)
def test_all_that_compute_have_equal_parts(cores: int, works: list[Work]) -> None:
    for found, wanted in zip(ends_of(cores, works), expected(cores, works), strict=True):
        if found is None or wanted is None:
            continue  # stopped, or at the very time at which it would be done
        assert found == pytest.approx(wanted, abs=0.02)


def test_a_thread_does_one_thing_at_a_time() -> None:
    calendar = Calendar()
    computing = Processor(2, inf, calendar.at)
    server = Thread(computing)
    ended: dict[str, float] = {}
    computing.start(0.0, 1.0, lambda now: ended.update(unit=now))
    server.do(0.0, 1.0, lambda now: ended.update(served=now))
    server.do(0.0, 0.5, lambda now: ended.update(afterwards=now))
    calendar.run()
    expected = {"unit": 1.0, "served": 1.0, "afterwards": 1.5}
    assert ended == {what: pytest.approx(at) for what, at in expected.items()}


def test_a_quota_stops_all_until_the_next_period() -> None:
    calendar = Calendar()
    computing = Processor(2, 0.5, calendar.at)
    ended: list[float] = []
    for _ in range(2):  # 5 ms of a core are given every 10 ms: 2.5 ms for each of the two
        computing.start(0.0, 0.004, ended.append)
    calendar.run(until=1)
    assert ended == [pytest.approx(0.0115)] * 2


def simulated(
    policy: str, cores: Cores | None, faults: FaultPlan | None = None
) -> SimulationResult:
    simulation = Simulation(
        poisson_arrivals(*((40, 1000) if faults else (100, 3000)), seed=1),
        4,
        2,
        {DEPLOYED: LogNormal(0.02, 0.3), "backup": Constant(0.005)},
        faults or FaultPlan(),
        overhead=0.0004,
        seed=3,
        warm_up=100,
    )
    built = PolicyChoice(policy).build(StandIns(None, policy == "adaptive"))
    driver = None if cores is None else partial(DriverOnCores, cores, None)
    return simulation.run(*built, driver=driver)


POLICIES = ("equal-resources", "hedging", "adaptive")


@pytest.mark.parametrize("policy", POLICIES)
def test_with_a_core_for_everyone_all_is_as_if_there_were_none(policy: str) -> None:
    alone = simulated(policy, None)
    shared = simulated(policy, Cores(6, 0.0, 0.0, computing=True))
    found, wanted = (np.quantile(each.latencies, (0.1, 0.5, 0.9, 0.99)) for each in (shared, alone))
    np.testing.assert_allclose(found, wanted, rtol=0.02)
    assert shared.units[DEPLOYED] == pytest.approx(alone.units[DEPLOYED], rel=0.02)
    assert shared.busy[DEPLOYED] == pytest.approx(alone.busy[DEPLOYED], rel=0.02)


@pytest.mark.parametrize("policy", POLICIES)
def test_under_pauses_and_kills_next_to_all_queries_are_answered(policy: str) -> None:
    faults = FaultPlan(
        seed=5,
        service_time=Exponential(0.01),
        computing=True,
        pauses=Pauses(2.0, Exponential(0.1)),
        kills=tuple(Kill(worker, 5.0 + 4.0 * worker) for worker in range(6)),
    )
    cores = Cores(2, 0.001, 0.0005, computing=True)
    result = simulated(policy, cores, faults)
    failed = result.sources == FAILED
    assert failed.mean() < 0.01
    assert (result.latencies[~failed] > 0).all()
    again = simulated(policy, cores, faults)
    np.testing.assert_array_equal(result.latencies, again.latencies)
