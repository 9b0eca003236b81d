"""The watch: keeps what an operator wants to know of a server, and makes frames of it.

It observes, without I/O: events come with their time (monotonic, in seconds), and the rest is read
off the frontend and its metrics when a frame is made: the present state, and the last minutes.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct
from prometheus_client.registry import Collector

from parity_models.scheduling import (
    DEPLOYED,
    Action,
    Answer,
    Fail,
    Recycle,
    Redundancy,
    Run,
    Verify,
    source_of,
)
from parity_models.scheduling.health import State
from parity_models.serving.frontend import Observer

if TYPE_CHECKING:
    from parity_models.serving.frontend import Frontend, InFlight

NOW, MINUTES = 10, 300
"""Seconds that count as now, and those that are remembered."""

WIDTH = 0.02
"""The width of a latency's bucket, as a share of the latency at which it begins."""

SHORTEST, LONGEST = 1e-6, 1e4
"""Seconds; latencies beyond count as these."""

KEPT = 100
"""Events that are kept."""

QUIET = 5.0
"""Seconds without a failed query after which the next one is an event again."""

VERIFYING = "golden query"
"""The role of an instance's unit while it is verified."""

STEP = 1.0
"""Seconds between two points of the charts."""

SLOW = 2.0
"""An instance is slow if its units take this many times as long as those of others."""

WEIGHT = 0.2
"""The weight of the latest unit in an instance's usual run time."""

REMEMBERED = 60.0
"""Seconds for which an instance that is gone is shown if nothing replaces it."""

MAX_GONE = 64
"""Maximum number of instances that are gone and shown."""

_REDUNDANCY = {
    Redundancy.ON: "on, as the policy decides",
    Redundancy.TESTING: "on and off in turns, to test whether it shortens latencies",
    Redundancy.PAUSED: "paused, as it does not shorten latencies",
    Redundancy.BOTTLENECK: "stopped, as the server's own process is the bottleneck",
    Redundancy.OFF: "switched off",
}


class Percentiles(Struct, frozen=True):
    """Of `count` latencies, in milliseconds."""

    count: int
    p50: float
    p99: float
    p999: float


class Tail(Struct, frozen=True):
    """Latencies of the last seconds, and of the last minutes; None where there were none."""

    now: Percentiles | None = None
    minutes: Percentiles | None = None


class InstanceView(Struct, frozen=True):
    """An instance.

    `state` is up, suspected, ejected, verifying or gone. It is `slow` if its units take longer than
    those of others. `running` is the role of its unit, which it has had for `since_ms`; units of
    that role take it `usual_ms`. `why` is the reason why it is gone.
    """

    name: str
    node: str
    roles: tuple[str, ...]
    state: str
    slow: bool
    running: str
    since_ms: float
    usual_ms: float
    why: str


class Event(Struct, frozen=True):
    """An event for operators, `at` seconds since 1970."""

    number: int
    at: float
    kind: str
    text: str


class GateView(Struct, frozen=True):
    """The agreement of a stand-in with the model, next to the `level` that its gate promises.

    Without a gate, `level` is 0 and `open` is true. If it may answer some `classes` alone, these
    have levels of their own. Since the server's start, `agreed` of the `compared` answers agreed
    with the model's.
    """

    source: str
    level: float
    open: bool
    compared: int
    agreed: int
    classes: Mapping[str, float]


class Point(Struct, frozen=True):
    """One second of the charts, which ended at `at`. Rates are per second; `busy` is a share."""

    at: float
    asked: float
    queued: int
    busy: float
    answers: dict[str, float]
    failed: float
    answered: Percentiles | None


class Frame(Struct, frozen=True):
    """The state of a server. `latest` is the last second, `redundancy` says in words whether
    redundant work is sent, and `redundant` counts redundant tasks by kind, then by what became of
    them."""

    at: float
    model: str
    policy: str
    ready: bool
    instances: tuple[InstanceView, ...]
    latest: Point | None
    answered: Tail
    gates: tuple[GateView, ...]
    redundancy: str
    redundant: dict[str, dict[str, int]]
    events: tuple[Event, ...]
    points: tuple[Point, ...]


class Latencies:
    """Counts of latencies in seconds, in buckets; a second counts once it is over.

    A time earlier than one before counts as that one.
    """

    def __init__(self) -> None:
        buckets = 1 + int(log(LONGEST / SHORTEST) / log(1 + WIDTH))
        self._counts = np.zeros((MINUTES + 1, buckets), np.int32)
        """By second, modulo as many as are kept, and bucket."""
        self._second = 0

    def add(self, now: float, latency: float) -> None:
        """Add a latency that became known at the time `now`."""
        self._turn(now)
        bounded = min(max(latency, SHORTEST), LONGEST)
        bucket = int(log(bounded / SHORTEST) / log(1 + WIDTH))
        self._counts[self._second % (MINUTES + 1), bucket] += 1

    def tail(self, now: float) -> Tail:
        """Return the percentiles at the time `now`, each accurate to half a bucket."""
        self._turn(now)
        return Tail(self._percentiles(NOW), self._percentiles(MINUTES))

    def _turn(self, now: float) -> None:
        """Forget the seconds that are too long ago."""
        passed = int(now) - self._second
        if passed > 0:
            first = self._second + 1 + max(0, passed - MINUTES - 1)
            self._counts[np.arange(first, int(now) + 1) % (MINUTES + 1)] = 0
            self._second = int(now)

    def _percentiles(self, seconds: int) -> Percentiles | None:
        rows = np.arange(self._second - seconds, self._second) % (MINUTES + 1)
        counts = self._counts[rows].sum(axis=0).cumsum()
        total = int(counts[-1])
        if not total:
            return None
        ranks = np.ceil(total * np.array([0.5, 0.99, 0.999]))
        buckets = np.searchsorted(counts, ranks)
        return Percentiles(total, *(1e3 * SHORTEST * (1 + WIDTH) ** (buckets + 0.5)).tolist())


