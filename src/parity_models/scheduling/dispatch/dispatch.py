"""What every dispatch rule has in common: who is up, what is queued, how a batch is filled."""

from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator

from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.work import Task

SCAN = 4
"""How many batches' worth of queued tasks are looked through to fill one batch."""

Queue = OrderedDict[Task, None]


class Dispatch(ABC):
    """Holds queued tasks and idle instances, and matches them.

    Work of the deployed model goes before all other work, and spare tasks last: they are taken
    only while more than `reserve` of the instances that run the deployed model are idle, so
    that queries about to arrive find one. One rule serves one scheduler.
    """

    reserve = 0

    def __init__(self) -> None:
        self._works: dict[str, frozenset[str]] = {}

    def instances_up(self) -> dict[str, int]:
        """How many instances are up, by work they can run."""
        return dict(Counter(work for works in self._works.values() for work in works))

    def join(self, instance: str, works: frozenset[str]) -> None:
        """An instance is up, and idle."""
        self._works[instance] = works

    def leave(self, instance: str) -> None:
        """An instance is gone, idle or not."""
        del self._works[instance]

    @abstractmethod
    def idle(self, instance: str, took: float) -> None:
        """The instance has nothing to do; its last unit took this many seconds."""

    @abstractmethod
    def add(self, task: Task, *, first: bool = False) -> None:
        """Queue a task, `first` at the head."""

    @abstractmethod
    def remove(self, task: Task) -> None:
        """Take a queued task out; one that is not queued is left alone."""

    @abstractmethod
    def placed(self, task: Task) -> bool:
        """Is it settled on which instance this queued task will run?"""

    @abstractmethod
    def depths(self) -> dict[str, int]:
        """How many tasks are queued, by work; works without any may be left out."""

    @abstractmethod
    def assign(self, max_batch: int) -> Iterator[tuple[str, list[Task]]]:
        """Take tasks for idle instances, as long as there are both: (instance, batch) pairs."""

    def depth(self, work: str) -> int:
        """How many tasks of this work are queued."""
        return self.depths().get(work, 0)

    def __len__(self) -> int:
        """How many tasks are queued."""
        return sum(self.depths().values())

    def _take_batch(self, queue: Queue, instance: str, max_batch: int) -> list[Task]:
        """Take the oldest tasks that may share a batch on this instance."""
        batch: list[Task] = []
        apart: set[int] = set()
        for looked_at, task in enumerate(queue):
            if looked_at >= SCAN * (max_batch + 1) and batch:
                break
            if task.apart in apart or (batch and task.kind != batch[0].kind):
                continue
            if instance in task.failed_on and self._others_up(task):
                continue
            batch.append(task)
            if len(batch) == max_batch:
                break
            if task.apart is not None:
                apart.add(task.apart)
        for task in batch:
            del queue[task]
        return batch

    def _others_up(self, task: Task) -> bool:
        return any(
            task.work in works and instance not in task.failed_on
            for instance, works in self._works.items()
        )


def add_to(queue: Queue, task: Task, *, first: bool) -> None:
    queue[task] = None
    if first:
        queue.move_to_end(task, last=False)


QueueKey = tuple[bool, bool, str]
"""Queues by priority: is the work spare, is it redundant, which work."""


def key_of(task: Task) -> QueueKey:
    return (task.spare, task.work != DEPLOYED, task.work)


def keys_of(works: Iterable[str]) -> list[QueueKey]:
    """The queues that an instance with these works takes from, the most urgent first."""
    return sorted((spare, work != DEPLOYED, work) for work in works for spare in (False, True))
