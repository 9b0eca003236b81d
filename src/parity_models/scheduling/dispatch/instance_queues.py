"""A queue at each instance: a task is placed when it arrives."""

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from random import Random

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

    def __init__(self) -> None:
        super().__init__()
        self._queues: dict[str, dict[QueueKey, Queue]] = {}
        self._up: dict[str, list[str]] = {}
        self._depths: dict[str, int] = {}
        self._where: dict[Task, str] = {}
        self._idle: dict[str, None] = {}
        self._ready: dict[str, None] = {}
        self._homeless: Queue = OrderedDict()

    @abstractmethod
    def _choose(self, candidates: Sequence[str], key: QueueKey) -> str:
        """The instance to place a task at that goes into its queue `key`."""

    def join(self, instance: str, works: frozenset[str]) -> None:
        super().join(instance, works)
        self._queues[instance] = {key: OrderedDict() for key in keys_of(works)}
        for work in works:
            self._up.setdefault(work, []).append(instance)
        self.idle(instance, 0.0)
        self._place_again(self._homeless)

    def leave(self, instance: str) -> None:
        for work in self._works[instance]:
            self._up[work].remove(instance)
        super().leave(instance)
        self._idle.pop(instance, None)
        self._ready.pop(instance, None)
        for queue in self._queues.pop(instance).values():
            self._place_again(queue)

    def idle(self, instance: str, took: float) -> None:
        self._idle[instance] = None
        if any(self._queues[instance].values()):
            self._ready[instance] = None

    def add(self, task: Task, *, first: bool = False) -> None:
        self._depths[task.work] = self._depths.get(task.work, 0) + 1
        up = self._up.get(task.work, [])
        if not up:
            add_to(self._homeless, task, first=first)
            return
        if task.failed_on:
            up = [instance for instance in up if instance not in task.failed_on] or up
        instance = self._choose(up, key_of(task))
        self._where[task] = instance
        add_to(self._queues[instance][key_of(task)], task, first=first)
        if instance in self._idle:
            self._ready[instance] = None

    def remove(self, task: Task) -> None:
        instance = self._where.pop(task, None)
        queue = self._homeless if instance is None else self._queues[instance][key_of(task)]
        if task in queue:
            del queue[task]
            self._depths[task.work] -= 1

    def placed(self, task: Task) -> bool:
        return task in self._where

    def depths(self) -> dict[str, int]:
        return dict(self._depths)

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
        needed = DEPLOYED in self._works[instance] and len(self._idle) <= self.reserve
        for (spare, _, work), queue in self._queues[instance].items():
            batch = [] if spare and needed else self._take_batch(queue, instance, max_batch)
            if batch:
                for task in batch:
                    del self._where[task]
                self._depths[work] -= len(batch)
                return batch
        return []

    def _load(self, instance: str, key: QueueKey) -> int:
        """How many tasks are ahead of a new one in this queue, the running unit included."""
        running = instance not in self._idle
        return running + sum(
            len(queue) for other, queue in self._queues[instance].items() if other <= key
        )

    def _place_again(self, queue: Queue) -> None:
        tasks = list(queue)
        queue.clear()
        for task in tasks:
            self._where.pop(task, None)
            self._depths[task.work] -= 1
            self.add(task)


class RoundRobin(InstanceQueues):
    """Instances take turns."""

    def __init__(self) -> None:
        super().__init__()
        self._turns: dict[QueueKey, int] = {}

    def _choose(self, candidates: Sequence[str], key: QueueKey) -> str:
        turn = self._turns.get(key, 0)
        self._turns[key] = turn + 1
        return candidates[turn % len(candidates)]


class PowerOfTwoChoices(InstanceQueues):
    """Of two instances drawn at random, the one with less to do.

    (Mitzenmacher, The power of two choices in randomized load balancing, IEEE TPDS 2001.)
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = Random(seed)

    def _choose(self, candidates: Sequence[str], key: QueueKey) -> str:
        if len(candidates) == 1:
            return candidates[0]
        first, second = self._random.sample(candidates, 2)
        return first if self._load(first, key) <= self._load(second, key) else second