@dataclass(slots=True, eq=False)
class _Instance:
    name: str
    node: str
    roles: frozenset[str]
    usual: dict[str, float] = field(default_factory=dict)
    """The usual run time of units in seconds, by role."""
    role: str = ""
    """Of the unit that it has, if any."""
    unit: int = 0
    began: float = 0.0
    """The time at which it was given its unit, or left."""
    why: str = ""
    """The reason why it left; empty while it is up."""

    def view(self, now: float, state: str, typical: Mapping[str, float]) -> InstanceView:
        """Return what is shown of it, where units of all instances take a `typical` time."""
        since = now - self.began if self.role or self.why else 0.0
        takes = {role: usual for role, usual in self.usual.items() if role in typical}
        if self.role in typical:
            takes[self.role] = max(since, takes.get(self.role, 0.0))
        return InstanceView(
            self.name,
            self.node,
            tuple(sorted(self.roles)),
            "gone" if self.why else state,
            any(took > SLOW * typical[role] for role, took in takes.items()) and not self.why,
            self.role,
            1e3 * since,
            1e3 * self.usual.get(self.role or min(self.usual, default=""), 0.0),
            self.why,
        )


class _Totals(Struct, frozen=True):
    at: float
    asked: int
    answers: Counter[str]
    failed: int
    busy: float


