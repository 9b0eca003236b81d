"""The most that a server could answer to clients who soon give up, whatever its admission.

Clients that wait for little longer than a query runs leave no room for a queue: an instance that
ends a unit often finds nobody who could still be answered, and idles; and a query may run longer
than its client stays. So part of the capacity is lost to everybody. How much, is simulated: with
clients whose patience is known, an admission that costs nothing, and the better of two orders, at
the best of some limits of how long a query may have waited when it starts.
"""

import heapq
from collections import deque
from collections.abc import Callable
from random import Random

from parity_models.faults import LogNormal

LIMITS = (0.3, 0.45, 0.6, 0.75, 0.9)
"""How long a query may have waited, as shares of what its run leaves of its client's patience."""
SECONDS = 60.0
"""That are simulated for each of them."""


def best_goodput(
    factor: float, patience: float, capacity: float, instances: int, service: LogNormal
) -> float:
    """The largest share of `capacity` that can be answered within `patience` seconds, of Poisson
    arrivals at `factor` times it.

    `capacity`, in queries a second, is what the instances were found to do; what it leaves
    unexplained by their `service` times is taken for an overhead of each run.
    """
    mean = sum(service.draw(random) for random in [Random(0)] for _ in range(10_000)) / 10_000
    overhead = max(0.0, instances / capacity - mean)

    def draw(random: Random) -> float:
        return overhead + service.draw(random)

    room = max(0.0, patience - overhead - service.median)
    return max(
        _goodput(factor * capacity, patience, share * room, instances, draw, newest) / capacity
        for share in LIMITS
        for newest in (False, True)
    )


def _goodput(
    rate: float,
    patience: float,
    limit: float,
    instances: int,
    draw: Callable[[Random], float],
    newest: bool,
) -> float:
    """Queries a second that are answered within `patience`, none started after `limit`."""
    random = Random(1)
    waiting: deque[float] = deque()
    ends: list[tuple[float, bool]] = []  # of what runs, and whether somebody still waits for it
    idle, good = instances, 0
    arrives = random.expovariate(rate)
    while arrives < SECONDS:
        if ends and ends[0][0] <= arrives:
            now, in_time = heapq.heappop(ends)
            idle += 1
            good += in_time
        else:
            now = arrives
            waiting.append(now)
            arrives += random.expovariate(rate)
        while waiting and now - waiting[0] > limit:
            waiting.popleft()
        while idle and waiting:
            arrived = waiting.pop() if newest else waiting.popleft()
            end = now + draw(random)
            heapq.heappush(ends, (end, end <= arrived + patience))
            idle -= 1
    return good / SECONDS
