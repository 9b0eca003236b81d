"""Dispatch: which instance runs which task next. Both rules work with every policy."""

import heapq
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cache
from math import ceil

from parity_models.roles import DEPLOYED
from parity_models.scheduling.work import Task

SINGLE_QUEUE = "single-queue"
LATENCY_AWARE = "latency-aware"
RULES = (SINGLE_QUEUE, LATENCY_AWARE)
"""The names of the dispatch rules."""

WEIGHT = 0.3
"""The weight of the newest service time in an instance's mean."""

TYPICAL = 0.02
"""The weight of the newest unit in the mean time of its role."""

SCAN = 4
"""The queued tasks that are searched to fill a batch, as a multiple of its size."""

Queue = OrderedDict[Task, None]

QueueKey = tuple[bool, bool, str]
"""Queues by priority: preemptible, of the deployed model, role. The lowest is the most urgent."""

Suits = Callable[[str], bool]
"""A test of whether an idle instance may run a task."""


class Dispatch:
    """Holds queued tasks and idle instances, and matches them, by the rule `name`.

    With the rule `single-queue`, the paper's (Kosaian et al., SOSP 2019, section 5.1), each role
    has one queue, and the instance that has been idle longest takes the next task: a slow instance
    takes few, and no query waits behind another on a busy instance while one is idle.

    With `latency-aware`, recently slow instances come last. Each instance's recent service time is
    an exponentially weighted mean; the fastest idle instance comes first. A unit that failed or was
    cancelled gives a lower bound: it can only make an instance slower. After outlier ejection in
    load balancers and the latency signal of Prequal (Wydrowski et al., Load is not what you should
    balance, NSDI 2024).

    Stand-ins' tasks go before the deployed model's, as their queries have waited longer.
    Preemptible ones go last, and only while more than `reserve` of the instances that run the
    deployed model are idle, so that queries about to arrive find one. Tasks are kept apart as far
    as there are enough instances. An object serves one scheduler.
    """

    def __init__(self, name: str = SINGLE_QUEUE) -> None:
        self.name = name
        self.reserve = 0
        self.up: defaultdict[str, list[str]] = defaultdict(list)
        """The instances that are up and not out, by role they can run."""
        self.depths: defaultdict[str, int] = defaultdict(int)
        """The number of queued tasks, by role."""
        self._roles: dict[str, frozenset[str]] = {}
        self._node: dict[str, Hashable] = {}
        self._nodes: int | None = None
        self._queues: dict[QueueKey, Queue] = {}
        self._idle: dict[frozenset[str], list[tuple[float, int, str]]] = {}
        """Heaps of idle instances: rank (the lowest takes first), since when, name."""
        self._turn = 0
        self._mean: dict[str, float] = {}
        """Of each instance's recent units: their times, in the mean times of their roles."""
        self._typical: dict[str, float] = {}
        """The mean time of units, by role."""

    # Instances

    def idle_for(self, role: str) -> int:
        """Return how many instances that can run this role are idle."""
        count = 0
        for roles, idle in self._idle.items():
            if role in roles:
                count += len(idle)
        return count

    @property
    def nodes(self) -> int:
        """The number of nodes that run the deployed model; 0 if no two instances share one."""
        if self._nodes is None:
            shared = len(set(self._node.values())) < len(self._node)
            self._nodes = len(self.nodes_of(self.up[DEPLOYED])) if shared else 0
        return self._nodes

    def join(self, instance: str, roles: frozenset[str], node: str | None) -> None:
        """Add an idle instance, which may be given work from now on."""
        self._roles[instance] = roles
        self._node[instance] = (instance,) if node is None else node
        self._nodes = None
        for role in roles:
            self.up[role].append(instance)
        self._add_idle(instance, 0.0)

    def leave(self, instance: str) -> None:
        """Give no more work to an instance, idle or not; it may still run a unit."""
        self.occupy(instance)
        self._mean.pop(instance, None)
        del self._node[instance]
        self._nodes = None
        for role in self._roles.pop(instance):
            self.up[role].remove(instance)

    def mark_idle(
        self, instance: str, took: float, *, finished: bool = True, role: str = DEPLOYED
    ) -> None:
        """Mark an instance idle; its last unit, of this role, took this many seconds.

        A unit that is not `finished` (it failed, or was cancelled) would have taken longer.
        """
        if self.name == SINGLE_QUEUE:
            self._add_idle(instance, 0.0)
            return
        # Times are in those of the role: a stand-in's short units make no instance a fast one.
        typical = self._typical.setdefault(role, took)
        if finished:
            self._typical[role] = typical = typical + TYPICAL * (took - typical)
        took = took / typical if typical else 0.0
        mean = self._mean.get(instance)
        if finished and mean is None:
            self._mean[instance] = took
        elif mean is not None and (finished or took > mean):
            self._mean[instance] = mean + WEIGHT * (took - mean)
        self._add_idle(instance, self._mean.get(instance, 0.0))

    def pace(self, instance: str | None) -> float:
        """Return the time of the instance's recent units, in mean times of their roles; 1 if it is
        unknown."""
        return self._mean.get(instance or "", 1.0)

    def _add_idle(self, instance: str, rank: float) -> None:
        self._turn += 1
        idle = self._idle.setdefault(self._roles[instance], [])
        heapq.heappush(idle, (rank, self._turn, instance))

    def occupy(self, instance: str) -> bool:
        """Mark the instance busy. Return whether it was idle."""
        idle = self._idle[self._roles[instance]]
        others = [entry for entry in idle if entry[2] != instance]
        if len(others) == len(idle):
            return False
        heapq.heapify(others)
        self._idle[self._roles[instance]] = others
        return True

    # Tasks

    def add(self, task: Task, *, first: bool = False) -> None:
        """Queue a task, `first` at the head."""
        key = (task.preemptible, task.role == DEPLOYED, task.role)
        queue = self._queues.get(key)
        if queue is None:
            queue = OrderedDict()
            self._queues = dict(sorted([*self._queues.items(), (key, queue)]))
        queue[task] = None
        if first:
            queue.move_to_end(task, last=False)
        task.queue = queue
        self.depths[task.role] += 1

    def remove(self, task: Task) -> None:
        """Take a task out of its queue, if it is in one."""
        if task.queue is not None:
            del task.queue[task]
            task.queue = None
            self.depths[task.role] -= 1

    def assign(self, max_batch: int, *, spread: bool = True) -> Iterator[tuple[str, list[Task]]]:
        """Take tasks for idle instances, as long as there are both: (instance, batch) pairs.

        If they are `spread`, each idle instance gets about as many.
        """
        if not any(self._idle.values()):
            return
        for key, queue in self._queues.items():
            while queue:
                shares = self.idle_for(key[2]) if spread else 1
                share = ceil(len(queue) / max(1, shares))
                assigned = self._assign_one(key, queue, min(max_batch, share))
                if assigned is None:
                    break
                yield assigned

    def _assign_one(
        self, key: QueueKey, queue: Queue, max_batch: int
    ) -> tuple[str, list[Task]] | None:
        preemptible, _, role = key
        for roles, idle in self._idle.items():
            if not idle or role not in roles:
                continue
            if preemptible and DEPLOYED in roles and self.idle_for(DEPLOYED) <= self.reserve:
                continue  # the idle ones are kept for originals
            passed = []
            batch: list[Task] = []
            suits: dict[Task, Suits] = {}
            while idle and not batch:
                entry = heapq.heappop(idle)
                batch = self._take_batch(queue, entry[2], max_batch, suits)
                if not batch:
                    passed.append(entry)
            for other in passed:
                heapq.heappush(idle, other)
            if batch:
                return entry[2], batch
        return None

    def shares_node(self, task: Task, others: Iterable[Task]) -> bool:
        """Return whether one of the others runs on this task's node."""
        at = task.instance
        return at in self._node and self._node[at] in self.nodes_of(self._instances_of(others))

    def _take_batch(
        self, queue: Queue, instance: str, max_batch: int, suits: dict[Task, Suits]
    ) -> list[Task]:
        """Take the oldest tasks that may share a batch on this instance.

        `suits` caches the tests of tasks, for other instances at the same time.
        """
        batch: list[Task] = []
        nodes = self.nodes if self._nodes is None else self._nodes
        for looked_at, task in enumerate(queue):
            if batch:
                if looked_at >= SCAN * (max_batch + 1):
                    break
                if task.alone or task.kind != batch[0].kind or _clash(task, batch):
                    continue
            if nodes or task.failed_on:
                if task not in suits:
                    suits[task] = self._suits(task)
                if not suits[task](instance):
                    continue
            batch.append(task)
            if task.alone or len(batch) == max_batch:
                break
        for task in batch:
            del queue[task]
            task.queue = None
            self.depths[task.role] -= 1
        return batch

    # Which instances suit a task

    def _suits(self, task: Task) -> Suits:
        """Return a test of whether an instance suits the task at least as well as all others.

        In order of importance, a suited instance has not failed the task; runs none of the tasks
        to be kept apart from it; and shares no node with them.
        """
        up, failed, node = self.up[task.role], task.failed_on, self._node
        taken = self._instances_of(o for tasks in task.apart for o in tasks if o is not task)
        nodes = self.nodes_of(taken) if self.nodes else ()

        def grade(instance: str) -> int:
            """The lower, the better."""
            return 4 * (instance in failed) + 2 * (instance in taken) + (node[instance] in nodes)

        if not nodes and len(up) > len(failed) + len(taken):
            return lambda instance: not grade(instance)  # as it is 0 for at least one

        @cache
        def is_best(own: int) -> bool:
            return not any(grade(each) < own for each in up)

        return lambda instance: is_best(grade(instance))

    def _instances_of(self, tasks: Iterable[Task]) -> set[str]:
        return {task.instance for task in tasks if task.instance is not None}

    def nodes_of(self, instances: Iterable[str]) -> set[Hashable]:
        """Return the nodes of those of the instances that may be given work."""
        return {self._node[instance] for instance in instances if instance in self._node}


def _clash(task: Task, batch: Iterable[Task]) -> bool:
    """Return whether the batch has the same subject, or a member of the same coding group."""
    return any(
        task.subject == other.subject or (task.group is not None and task.group == other.group)
        for other in batch
    )