class Watch(Observer):
    """Observes `frontend`, whose requests in flight are `requests`, by query.

    Args:
        frontend: Its state is read when a frame is made.
        requests: The requests in flight.
        model: The model's name, as the page shows it.
        policy: The policy's name.
        classes: The classes that one-sided gates let through, with their levels, by source.
        clock: Returns monotonic seconds.
        epoch: Added to these to have seconds since 1970.

    """

    def __init__(
        self,
        frontend: "Frontend",
        requests: "Mapping[int, InFlight]",
        *,
        model: str,
        policy: str,
        classes: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
        clock: Callable[[], float] = time.monotonic,
        epoch: float | None = None,
    ) -> None:
        self._frontend = frontend
        self._requests = requests
        self._model = model
        self._policy = policy
        self._classes = classes
        self._clock = clock
        self._epoch = time.time() - clock() if epoch is None else epoch
        self.answers: Counter[str] = Counter()
        """Queries answered, by source."""
        self.failures: Counter[str] = Counter()
        """Queries that failed, by reason."""
        self.events: deque[Event] = deque(maxlen=KEPT)
        self._instances: dict[str, _Instance] = {}
        self._gone: deque[_Instance] = deque(maxlen=MAX_GONE)
        self._latencies = Latencies()
        self._roles: set[str] = set()
        self._last_number = 0
        self._last_failure = -QUIET
        self._ejected: set[str] = set()
        self._closed: set[str] = set()
        self._points: deque[Point] = deque(maxlen=int(MINUTES / STEP))
        self._before = _Totals(clock(), 0, Counter(), 0, 0.0)

    # Observer

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Run() | Verify():
                    instance = self._instances.get(action.instance)
                    if instance is not None:
                        role = action.role if isinstance(action, Run) else VERIFYING
                        instance.role, instance.unit, instance.began = role, action.unit, now
                case Answer():
                    self.answers[action.source] += 1
                    self._latencies.add(now, now - self._requests[action.query].arrived)
                case Fail():
                    self.failures[action.reason] += 1
                    if now - self._last_failure >= QUIET:
                        text = f"queries fail ({action.reason}): {action.detail}"
                        self._happened(now, "failed", text)
                    self._last_failure = now
                case Recycle():
                    text = f"instance {action.instance} is replaced: it {action.why}"
                    self._happened(now, str(action.reason), text)

    def instance_joined(
        self, now: float, instance: str, roles: frozenset[str], node: str | None
    ) -> None:
        self._roles |= roles
        self._instances[instance] = _Instance(instance, node or "", roles)
        alike = [each for each in self._gone if each.roles == roles]
        if alike:
            family = instance.partition(".")[0]
            before = max(
                alike, key=lambda each: (each.name.partition(".")[0] == family, each.node == node)
            )
            self._gone.remove(before)
            self._happened(now, "joined", f"instance {instance} is up, in place of {before.name}")

    def instance_left(self, now: float, instance: str, why: str) -> None:
        left = self._instances.pop(instance, None)
        if left is not None:
            left.began, left.role, left.why = now, "", why
            self._gone.append(left)
        self._ejected.discard(instance)
        self._happened(now, "left", f"instance {instance} left: it {why}")

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        instance = self._instances.get(unit.instance)
        if instance is None or instance.unit != unit.unit or not instance.role:
            return
        if finished and instance.role in instance.roles:
            took = now - instance.began
            usual = instance.usual.get(instance.role, took)
            instance.usual[instance.role] = usual + WEIGHT * (took - usual)
        instance.role = ""

    def _happened(self, now: float, kind: str, text: str) -> None:
        self._last_number += 1
        self.events.append(Event(self._last_number, self._epoch + now, kind, text))

    # Frames

    def tick(self) -> None:
        """Add a point to the charts, if it is time."""
        now, before, frontend = self._clock(), self._before, self._frontend
        took = now - before.at
        if took < STEP:
            return
        ejected = {name for name, each in frontend.scheduler.instances() if each is State.EJECTED}
        closed = {gate.source for gate in self._gates() if not gate.open}
        for name in sorted(ejected - self._ejected):
            self._happened(now, "ejected", f"instance {name} gets no work for a while")
        for name in sorted(self._ejected - ejected):
            self._happened(now, "back", f"instance {name} is back")
        for source in sorted(closed - self._closed):
            text = f"the {source} is out of service: it agrees with the model too seldom"
            self._happened(now, "gate closed", text)
        for source in sorted(self._closed - closed):
            self._happened(now, "gate open", f"the {source} answers again")
        self._ejected, self._closed = ejected, closed
        self._before = totals = _Totals(
            now,
            frontend.asked,
            Counter(self.answers),
            self.failures.total(),
            sum(frontend.busy_seconds().values()),
        )
        self._points.append(
            Point(
                self._epoch + now,
                (totals.asked - before.asked) / took,
                sum(frontend.queue_depths().values()),
                min(1.0, (totals.busy - before.busy) / took / max(1, len(self._instances))),
                {
                    source: (count - before.answers[source]) / took
                    for source, count in totals.answers.items()
                },
                (totals.failed - before.failed) / took,
                self._latencies.tail(now).now,
            )
        )

    def frame(self) -> Frame:
        """Return the present state, and what is kept of the past."""
        self.tick()
        now, frontend = self._clock(), self._frontend
        scheduler = frontend.scheduler
        redundancy = f"redundant work: {_REDUNDANCY[scheduler.redundancy]}"
        if scheduler.redundancy is Redundancy.BOTTLENECK:
            redundancy += f"; reports wait {scheduler.front_door.lag * 1e3:.1f} ms"
        redundant: dict[str, dict[str, int]] = {}
        for labels, value in _samples(frontend.metrics.redundant):
            redundant.setdefault(labels["kind"], {})[labels["fate"]] = int(value)
        return Frame(
            at=self._epoch + now,
            model=self._model,
            policy=self._policy,
            ready=frontend.ready,
            instances=tuple(self.views(now)),
            latest=self._points[-1] if self._points else None,
            answered=self._latencies.tail(now),
            gates=self._gates(),
            redundancy=redundancy,
            redundant={kind: fates for kind, fates in redundant.items() if any(fates.values())},
            events=tuple(self.events),
            points=tuple(self._points),
        )

    def views(self, now: float) -> list[InstanceView]:
        """Return all instances that are up, and those that are gone and not replaced."""
        states = dict(self._frontend.scheduler.instances())
        times: dict[str, list[float]] = {}
        for instance in self._instances.values():
            for role, usual in instance.usual.items():
                times.setdefault(role, []).append(usual)
        typical = {role: median(each) for role, each in times.items() if len(each) > 1}
        there = [*self._instances.values()]
        there += [each for each in self._gone if now - each.began < REMEMBERED]
        return [each.view(now, str(states.get(each.name, State.UP)), typical) for each in there]

    def _gates(self) -> tuple[GateView, ...]:
        """Return the gates, and the stand-ins that have none."""
        metrics = self._frontend.metrics
        is_open, levels, compared, disagreed = (
            {labels["source"]: value for labels, value in _samples(each)}
            for each in (
                metrics.gate_open,
                metrics.gate_agreement,
                metrics.compared_answers,
                metrics.disagreed_answers,
            )
        )
        stand_ins = {str(source_of(role)) for role in self._roles - {DEPLOYED}}
        return tuple(
            GateView(
                source,
                levels.get(source, 0.0),
                bool(is_open.get(source, 1.0)),
                int(compared.get(source, 0)),
                int(compared.get(source, 0) - disagreed.get(source, 0)),
                self._classes.get(source, {}),
            )
            for source in sorted({*is_open, *compared, *stand_ins})
        )


def _samples(metric: Collector) -> list[tuple[dict[str, str], float]]:
    return [
        (sample.labels, sample.value)
        for family in metric.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
