"""The watch: keeps what an operator wants to know of a server, and makes frames of it.

It observes, without I/O: what happens comes with its time (monotonic, in seconds), and the rest is
read off the frontend and its metrics when a frame is made. A frame has the present state and what
is new since the one before; the first that a browser gets has all that is kept. New items may come
twice: points are known by their time, events by their number.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct
from prometheus_client.metrics_core import Metric
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
from parity_models.serving.in_flight import Observer
from parity_models.serving.page.feed import Feed
from parity_models.serving.page.instances import InstanceView, PageInstances
from parity_models.serving.page.latencies import MINUTES, Latencies, Percentiles, Tail

if TYPE_CHECKING:
    from parity_models.serving.frontend import Frontend
    from parity_models.serving.in_flight import InFlight

KEPT = 200
"""Events that are kept."""

QUIET = 5.0
"""Seconds without a failed query after which the next one is an event again."""

VERIFYING = "golden query"
"""The role of an instance's unit while it is verified."""

MAX_INSTANCES = 400
"""Instances in a frame; of further ones it has the number."""

STEP = 1.0
"""Seconds between two points of the charts."""

_REDUNDANCY = {
    Redundancy.ON: "on, as the policy decides",
    Redundancy.TESTING: "on and off in turns, to test whether it shortens latencies",
    Redundancy.PAUSED: "paused, as it does not shorten latencies",
    Redundancy.BOTTLENECK: "stopped, as the server's own process is the bottleneck",
    Redundancy.OFF: "switched off",
}


class Event(Struct, frozen=True):
    """An event for operators, `at` seconds since 1970."""

    number: int
    at: float
    kind: str
    text: str


class GateView(Struct, frozen=True):
    """How often a stand-in agrees with the model, against the `level` that its gate promises.

    Without a gate, `level` is 0 and `open` is true. `agreed` of `compared` answers said what the
    model said, since the server's start.
    """

    source: str
    level: float
    coverage: float
    open: bool
    compared: int
    agreed: int


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
    """The state of a server, and what is new. `latest` is the last second, `redundancy` says in
    words whether redundant work is sent, and `redundant` counts redundant tasks by kind, then by
    what became of them."""

    at: float
    model: str
    policy: str
    ready: bool
    instances: tuple[InstanceView, ...]
    further_instances: int
    latest: Point | None
    answered: Tail
    gates: tuple[GateView, ...]
    redundancy: str
    redundant: dict[str, dict[str, int]]
    events: tuple[Event, ...]
    points: tuple[Point, ...]


class _Totals(Struct, frozen=True):
    at: float
    asked: int
    answers: Counter[str]
    failed: int
    busy: float


