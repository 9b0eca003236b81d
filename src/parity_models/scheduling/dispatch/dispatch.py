"""What every dispatch rule has in common: who is up, what is queued, how a batch is filled."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from parity_models import options
from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.work import Task

SCAN = 4
"""How many batches' worth of queued tasks are looked through to fill one batch."""

Queue = OrderedDict[Task, None]

Worse = Callable[[str], bool]
"""Is an instance one that others are better suited than?"""


class Dispatch(ABC):
    """Holds queued tasks and idle instances, and matches them.

    Stand-ins' tasks go before those of the deployed model, as they are for queries that have waited
    longer, but preemptible ones go last: they are taken only while more than `reserve` of the
    instances that run the deployed model are idle, so that queries about to arrive find one. Tasks
    that are to run apart do, as far as there are instances for it. One rule serves one scheduler.

    A subclass says its `name` and its `Options`.
    """

    name: ClassVar[str]
    reserve = 0

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """None."""

    @classmethod
    def build(cls, options: Any) -> "Dispatch":
        """A rule with these `Options`."""
        return cls(options)

    def __init__(self, options: Any = None) -> None:
        self._roles: dict[str, frozenset[str]] = {}
        self._up: dict[str, list[str]] = {}
        self._node: dict[str, Hashable] = {}
        self._nodes: int | None = None
        self._doubted: set[str] = set()

    def instances_up(self) -> dict[str, int]:
        """How many instances are up, by role they can run."""
        return {role: len(instances) for role, instances in self._up.items() if instances}

    def up(self, role: str) -> int:
        """How many instances are up that can run this role."""
        return len(self._up.get(role, ()))

    @abstractmethod
    def idle_for(self, role: str) -> int:
        """How many instances that can run this role are idle."""

    @property
    def nodes(self) -> int:
        """How many nodes run the deployed model; 0 where every instance has one to itself."""
        if self._nodes is None:
            shared = len(set(self._node.values())) < len(self._node)
            deployed = self._nodes_of(self._up.get(DEPLOYED, ()))
            self._nodes = len(deployed) if shared else 0
        return self._nodes

    def join(self, instance: str, roles: frozenset[str], node: str | None) -> None:
        """An instance may be given work from now on, and is idle."""
        self._roles[instance] = roles
        self._node[instance] = (instance,) if node is None else node
        self._nodes = None
        for role in roles:
            self._up.setdefault(role, []).append(instance)

    def leave(self, instance: str) -> None:
        """An instance is to be given no more work, idle or not; it may still run a unit."""
        del self._node[instance]
        self._doubted.discard(instance)
        self._nodes = None
        for role in self._roles.pop(instance):
            self._up[role].remove(instance)

    @abstractmethod
    def idle(self, instance: str, took: float, *, finished: bool = True) -> None:
        """The instance has nothing to do; its last unit took this many seconds.

        Where it is not `finished` (it failed, or was cancelled), it would have taken longer.
        """

    @abstractmethod
    def occupy(self, instance: str) -> bool:
        """If the instance is idle, it no longer is, as it has something else to do; was it?"""

    def doubt(self, instance: str) -> None:
        """This instance, which is not idle, takes last: while no other is idle that could."""
        self._doubted.add(instance)

    def trust(self, instance: str) -> None:
        """This instance takes its turn again."""
        self._doubted.discard(instance)

    @abstractmethod
    def add(self, task: Task, *, first: bool = False) -> None:
        """Queue a task, `first` at the head."""

    @abstractmethod
    def remove(self, task: Task) -> None:
        """Take a queued task out; one that is not queued is left alone."""

    def where(self, task: Task) -> str | None:
        """The instance that the task runs on, or on which it is settled that it will."""
        return task.unit.instance if task.unit else None

    def beside(self, task: Task, others: Iterable[Task]) -> bool:
        """Is one of the others on this task's node, as far as is settled?"""
        at = self.where(task)
        return at in self._node and self._node[at] in self._nodes_of(self._instances_of(others))

    @abstractmethod
    def depths(self) -> dict[str, int]:
        """How many tasks are queued, by role; roles without any may be left out."""

    @abstractmethod
    def depth(self, role: str) -> int:
        """How many tasks of this role are queued."""

    @abstractmethod
    def assign(self, max_batch: int) -> Iterator[tuple[str, list[Task]]]:
        """Take tasks for idle instances, as long as there are both: (instance, batch) pairs."""

    def __len__(self) -> int:
        """How many tasks are queued."""
        return sum(self.depths().values())

    def _take_batch(self, queue: Queue, instance: str, max_batch: int) -> list[Task]:
        """Take the oldest tasks that may share a batch on this instance."""
        if max_batch == 1:
            alone = next((task for task in queue if self._may_run(task, instance)), None)
            if alone is None:
                return []
            del queue[alone]
            return [alone]
        batch: list[Task] = []
        subjects: set[int] = set()
        groups: set[int | None] = set()
        for looked_at, task in enumerate(queue):
            if batch:
                if looked_at >= SCAN * (max_batch + 1):
                    break
                if task.alone or task.kind != batch[0].kind:
                    continue
                if task.subject in subjects or task.group in groups:
                    continue
            if not self._may_run(task, instance):
                continue
            batch.append(task)
            if task.alone or len(batch) == max_batch:
                break
            subjects.add(task.subject)
            if task.group is not None:
                groups.add(task.group)
        for task in batch:
            del queue[task]
        return batch

    def _may_run(self, task: Task, instance: str) -> bool:
        """May this idle instance take the task, or is it better left to others?"""
        return True

    def _suited(self, task: Task) -> Sequence[str]:
        """The instances that are best suited to run the task.

        In order of importance, a suited instance has not failed the task; runs nothing that the
        task is to run apart from; is on a node that does not either; and is not to be avoided. A
        condition that no instance meets is dropped.
        """
        suited = self._up.get(task.role, [])
        taken = self._taken(task)
        if not (taken or task.failed_on or task.avoid):
            return suited
        for worse in self._worse(task, taken):
            suited = [instance for instance in suited if not worse(instance)] or suited
        return suited

    def _is_suited(self, task: Task, instance: str) -> bool:
        """Is the instance, which can run the task, among the `_suited`? Does not make the list of
        them: a queue may be long, and instances many."""
        applied: list[Worse] = []
        up = self._up[task.role]
        for worse in self._worse(task, self._taken(task)):
            if not worse(instance):
                applied.append(worse)
            elif any(not (worse(each) or any(one(each) for one in applied)) for each in up):
                return False
        return True

    def _worse(self, task: Task, taken: Set[str]) -> tuple["Worse", ...]:
        """What makes an instance less suited than others for the task, the worst first."""
        nodes = self._nodes_of(taken)
        return (
            task.failed_on.__contains__,
            taken.__contains__,
            lambda instance: self._node[instance] in nodes,
            task.avoid.__contains__,
        )

    def _taken(self, task: Task) -> set[str]:
        """The instances with tasks that this one is to run apart from."""
        others = (other for tasks in task.apart for other in tasks if other is not task)
        return self._instances_of(others)

    def _instances_of(self, tasks: Iterable[Task]) -> set[str]:
        return {instance for task in tasks if (instance := self.where(task)) is not None}

    def _nodes_of(self, instances: Iterable[str]) -> set[Hashable]:
        return {self._node[instance] for instance in instances if instance in self._node}


def add_to(queue: Queue, task: Task, *, first: bool) -> None:
    """Queue a task, `first` at the head."""
    queue[task] = None
    if first:
        queue.move_to_end(task, last=False)


QueueKey = tuple[bool, bool, str]
"""Queues by priority: is the task preemptible, is it of the deployed model, which role."""


def key_of(task: Task) -> QueueKey:
    """The queue that the task belongs into."""
    return (task.preemptible, task.role == DEPLOYED, task.role)


def keys_of(roles: Iterable[str]) -> list[QueueKey]:
    """The queues that an instance with these roles takes from, the most urgent first."""
    return sorted(
        (preemptible, role == DEPLOYED, role) for role in roles for preemptible in (False, True)
    )
