"""Observe a server for the live page: frames of its present state and of the last minutes.

There is no I/O: events come with their time (monotonic, in seconds), and the rest is read from the
frontend and its metrics when a frame is made.
"""

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from prometheus_client.registry import Collector

from parity_models.roles import DEPLOYED, source_of
from parity_models.scheduling.actions import Action, Answer, Fail, Recycle, Run, Verify
from parity_models.scheduling.health import State
from parity_models.serving.frontend import Observer

if TYPE_CHECKING:
    from parity_models.serving.frontend import Frontend

STEP, FRESH = 1.0, 0.25
"""Seconds between two points of the charts, and for which a frame is the present one."""

NOW, MINUTES = 10, 300
"""Points whose latencies count as present, and points that are kept."""

KEPT = 100
"""Events that are kept."""

QUIET = 5.0
"""Seconds without a failed query after which the next one is an event again."""

VERIFYING = "golden query"
"""The role of an instance's unit while it is verified."""

SLOW = 2.0
"""An instance is slow if its units take this many times the others' median."""

WEIGHT = 0.2
"""The weight of the latest unit in an instance's usual run time."""


class Percentiles(Struct, frozen=True):
    """Percentiles of latencies, in milliseconds."""

    p50: float
    p99: float
    p999: float


class InstanceView(Struct, frozen=True):
    """An instance.

    `state` is up, suspected, ejected or verifying. It is `slow` if its units take longer than other
    instances'. `running` is the role of its unit; units of that role take it `usual_ms`.
    """

    name: str
    node: str
    roles: tuple[str, ...]
    state: str
    slow: bool
    running: str
    usual_ms: float


class Event(Struct, frozen=True):
    """An event for operators, `at` seconds since 1970."""

    at: float
    kind: str
    text: str


GIVEN = ("in time", "late")
"""Kinds of queries whose stand-in's outputs are compared, as metrics name them."""


class GateView(Struct, frozen=True):
    """The agreement of a stand-in with the model, next to the `level` that its gate promises.

    Without a gate, `level` is 0 and `open` is true; `coverage` is the share of queries that the
    gate lets be answered. Since the server's start, `agreed` of the `compared` outputs for queries
    in time agreed with the model's, and `late_agreed` of the `late_compared` ones. `turns` are the
    last times that the gate opened or stepped back: comparisons since it last stepped back, and the
    coverage from then on; `turned` tells of the last one.
    """

    source: str
    level: float
    open: bool
    coverage: float
    compared: int
    agreed: int
    late_compared: int
    late_agreed: int
    turns: tuple[tuple[int, float], ...]
    turned: str


class Point(Struct, frozen=True):
    """One second of the charts, which ended at `at`. Rates are per second; `busy` is a share;
    `answered` are the latencies of the last NOW points."""

    at: float
    asked: float
    queued: int
    busy: float
    answers: dict[str, float]
    failed: float
    answered: Percentiles | None


class Frame(Struct, frozen=True):
    """The state of a server. `degraded`: no instance of the model is up, and stand-ins answer.
    `differing` says in words how many answers differ from the model's,
    and `redundancy` whether redundant work is sent; `redundant` counts redundant tasks by kind,
    then by fate."""

    policy: str
    ready: bool
    degraded: bool
    instances: tuple[InstanceView, ...]
    gates: tuple[GateView, ...]
    differing: str
    redundancy: str
    redundant: dict[str, dict[str, int]]
    events: tuple[Event, ...]
    points: tuple[Point, ...]


@dataclass(slots=True, eq=False)
class _Instance:
    node: str
    roles: frozenset[str]
    usual: dict[str, float] = field(default_factory=dict)
    """The usual run time of units in seconds, by role."""
    unit: Run | Verify | None = None
    began: float = 0.0


