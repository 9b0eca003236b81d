"""Overload, for tests: a scheduler under more queries than its instances can run."""

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from parity_models.scheduling import (
    Action,
    Answer,
    Fail,
    Policy,
    Reason,
    Run,
    Scheduler,
    SchedulerConfig,
    WakeAt,
)

REFUSALS = (Reason.OVERLOADED, Reason.NO_INSTANCES)


@dataclass
class Overload:
    """Poisson arrivals at `times` capacity for `seconds`, then at half of it for `calm`.

    Engines cannot stop a unit that runs: a cancelled one runs to its end. All times in seconds.
    """

    policy: Policy
    times: float
    deadline: float
    seconds: float = 20.0
    calm: float = 3.0
    instances: int = 4
    service: float = 0.01
    jitter: float = 0.3
    max_batch: int = 1
    seed: int = 0
    in_time: int = 0
    largest: int = 0
    arrived: dict[int, float] = field(default_factory=dict)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """When an admitted query arrived, and how long it took, failed ones as well."""
    failures: Counter[Reason] = field(default_factory=Counter)
    retries: list[float] = field(default_factory=list)
    calm_failures: int = 0

    def run(self) -> "Overload":
        random = Random(self.seed)
        config = SchedulerConfig(max_batch=self.max_batch, deadline=self.deadline)
        scheduler = Scheduler(self.policy, config)
        calendar: list[tuple[float, int, Callable[[], list[Action]]]] = []
        now = 0.0
        number = 0
        wake_at: float | None = None

        def at(time: float, event: Callable[[], list[Action]]) -> None:
            nonlocal number
            number += 1
            heapq.heappush(calendar, (time, number, event))

        def arrive(query: int) -> list[Action]:
            calm = now > self.seconds
            if now < self.seconds + self.calm:
                rate = (0.5 if calm else self.times) * self.capacity
                at(now + random.expovariate(rate), partial(arrive, query + 1))
            self.arrived[query] = now
            return scheduler.queries_arrived(now, [query], "kind")

        def wake(time: float) -> list[Action]:
            nonlocal wake_at
            if time != wake_at:
                return []
            wake_at = None
            return scheduler.time_passed(now)

        def do(action: Action) -> None:
            nonlocal wake_at
            match action:
                case Run(unit=unit, subjects=subjects):
                    takes = self.service * random.uniform(1 - self.jitter, 1 + self.jitter)
                    takes *= (1 + len(subjects)) / 2
                    at(now + takes, lambda: scheduler.unit_finished(now, unit))
                case WakeAt(time=time):
                    wake_at = time
                    at(time, partial(wake, time))
                case Answer(query=query):
                    self._ended(query, now, None)
                case Fail(query=query, reason=reason, retry_after=retry):
                    self._ended(query, now, reason)
                    if retry is not None:
                        self.retries.append(retry)

        for number_, roles in enumerate(self.policy.roles(self.instances, 0)):
            scheduler.instance_joined(0.0, f"{number_}", roles)
        at(0.001, partial(arrive, 0))
        while calendar:
            now, _, event = heapq.heappop(calendar)
            for action in event():
                do(action)
            self.largest = max(self.largest, scheduler.size())
        return self

    @property
    def capacity(self) -> float:
        """Queries a second, if all batches are full."""
        return self.instances * self.max_batch / (self.service * (1 + self.max_batch) / 2)

    @property
    def goodput(self) -> float:
        """The share of capacity that was answered in time, while there was overload."""
        return self.in_time / (self.seconds * self.capacity)

    def p99(self, since: float = 0.0) -> float:
        """Of the admitted queries that arrived since then."""
        ranked = sorted(took for arrived, took in self.latencies if arrived >= since)
        return ranked[int(0.99 * len(ranked))]

    def _ended(self, query: int, now: float, reason: Reason | None) -> None:
        arrived = self.arrived.pop(query)
        if reason is None and now < self.seconds:
            self.in_time += now - arrived <= self.deadline
        elif reason is not None:
            self.failures[reason] += 1
            self.calm_failures += arrived > self.seconds + 1
        if reason not in REFUSALS:
            self.latencies.append((arrived, now - arrived))