class Watch(Observer):
    """Observes `frontend`, whose requests under way are `requests`, by query.

    Args:
        model: The model's name, as the page shows it.
        policy: The policy's name.
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
        clock: Callable[[], float] = time.monotonic,
        epoch: float | None = None,
    ) -> None:
        self._frontend = frontend
        self._requests = requests
        self._model = model
        self._policy = policy
        self._clock = clock
        self._epoch = time.time() - clock() if epoch is None else epoch
        self.instances = PageInstances()
        self.answers: Counter[str] = Counter()
        """Queries answered, by source."""
        self.failures: Counter[str] = Counter()
        """Queries that failed, by reason."""
        self.events: deque[Event] = deque(maxlen=KEPT)
        self._latencies = Latencies()
        self._roles: set[str] = set()
        self._last_number = 0
        self._last_failure = -QUIET
        self._ejected: set[str] = set()
        self._closed: set[str] = set()
        self._points: deque[Point] = deque(maxlen=int(MINUTES / STEP))
        self._before = _Totals(clock(), 0, Counter(), 0, 0.0)
        self._sent = (0.0, 0)
        """The time, and the last event, of the last frame that was not whole."""

    # Observer

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Run():
                    self.instances.started(now, action.instance, action.unit, action.role)
                case Verify():
                    self.instances.started(now, action.instance, action.unit, VERIFYING)
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
        before = self.instances.joined(instance, roles, node)
        if before is not None:
            self._happened(now, "joined", f"instance {instance} is up, in place of {before}")

    def instance_left(self, now: float, instance: str, why: str) -> None:
        self.instances.left(now, instance, why)
        self._ejected.discard(instance)
        self._happened(now, "left", f"instance {instance} left: it {why}")

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        self.instances.ended(now, unit.instance, unit.unit, finished=finished)

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
        self._states(now, frontend.states())
        self._gates(now, self._read_gates())
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
                min(1.0, (totals.busy - before.busy) / took / max(1, len(self.instances))),
                {
                    source: (count - before.answers[source]) / took
                    for source, count in totals.answers.items()
                },
                (totals.failed - before.failed) / took,
                self._latencies.tail(now).now,
            )
        )

    def frame(self, *, whole: bool) -> Frame:
        """Return the present state with what is new, or, if `whole`, with all that is kept."""
        self.tick()
        now = self._clock()
        since, last = (0.0, 0) if whole else self._sent
        if not whole:
            self._sent = now, self._last_number
        instances = self.instances.views(now, self._frontend.states())
        return Frame(
            at=self._epoch + now,
            model=self._model,
            policy=self._policy,
            ready=self._frontend.ready,
            instances=tuple(instances[:MAX_INSTANCES]),
            further_instances=max(0, len(instances) - MAX_INSTANCES),
            latest=self._points[-1] if self._points else None,
            answered=self._latencies.tail(now),
            gates=self._read_gates(),
            redundancy=_redundancy(self._frontend),
            redundant=_redundant(self._frontend.metrics.redundant),
            events=tuple(event for event in self.events if event.number > last),
            points=tuple(point for point in self._points if point.at >= self._epoch + since),
        )

    def _states(self, now: float, states: Mapping[str, State]) -> None:
        ejected = {name for name, state in states.items() if state is State.EJECTED}
        for name in sorted(ejected - self._ejected):
            self._happened(now, "ejected", f"instance {name} gets no work for a while")
        for name in sorted(self._ejected - ejected):
            self._happened(now, "back", f"instance {name} is back")
        self._ejected = ejected

    def _gates(self, now: float, gates: Sequence[GateView]) -> None:
        closed = {gate.source for gate in gates if not gate.open}
        for source in sorted(closed - self._closed):
            why = "it agrees with the model too seldom"
            self._happened(now, "gate closed", f"the {source} is out of service: {why}")
        for source in sorted(self._closed - closed):
            self._happened(now, "gate open", f"the {source} answers again")
        self._closed = closed

    def _read_gates(self) -> tuple[GateView, ...]:
        """Return the gates, and the stand-ins that have none."""
        metrics = self._frontend.metrics
        is_open, levels = _by_source(metrics.gate_open), _by_source(metrics.gate_agreement)
        coverages, compared = (
            _by_source(metrics.gate_coverage),
            _by_source(metrics.compared_answers),
        )
        disagreed = _by_source(metrics.disagreed_answers)
        stand_ins = {str(source_of(role)) for role in self._roles - {DEPLOYED}}
        return tuple(
            GateView(
                source,
                levels.get(source, 0.0),
                coverages.get(source, 1.0),
                bool(is_open.get(source, 1.0)),
                int(compared.get(source, 0)),
                int(compared.get(source, 0) - disagreed.get(source, 0)),
            )
            for source in sorted({*is_open, *compared, *stand_ins})
        )


def _samples(metric: Collector) -> Sequence[tuple[dict[str, str], float]]:
    families: Sequence[Metric] = list(metric.collect())
    return [
        (sample.labels, sample.value)
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


def _by_source(metric: Collector) -> dict[str, float]:
    return {labels["source"]: value for labels, value in _samples(metric)}


def _redundancy(frontend: "Frontend") -> str:
    words, state = _REDUNDANCY[frontend.redundancy], frontend.redundancy
    wait = f"; reports wait {frontend.lag * 1e3:.1f} ms" if state is Redundancy.BOTTLENECK else ""
    return f"redundant work: {words}{wait}"


def _redundant(metric: Collector) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for labels, value in _samples(metric):
        found.setdefault(labels["kind"], {})[labels["fate"]] = int(value)
    return {kind: fates for kind, fates in found.items() if any(fates.values())}


def feed_of(frontend: "Frontend", *, model: str, policy: str) -> Feed:
    """Return the feed of a frontend that is not started yet."""
    watch = Watch(frontend, frontend.in_flight, model=model, policy=policy)
    frontend.observers.append(watch)
    return Feed(watch)
