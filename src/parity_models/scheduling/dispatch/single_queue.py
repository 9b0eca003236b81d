"""One queue for all: an idle instance takes the oldest tasks it can run."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from math import inf
from typing import Any

from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.dispatch.dispatch import (
    Dispatch,
    Queue,
    QueueKey,
    add_to,
    key_of,
)
from parity_models.scheduling.work import Task

Idle = list[tuple[float, int, str]]
"""A heap of idle instances: rank (lowest takes first), since when, name."""


class SingleQueue(Dispatch):
    """One queue per role; the instance that has been idle longest takes from it.

    The default, and the paper's (Kosaian et al., SOSP 2019, section 5.1): a slow instance
    takes little, and no query waits behind another on a busy instance while one is idle.
    """

    name = "single-queue"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._queues: dict[QueueKey, Queue] = {}
        self._idle: dict[frozenset[str], Idle] = {}
        self._turn = 0

    def join(self, instance: str, roles: frozenset[str], node: str | None) -> None:
        super().join(instance, roles, node)
        self._add_idle(instance, 0.0)

    def leave(self, instance: str) -> None:
        self.occupy(instance)
        super().leave(instance)

    def idle(self, instance: str, took: float, *, finished: bool = True) -> None:
        self._add_idle(instance, 0.0)

    def occupy(self, instance: str) -> bool:
        idle = self._idle[self._roles[instance]]
        others = [entry for entry in idle if entry[2] != instance]
        if len(others) == len(idle):
            return False
        heapq.heapify(others)
        self._idle[self._roles[instance]] = others
        return True

    def trust(self, instance: str) -> None:
        super().trust(instance)
        if instance in self._roles and self.occupy(instance):
            self.idle(instance, 0.0, finished=False)

    def idle_for(self, role: str) -> int:
        count = 0
        for roles, idle in self._idle.items():
            if role in roles:
                count += len(idle)
        return count

    def add(self, task: Task, *, first: bool = False) -> None:
        queue = self._queues.get(key_of(task))
        if queue is None:
            queue = OrderedDict()
            self._queues = dict(sorted([*self._queues.items(), (key_of(task), queue)]))
        add_to(queue, task, first=first)

    def remove(self, task: Task) -> None:
        self._queues[key_of(task)].pop(task, None)

    def depths(self) -> dict[str, int]:
        depths: dict[str, int] = {}
        for (_, _, role), queue in self._queues.items():
            depths[role] = depths.get(role, 0) + len(queue)
        return depths

    def depth(self, role: str) -> int:
        count = 0
        for key, queue in self._queues.items():
            if key[2] == role:
                count += len(queue)
        return count

    def assign(self, max_batch: int) -> Iterator[tuple[str, list[Task]]]:
        if not any(self._idle.values()):
            return
        for key, queue in self._queues.items():
            while queue:
                assigned = self._assign_one(key, queue, max_batch)
                if assigned is None:
                    break
                yield assigned

    def _may_run(self, task: Task, instance: str) -> bool:
        beside = self.nodes and self._node[instance] in self._nodes_of(self._taken(task))
        if beside or instance in task.failed_on or instance in task.avoid:
            return self._is_suited(task, instance)
        return True

    def _add_idle(self, instance: str, rank: float) -> None:
        self._turn += 1
        rank = inf if instance in self._doubted else rank
        idle = self._idle.setdefault(self._roles[instance], [])
        heapq.heappush(idle, (rank, self._turn, instance))

    def _assign_one(
        self, key: QueueKey, queue: Queue, max_batch: int
    ) -> tuple[str, list[Task]] | None:
        preemptible, _, role = key
        for roles, idle in self._idle.items():
            if not idle or role not in roles or (preemptible and self._needed(roles)):
                continue
            passed = []
            batch: list[Task] = []
            while idle and not batch:
                entry = heapq.heappop(idle)
                batch = self._take_batch(queue, entry[2], max_batch)
                if not batch:
                    passed.append(entry)
            for other in passed:
                heapq.heappush(idle, other)
            if batch:
                return entry[2], batch
        return None

    def _needed(self, roles: frozenset[str]) -> bool:
        """Are all idle instances with these roles kept for originals?"""
        if DEPLOYED not in roles:
            return False
        return self.idle_for(DEPLOYED) <= self.reserve


class LatencyAware(SingleQueue):
    """A single queue from which recently slow instances take last.

    Each instance's recent service time is an exponentially weighted mean; of the idle
    instances the fastest takes next, so slow ones are used only when nothing else is free. A unit
    that failed or was cancelled has only taken so long at least: it can make an instance slower.
    After outlier ejection in load balancers and the latency signal of Prequal (Wydrowski et
    al., Load is not what you should balance, NSDI 2024).
    """

    name = "latency-aware"

    WEIGHT = 0.3
    """Of the newest service time in the mean."""

    SCARCE, ALIKE = 3, 1.25
    """Idle instances are scarce while they are at most SCARCE times as many as must be kept idle.
    Then a preemptible task may take the fastest only if those left are at most ALIKE times slower.
    """

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._mean: dict[str, float] = {}

    def leave(self, instance: str) -> None:
        super().leave(instance)
        self._mean.pop(instance, None)

    def idle(self, instance: str, took: float, *, finished: bool = True) -> None:
        mean = self._mean.get(instance)
        if finished and mean is None:
            self._mean[instance] = took
        elif mean is not None and (finished or took > mean):
            self._mean[instance] = mean + self.WEIGHT * (took - mean)
        self._add_idle(instance, self._mean.get(instance, 0.0))

    def _needed(self, roles: frozenset[str]) -> bool:
        if DEPLOYED not in roles or super()._needed(roles):
            return DEPLOYED in roles
        heaps = [idle for roles, idle in self._idle.items() if DEPLOYED in roles]
        if sum(map(len, heaps)) > self.SCARCE * self.reserve:
            return False
        ranks = sorted(entry[0] for idle in heaps for entry in idle)
        return ranks[self.reserve] > self.ALIKE * ranks[0]
