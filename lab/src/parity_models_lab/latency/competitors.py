"""Competitors: a dispatch rule with a queue at each instance, and tied requests.

Experiments name them as any user's own: parity_models_lab.latency.competitors:Prequal.
"""

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import inf
from random import Random
from statistics import median
from typing import Annotated

from parity_models.options import SECONDS, Option
from parity_models.scheduling.actions import DEPLOYED
from parity_models.scheduling.dispatch import Dispatch, Queue, QueueKey, Suits
from parity_models.scheduling.policies.policy import Policy
from parity_models.scheduling.port import Port
from parity_models.scheduling.work import Query, Task

REMOVED = 1
"""Probes that leave the pool for each task placed, besides those used up (the paper's r_remove):
`ProbePool.thin_out` removes one."""

DELTA = 1.0
"""The surplus of uses of probes beyond those that keep the pool full (the paper's delta)."""

WINDOW = 128
"""Over how many recent probes the quantile of requests in flight is taken."""

RUNS = 5
"""The run time of an instance is the median of its last RUNS."""


@dataclass
class Probe:
    """An instance's answer to a probe: requests in flight (RIF), and its run time."""

    instance: str
    rif: int
    run_time: float
    uses: int = 0

    @property
    def latency(self) -> float:
        """The latency of a further task there, which runs after all others."""
        return (self.rif + 1) * self.run_time


class ProbePool:
    """The probes that may still be used, the oldest first. One is hot whose RIF is above the
    quantile `hot` of recent ones."""

    def __init__(self, hot: float) -> None:
        self._hot = hot
        self.probes: list[Probe] = []
        self._recent: deque[int] = deque()
        self._ranked: list[int] = []
        self._worst_next = False

    def add(self, probe: Probe, size: int) -> None:
        """Add a probe, in place of an older one of its instance; at most `size` are kept."""
        self.forget(probe.instance)
        self.probes.append(probe)
        del self.probes[:-size]
        self._recent.append(probe.rif)
        insort(self._ranked, probe.rif)
        if len(self._recent) > WINDOW:
            del self._ranked[bisect_left(self._ranked, self._recent.popleft())]

    def best(self, among: Sequence[Probe]) -> Probe:
        """Hot-cold lexicographic: of the cold the one of the lowest latency; if all are hot, the
        one with the lowest RIF."""
        cold = [probe for probe in among if not self._is_hot(probe)]
        return min(cold, key=lambda probe: probe.latency) if cold else min(among, key=_rif)

    def use(self, probe: Probe, budget: float) -> None:
        """Count a task that goes there; a probe that is used up leaves."""
        probe.rif += 1
        probe.uses += 1
        if probe.uses >= budget:
            self.probes.remove(probe)

    def thin_out(self) -> None:
        """Remove the oldest probe and the worst by turns, so that the pool does not go bad."""
        if self.probes:
            worst, self._worst_next = self._worst_next, not self._worst_next
            self.probes.remove(self._worst() if worst else self.probes[0])

    def forget(self, instance: str) -> None:
        self.probes = [probe for probe in self.probes if probe.instance != instance]

    def _is_hot(self, probe: Probe) -> bool:
        last = len(self._ranked) - 1
        return probe.rif > (
            self._ranked[min(last, int(self._hot * (last + 1)))] if last >= 0 else 0
        )

    def _worst(self) -> Probe:
        """Return a hot probe of the highest RIF, or, if all are cold, of the highest latency."""
        hot = [probe for probe in self.probes if self._is_hot(probe)]
        return max(hot, key=_rif) if hot else max(self.probes, key=lambda probe: probe.latency)


def _rif(probe: Probe) -> int:
    return probe.rif


