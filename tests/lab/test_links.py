"""Simulated links: queries wait in the queue that traffic fill, are lost in it, and arrive."""

from itertools import takewhile
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from parity_models_lab.contention import QUEUE, RATE, Leg, Traffic, legs
from parity_models_lab.latency.link import Link

BYTES = 50_000
FULL = QUEUE * 8 / RATE
"""Seconds that a full queue takes."""


def link(shuffles: int = 1, seed: int = 1) -> Link:
    return Link(Traffic(shuffles, 2, seed), 0, seed)


def delays(seconds: float = 60.0, seed: int = 1) -> list[tuple[float, float]]:
    """(time, delay) of queries of 50 kB to one of two machines with one transfer between them."""
    way, rng = link(seed=seed), Random(seed)
    now, found = 0.0, []
    while now < seconds:
        there = way.arrival(now, BYTES)
        found.append((now, there - now))
        now = there + 0.025 + rng.expovariate(25)
    return found


def coming_in(at: float, machine: int = 0, seed: int = 1) -> Leg | None:
    """The leg to the machine at this time, of the one lane."""
    course = takewhile(lambda leg: leg.start <= at, legs(2, seed, 0))
    return next((leg for leg in course if leg.target == machine and at < leg.end), None)


def test_a_query_alone_on_its_link_is_there_at_once() -> None:
    way = link(shuffles=0)
    assert [way.arrival(now, BYTES) - now for now in (0.0, 1.0, 2.0)] == [0.0, 0.0, 0.0]


def test_queries_wait_where_a_transfer_comes_in_and_nowhere_else() -> None:
    beside, apart = [], []
    for at, delay in delays():
        leg = coming_in(at)
        if leg is None:
            apart.append(delay)
        elif at > leg.start + 0.1:
            beside.append(delay)
    assert np.median(apart) == 0.0
    assert np.quantile(apart, 0.98) <= FULL, "what the last transfer has left is served"
    assert min(beside) > 0.5 * FULL
    assert np.quantile(beside, 0.5) < 2 * FULL


def test_losses_make_a_tail_that_is_many_times_the_queue() -> None:
    found = [delay for seed in range(5) for _, delay in delays(seed=seed)]
    assert 0.005 < np.mean(np.array(found) > 3 * FULL) < 0.1
    assert np.quantile(found, 0.999) > 5 * FULL


@given(
    seed=st.integers(0, 1000),
    shuffles=st.integers(1, 12),
    queries=st.lists(st.tuples(st.floats(0, 3), st.integers(1, 500_000)), min_size=1, max_size=30),
)
def test_every_query_arrives_in_order(
    seed: int, shuffles: int, queries: list[tuple[float, int]]
) -> None:
    traffic = Traffic(shuffles, 3, seed)
    ways = [Link(traffic, machine, seed) for machine in range(3)]
    now = 0.0
    for gap, size in queries:
        now += gap
        for way in ways:
            there = way.arrival(now, size)
            assert now <= there < now + 600
        now = there