class Watch(Observer):
    """Observes `frontend`, whose state is read when a frame is made.

    Args:
        frontend: The frontend.
        policy: The policy's name.
        now: The time.

    """

    def __init__(self, frontend: "Frontend", policy: str, now: float) -> None:
        self._frontend = frontend
        self._policy = policy
        self._epoch = time.time() - now
        self.answers: Counter[str] = Counter()
        """Queries answered, by source."""
        self.failed = 0
        """Queries that failed."""
        self.events: deque[Event] = deque(maxlen=KEPT)
        self._instances: dict[str, _Instance] = {}
        self._latencies: list[float] = []
        self._earlier: deque[NDArray[np.float64]] = deque(maxlen=NOW)
        """The latencies of the last points."""
        self._roles: set[str] = set()
        self._last_failure = -QUIET
        self._ejected: set[str] = set()
        self._closed: set[str] = set()
        self._points: deque[Point] = deque(maxlen=MINUTES)
        self._last_point = now
        self._encoded, self._encoded_at = b"", -FRESH
        self._totals: dict[str, float] = {}
        """The counts at the last point: answers by source, queries, failures, busy seconds."""

    # Observer

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Run() | Verify():
                    instance = self._instances.get(action.instance)
                    if instance is not None:
                        instance.unit, instance.began = action, now
                case Answer():
                    self.answers[action.source] += 1
                    self._latencies.append(now - self._frontend.in_flight[action.query].arrived)
                case Fail():
                    self.failed += 1
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
        self._instances[instance] = _Instance(node or "", roles)
        if any(event.kind == "left" for event in self.events):  # else it is the start
            self._happened(now, "joined", f"instance {instance} is up")

    def instance_left(self, now: float, instance: str, why: str) -> None:
        self._instances.pop(instance, None)
        self._ejected.discard(instance)
        self._happened(now, "left", f"instance {instance} left: it {why}")

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        instance = self._instances.get(unit.instance)
        if instance is None or instance.unit is None or instance.unit.unit != unit.unit:
            return
        if finished and isinstance(unit, Run):
            took = now - instance.began
            usual = instance.usual.get(unit.role, took)
            instance.usual[unit.role] = usual + WEIGHT * (took - usual)
        instance.unit = None

    def _happened(self, now: float, kind: str, text: str) -> None:
        self.events.append(Event(self._epoch + now, kind, text))

    # Frames

    def ticked(self, now: float) -> None:
        frontend, took = self._frontend, now - self._last_point
        if took < STEP:
            return
        ejected = {name for name, each in frontend.scheduler.instances() if each is State.EJECTED}
        closed = {gate.source for gate in self._gates() if not gate.open}
        for name in sorted(ejected - self._ejected):
            self._happened(now, "ejected", f"instance {name} gets no work for a while")
        for name in sorted(self._ejected - ejected):
            self._happened(now, "back", f"instance {name} is back")
        for source in sorted(closed - self._closed):
            text = f"no output of the {source} answers: it agrees with the model too seldom"
            self._happened(now, "gate closed", text)
        for source in sorted(self._closed - closed):
            self._happened(now, "gate open", f"the {source} answers again")
        self._ejected, self._closed = ejected, closed
        busy = sum(frontend.busy_seconds().values())
        totals = {**self.answers, "asked": frontend.asked, "failed": self.failed, "busy": busy}
        rates = {each: (total - self._totals.get(each, 0)) / took for each, total in totals.items()}
        self._last_point, self._totals = now, totals
        self._earlier.append(np.array(self._latencies))
        self._latencies = []
        self._points.append(
            Point(
                at=self._epoch + now,
                asked=rates.pop("asked"),
                queued=sum(frontend.queue_depths().values()),
                busy=min(1.0, rates.pop("busy") / max(1, len(self._instances))),
                failed=rates.pop("failed"),
                answers=rates,
                answered=_percentiles(np.concatenate(self._earlier)),
            )
        )

    def frame(self, now: float) -> Frame:
        """Return the present state, and the events and points that are kept."""
        self.ticked(now)
        frontend = self._frontend
        redundant: dict[str, dict[str, int]] = {}
        for labels, value in _samples(frontend.metrics.redundant):
            redundant.setdefault(labels["kind"], {})[labels["fate"]] = int(value)
        return Frame(
            policy=self._policy,
            ready=frontend.ready,
            degraded=frontend.scheduler.degraded,
            instances=self.instances(),
            gates=self._gates(),
            differing=frontend.differing,
            redundancy=frontend.redundancy,
            redundant={kind: fates for kind, fates in redundant.items() if any(fates.values())},
            events=tuple(self.events),
            points=tuple(self._points),
        )

    def encoded_frame(self, now: float) -> bytes:
        """Return the present frame as JSON; it is made once for all browsers that ask for it within
        FRESH seconds."""
        if now >= self._encoded_at + FRESH:
            self._encoded, self._encoded_at = msgspec.json.encode(self.frame(now)), now
        return self._encoded

    def instances(self) -> tuple[InstanceView, ...]:
        """Return all instances that are up."""
        states = dict(self._frontend.scheduler.instances())
        times: dict[str, list[float]] = {}
        for instance in self._instances.values():
            for role, usual in instance.usual.items():
                times.setdefault(role, []).append(usual)
        views = []
        for name, instance in self._instances.items():
            unit, usual_of = instance.unit, instance.usual
            running = "" if unit is None else unit.role if isinstance(unit, Run) else VERIFYING
            slow = any(
                usual > SLOW * median(times[role])
                for role, usual in usual_of.items()
                if len(times[role]) > 1
            )
            usual = usual_of.get(running, next(iter(usual_of.values()), 0.0))
            roles, state = tuple(sorted(instance.roles)), str(states.get(name, State.UP))
            view = InstanceView(name, instance.node, roles, state, slow, running, 1e3 * usual)
            views.append(view)
        return tuple(views)

    def _gates(self) -> tuple[GateView, ...]:
        """Return the gates, and the stand-ins without one."""
        metrics, judges = self._frontend.metrics, self._frontend.stand_ins.judges
        compared, disagreed = (
            {(labels["source"], labels["given"]): int(value) for labels, value in _samples(each)}
            for each in (metrics.compared_answers, metrics.disagreed_answers)
        )
        views = []
        for source in sorted({source_of(role) for role in self._roles - {DEPLOYED}} & {*judges}):
            judge = judges[source]
            seen, late = (compared.get((source, given), 0) for given in GIVEN)
            wrong, late_wrong = (disagreed.get((source, given), 0) for given in GIVEN)
            turns = [(each.total, each.coverage) for each in judge.turns]
            turned = f"{_clock(judge.turns[-1].time)}: {judge.turns[-1]}" if turns else ""
            views.append(
                GateView(
                    source,
                    judge.gate.level or 0.0,
                    judge.is_open,
                    judge.coverage,
                    seen,
                    seen - wrong,
                    late,
                    late - late_wrong,
                    tuple(turns),
                    turned,
                )
            )
        return tuple(views)


def _clock(time: float) -> str:
    return f"{datetime.fromtimestamp(time):%H:%M:%S}"


def _percentiles(latencies: NDArray[np.float64]) -> Percentiles | None:
    if not len(latencies):
        return None
    return Percentiles(*(1e3 * np.percentile(latencies, (50, 99, 99.9))).tolist())


def _samples(metric: Collector) -> list[tuple[dict[str, str], float]]:
    return [
        (sample.labels, sample.value)
        for family in metric.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]