class Prequal(Dispatch):
    """A queue at each instance; the hot-cold lexicographic choice from a pool of probes.

    Tasks are placed on arrival and moved only if the instance leaves; those that no instance up can
    run wait until one joins.

    Wydrowski et al., Load is not what you should balance: introducing Prequal, NSDI 2024, in its
    asynchronous mode. For each task placed, `prequal_probes` instances drawn at random are probed,
    and what they say goes into a pool, for the tasks that come next. A probe says how many tasks
    are ahead of a new one there, and how long its units took recently. An instance whose RIF is
    above the quantile `prequal_hot` of recent probes is hot. Of the cold the one of the lowest
    latency is chosen; if all are hot, the one with the lowest RIF. A chosen probe counts one more
    RIF and may be used again as often as equation 1 of the paper says; for each task the oldest or
    the worst probe leaves. With fewer than two probes to choose from, the choice is random.

    What differs here: the scheduler knows every queue, so that probes cost nothing and a probe
    could always be fresh; that they are drawn and grow stale is modelled, as a balancer among many
    would have it. An instance runs a unit at a time, so its latency at a RIF follows from its run
    time. Dispatch rules have no clock: the paper's age limit of a second is left out, and as every
    task brings in probes, none outlives a few tasks. The pool holds half of the instances at most,
    for equation 1 supposes many more of them than probes.
    """

    name = "prequal"

    @dataclass(frozen=True, kw_only=True)
    class Options(Dispatch.Options):
        """The options."""

        prequal_probes: Annotated[
            int, Option("Instances probed for each task.", at_least=1, at_most=1000)
        ] = 3
        prequal_pool: Annotated[
            int, Option("Probes kept at most; half of the instances at most.", at_least=2)
        ] = 16
        prequal_hot: Annotated[
            float,
            Option(
                "An instance with more requests in flight than this quantile of recent probes is "
                "hot.",
                above=0,
                below=1,
            ),
        ] = 0.84

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._options = options or self.Options()
        self._random = Random(0)
        self._pools: dict[str, ProbePool] = {}
        self._runs: dict[str, deque[float]] = {}
        self._run_time: dict[str, float] = {}
        self._latest = 0.0
        self._queues: dict[str, dict[QueueKey, Queue]] = {}
        self._idle: dict[str, None] = {}
        self._ready: dict[str, None] = {}
        """The idle instances that have something queued."""
        self._homeless: Queue = OrderedDict()

    def join(self, instance: str, roles: frozenset[str], node: str | None) -> None:
        super().join(instance, roles, node)
        keys = sorted((late, role == DEPLOYED, role) for role in roles for late in (False, True))
        self._queues[instance] = {key: OrderedDict() for key in keys}
        self.idle(instance, 0.0)
        self._place_again(self._homeless)

    def leave(self, instance: str) -> None:
        for pool in self._pools.values():
            pool.forget(instance)
        self._runs.pop(instance, None)
        self._run_time.pop(instance, None)
        super().leave(instance)
        self._idle.pop(instance, None)
        self._ready.pop(instance, None)
        self._place_again(chain.from_iterable(self._queues.pop(instance).values()))

    def idle(self, instance: str, took: float, *, finished: bool = True) -> None:
        # A unit that did not finish has only taken so long at least.
        if took > 0 and (finished or took > self._run_time.get(instance, inf)):
            runs = self._runs.setdefault(instance, deque(maxlen=RUNS))
            runs.append(took)
            self._latest = self._run_time[instance] = median(runs)
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
        if len(self.up[role]) == len(self._roles):
            return len(self._idle)
        return sum(role in self._roles[instance] for instance in self._idle)

    def add(self, task: Task, *, first: bool = False) -> None:
        suited, queue = self._suited(task), self._homeless
        if suited:
            key = (task.preemptible, task.role == DEPLOYED, task.role)
            task.instance = self._choose(suited, key)
            queue = self._queues[task.instance][key]
            if task.instance in self._idle:
                self._ready[task.instance] = None
        queue[task] = None
        if first:
            queue.move_to_end(task, last=False)
        task.queue = queue
        self.depths[task.role] += 1

    def remove(self, task: Task) -> None:
        instance = task.instance
        super().remove(task)
        if instance in self._ready and not any(self._queues[instance].values()):
            del self._ready[instance]

    def assign(self, max_batch: int) -> Iterator[tuple[str, list[Task]]]:
        ready, self._ready = self._ready, {}
        for instance in ready:
            batch = self._next_batch(instance, max_batch)
            if batch:
                del self._idle[instance]
                yield instance, batch
            elif any(self._queues[instance].values()):
                self._ready[instance] = None

    def _suited(self, task: Task) -> Sequence[str]:
        """Return the instances that are suited best for the task."""
        return list(filter(super()._suits(task), self.up[task.role]))

    def _suits(self, task: Task) -> Suits:
        return lambda instance: True  # that was decided when it was placed

    def _next_batch(self, instance: str, max_batch: int) -> list[Task]:
        needed = DEPLOYED in self._roles[instance] and len(self._idle) <= self.reserve
        for (preemptible, _, _), queue in self._queues[instance].items():
            if not (preemptible and needed):
                batch = self._take_batch(queue, instance, max_batch, {})
                if batch:
                    return batch
        return []

    def _load(self, instance: str, key: QueueKey) -> int:
        """Return how many tasks are ahead of a new one in this queue, the running unit included."""
        running = instance not in self._idle
        return running + sum(
            len(queue) for other, queue in self._queues[instance].items() if other <= key
        )

    def _place_again(self, tasks: Iterable[Task]) -> None:
        tasks = list(tasks)
        for task in tasks:
            super().remove(task)
        for task in tasks:
            self.add(task)

    def _choose(self, suited: Sequence[str], key: QueueKey) -> str:
        """Return the instance to place a task at that goes into its queue `key`."""
        if len(suited) == 1:
            return suited[0]
        up = self.up[key[2]]
        size = max(2, min(self._options.prequal_pool, len(up) // 2))
        pool = self._pools.setdefault(key[2], ProbePool(self._options.prequal_hot))
        allowed = set(suited)
        among = [probe for probe in pool.probes if probe.instance in allowed]
        if len(among) < 2:
            chosen = self._random.choice(suited)
        else:
            probe = pool.best(among)
            chosen = probe.instance
            pool.use(probe, self._budget(size, len(up)))
        pool.thin_out()
        for instance in self._random.sample(up, min(self._options.prequal_probes, len(up))):
            # One that has run nothing yet is taken for an ordinary one.
            run_time = self._run_time.get(instance, self._latest)
            rif = self._load(instance, key) + (instance == chosen)
            pool.add(Probe(instance, rif, run_time), size)
        return chosen

    def _budget(self, size: int, instances: int) -> float:
        """Return how often a probe may be used: equation 1 of the paper."""
        new = (1 - size / instances) * self._options.prequal_probes - REMOVED
        return max(1.0, (1 + DELTA) / new) if new > 0 else inf


class Tied(Policy):
    """Queue each query at two instances; when one starts it, cancel the other copy.

    (Dean and Barroso, The tail at scale, CACM 2013, "Tied requests".) Most late queries wait in a
    slow queue, and it is not known beforehand which queue moves on. The paper sends the second copy
    a little later, as two idle instances would both start it. The scheduler here cancels a copy at
    the instant at which the other starts, so the delay is a choice: with a longer one, fewer copies
    are placed, by more knowledge. Queries that have started are not helped; hedging helps those.

    It needs a queue for each instance; by default Prequal chooses both.
    """

    name = "tied"

    @dataclass(frozen=True, kw_only=True)
    class Options(Policy.Options):
        """The options."""

        tied_delay: Annotated[
            float,
            Option(
                "Time after which a query that waits gets its second place.",
                unit=SECONDS,
                at_least=0,
            ),
        ] = 0.0

    def __init__(self, options: Options | None = None) -> None:
        self._delay = (options or self.Options()).tied_delay

    def dispatch(self) -> Dispatch:
        return Prequal()

    def arrived(self, port: Port, query: Query) -> None:
        if self._delay:
            port.set_alarm(query, port.now + self._delay, partial(self._tie, port, query))
        else:
            self._tie(port, query)

    def starts(self, port: Port, task: Task) -> None:
        query = port.queries.get(task.subject)
        for other in query.tasks if query else ():
            if other.unit is None:
                port.drop(other)

    def _tie(self, port: Port, query: Query) -> None:
        if not query.crashes and not any(task.unit for task in query.tasks):
            port.copy(query, last=True)
