"""Which idle instance takes which tasks next."""

from collections import OrderedDict
from collections.abc import Iterator

from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.work import Task

SCAN = 4
"""How many batches' worth of queued tasks are looked through to fill one batch."""


class SingleQueue:
    """One queue per kind of work; an idle instance takes the oldest tasks it can run.

    Work of the deployed model goes before all other work, so that an instance that can do both
    spends only spare capacity on redundancy.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._queues: dict[str, OrderedDict[Task, None]] = {DEPLOYED: OrderedDict()}
        self._works: dict[str, frozenset[str]] = {}
        self._idle: dict[frozenset[str], OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def depth(self, work: str) -> int:
        """How many tasks of this work are queued."""
        return len(self._queues.get(work, ()))

    def depths(self) -> dict[str, int]:
        return {work: len(queue) for work, queue in self._queues.items()}

    def instances(self, work: str) -> int:
        """How many instances are up that can run this work."""
        return sum(work in works for works in self._works.values())

    def join(self, instance: str, works: frozenset[str]) -> None:
        self._works[instance] = works
        for work in sorted(works):
            self._queues.setdefault(work, OrderedDict())
        self.idle(instance)

    def leave(self, instance: str) -> None:
        works = self._works.pop(instance)
        self._idle[works].pop(instance, None)

    def idle(self, instance: str) -> None:
        """The instance has nothing to do."""
        self._idle.setdefault(self._works[instance], OrderedDict())[instance] = None

    def add(self, task: Task, *, first: bool = False) -> None:
        queue = self._queues.setdefault(task.work, OrderedDict())
        queue[task] = None
        if first:
            queue.move_to_end(task, last=False)

    def remove(self, task: Task) -> None:
        """Take a queued task out; one that is not queued is left alone."""
        self._queues[task.work].pop(task, None)

    def assign(self) -> Iterator[tuple[str, list[Task]]]:
        """Take tasks for idle instances, as long as there are both: (instance, batch) pairs."""
        for work, queue in self._queues.items():
            while queue:
                assigned = self._take(work, queue)
                if assigned is None:
                    break
                yield assigned

    def _take(self, work: str, queue: OrderedDict[Task, None]) -> tuple[str, list[Task]] | None:
        for works, idle in self._idle.items():
            if work not in works:
                continue
            for instance in idle:
                batch = self._batch(instance, queue)
                if batch:
                    del idle[instance]
                    for task in batch:
                        del queue[task]
                    return instance, batch
        return None

    def _batch(self, instance: str, queue: OrderedDict[Task, None]) -> list[Task]:
        batch: list[Task] = []
        apart: set[int] = set()
        for looked_at, task in enumerate(queue):
            if looked_at >= SCAN * self._max_batch + SCAN and batch:
                break
            if task.apart in apart or (batch and task.kind != batch[0].kind):
                continue
            if instance in task.failed_on and self._others_up(task):
                continue
            batch.append(task)
            if len(batch) == self._max_batch:
                break
            if task.apart is not None:
                apart.add(task.apart)
        return batch

    def _others_up(self, task: Task) -> bool:
        return any(
            task.work in works and instance not in task.failed_on
            for instance, works in self._works.items()
        )
