"""A queue at each instance: a task is placed when it arrives."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from random import Random
from typing import Any

from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.dispatch.dispatch import (
    Dispatch,
    Queue,
    QueueKey,
    add_to,
    key_of,
    keys_of,
)
from parity_models.scheduling.work import Task


class InstanceQueues(Dispatch):
    """Tasks are placed at an instance on arrival and moved only if it leaves.

    Tasks that no instance up can run wait until one joins.
    """

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._queues: dict[str, dict[QueueKey, Queue]] = {}
        self._depths: dict[str, int] = {}
        self._where: dict[Task, str] = {}
        self._idle: dict[str, None] = {}
        self._ready: dict[str, None] = {}
        self._homeless: Queue = OrderedDict()

    @abstractmethod
    def _choose(self, suited: Sequence[str], key: QueueKey) -> str:
        """The instance to place a task at that goes into its queue `key`."""

    def join(self, instance: str, roles: frozenset[str], node: str | None) -> None:
        super().join(instance, roles, node)
        self._queues[instance] = {key: OrderedDict() for key in keys_of(roles)}
        self.idle(instance, 0.0)
        homeless, self._homeless = self._homeless, OrderedDict()
        self._place_again(homeless)

    def leave(self, instance: str) -> None:
        super().leave(instance)
        self._idle.pop(instance, None)
        self._ready.pop(instance, None)
        self._place_again(chain.from_iterable(self._queues.pop(instance).values()))

    def idle(self, instance: str, took: float, *, finished: bool = True) -> None:
        self._idle[instance] = None
        if any(self._queues[instance].values()):
            self._ready[instance] = None

    def occupy(self, instance: str) -> bool:
        if instance not in self._idle:
            return False
        del self._idle[instance]
        self._ready.pop(instance, None)
        return True

    def idle_for(self, role: str) -> int:
        if self.up(role) == len(self._roles):
            return len(self._idle)
        return sum(role in self._roles[instance] for instance in self._idle)

    def add(self, task: Task, *, first: bool = False) -> None:
        self._depths[task.role] = self._depths.get(task.role, 0) + 1
        suited = self._suited(task)
        if not suited:
            add_to(self._homeless, task, first=first)
            return
        if self._doubted:
            suited = self._without_doubted(suited)
        instance = self._choose(suited, key_of(task))
        self._where[task] = instance
        add_to(self._queues[instance][key_of(task)], task, first=first)
        if instance in self._idle:
            self._ready[instance] = None

    def remove(self, task: Task) -> None:
        instance = self._where.pop(task, None)
        queue = self._homeless if instance is None else self._queues[instance][key_of(task)]
        if task in queue:
            del queue[task]
            self._depths[task.role] -= 1

    def where(self, task: Task) -> str | None:
        return self._where.get(task) or super().where(task)

    def depths(self) -> dict[str, int]:
        return dict(self._depths)

    def depth(self, role: str) -> int:
        return self._depths.get(role, 0)

    def assign(self, max_batch: int) -> Iterator[tuple[str, list[Task]]]:
        ready, self._ready = self._ready, {}
        for instance in ready:
            batch = self._next_batch(instance, max_batch)
            if batch:
                del self._idle[instance]
                yield instance, batch
            elif any(self._queues[instance].values()):
                self._ready[instance] = None

    def _next_batch(self, instance: str, max_batch: int) -> list[Task]:
        needed = DEPLOYED in self._roles[instance] and len(self._idle) <= self.reserve
        for (preemptible, _, role), queue in self._queues[instance].items():
            batch = [] if preemptible and needed else self._take_batch(queue, instance, max_batch)
            if batch:
                for task in batch:
                    del self._where[task]
                self._depths[role] -= len(batch)
                return batch
        return []

    def _without_doubted(self, suited: Sequence[str]) -> Sequence[str]:
        """Those of the instances that are not doubted, if one of them has nothing to do."""
        trusted = [instance for instance in suited if instance not in self._doubted]
        free = any(i in self._idle and i not in self._ready for i in trusted)
        return trusted if free else suited

    def _load(self, instance: str, key: QueueKey) -> int:
        """How many tasks are ahead of a new one in this queue, the running unit included."""
        running = instance not in self._idle
        return running + sum(
            len(queue) for other, queue in self._queues[instance].items() if other <= key
        )

    def _place_again(self, tasks: Iterable[Task]) -> None:
        tasks = list(tasks)
        for task in tasks:
            self._where.pop(task, None)
            self._depths[task.role] -= 1
        for task in tasks:
            self.add(task)


class RoundRobin(InstanceQueues):
    """Instances take turns."""

    name = "round-robin"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._turns: dict[QueueKey, int] = {}

    def _choose(self, suited: Sequence[str], key: QueueKey) -> str:
        up = self._up[key[2]]
        turn = self._turns.get(key, 0)
        while up[turn % len(up)] not in suited:
            turn += 1
        self._turns[key] = turn + 1
        return up[turn % len(up)]


class PowerOfTwoChoices(InstanceQueues):
    """Of two instances drawn at random, the one with less to do.

    (Mitzenmacher, The power of two choices in randomized load balancing, IEEE TPDS 2001.)
    """

    name = "two-choices"

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._random = Random(0)

    def _choose(self, suited: Sequence[str], key: QueueKey) -> str:
        if len(suited) == 1:
            return suited[0]
        first, second = self._random.sample(suited, 2)
        return first if self._load(first, key) <= self._load(second, key) else second
