"""Samples a server: makes frames of what its watch remembers and of what can be read off it."""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.registry import Collector

from parity_models.scheduling.health import State
from parity_models.serving.frontend import Frontend
from parity_models.serving.metrics import Metrics
from parity_models.serving.page.feed import Feed
from parity_models.serving.page.frames import GateView, PageFrame, Point
from parity_models.serving.page.latencies import MINUTES
from parity_models.serving.page.watch import Watch

MAX_INSTANCES = 400
"""Instances that a frame has at most; of further ones it has the number."""

STEP = 1.0
"""Seconds between two points of the charts."""


class Watched(Protocol):
    """What is read off a frontend."""

    @property
    def ready(self) -> bool:
        """Would a query be answered?"""

    @property
    def asked(self) -> int:
        """How many queries it has been asked so far."""

    def states(self) -> Mapping[str, State]:
        """How each instance is that is up."""

    def queue_depths(self) -> Mapping[str, int]:
        """How many tasks are waiting, by role."""

    def busy_seconds(self) -> Mapping[str, float]:
        """How long instances have been busy with units that have ended, in all, by role."""


@dataclass(frozen=True)
class _Totals:
    """What has been counted up to a time."""

    at: float
    asked: int
    answers: Counter[str]
    failed: int
    busy: float


class Sampler:
    """Frames of a server of `model` with `policy`. `clock` gives monotonic seconds, to which
    `epoch` is added to have them since 1970."""

    def __init__(
        self,
        watch: Watch,
        watched: Watched,
        metrics: Metrics,
        *,
        model: str,
        policy: str,
        clock: Callable[[], float],
        epoch: float,
    ) -> None:
        self._watch = watch
        self._watched = watched
        self._metrics = metrics
        self._model = model
        self._policy = policy
        self._clock = clock
        self._epoch = epoch
        self._points: deque[Point] = deque(maxlen=int(MINUTES / STEP))
        self._compared: deque[dict[str, tuple[int, int]]] = deque(maxlen=int(MINUTES / STEP))
        self._before = self._totals(clock())
        self._gates: tuple[GateView, ...] = ()
        self._last_frame = 0.0
        self._last_event = 0

    def tick(self) -> None:
        """Look at what has to be looked at even if nobody watches: to be called every STEP."""
        now = self._clock()
        if now - self._before.at < STEP:
            return
        self._gates = self._read_gates()
        self._watch.gates(now, self._gates)
        self._watch.states(now, self._watched.states())
        totals, before = self._totals(now), self._before
        self._before = totals
        took = now - before.at
        tails = self._watch.tails
        self._points.append(
            Point(
                self._epoch + now,
                (totals.asked - before.asked) / took,
                sum(self._watched.queue_depths().values()),
                min(1.0, (totals.busy - before.busy) / took / max(1, len(self._watch.instances))),
                {
                    source: (count - before.answers[source]) / took
                    for source, count in totals.answers.items()
                },
                (totals.failed - before.failed) / took,
                tails.with_stand_ins(now).now,
                tails.without(now).now,
            )
        )

    def frame(self, *, whole: bool) -> PageFrame:
        """How it is now; what is new since the last frame that was not `whole`, or all there is."""
        self.tick()
        now = self._clock()
        since, last_event = (0.0, 0) if whole else (self._last_frame, self._last_event)
        if not whole:
            self._last_frame = now
            self._last_event = self._watch.events[-1].number if self._watch.events else 0
        latest = self._points[-1] if self._points else None
        instances = self._watch.instances.views(now, self._watched.states())
        tails = self._watch.tails
        settled, known = tails.settled(now)
        return PageFrame(
            at=self._epoch + now,
            model=self._model,
            policy=self._policy,
            ready=self._watched.ready,
            instances=tuple(instances[:MAX_INSTANCES]),
            further_instances=max(0, len(instances) - MAX_INSTANCES),
            queued=dict(self._watched.queue_depths()),
            asked=latest.asked if latest else 0.0,
            answers=latest.answers if latest else {},
            failed=latest.failed if latest else 0.0,
            busy=latest.busy if latest else 0.0,
            answered=tails.with_stand_ins(now),
            alone=tails.without(now),
            own=known,
            bounds=settled - known,
            gates=self._gates,
            requests=tuple(self._watch.requests.since(since, now)),
            requests_sent=self._watch.requests.sent,
            events=self._watch.events_after(last_event),
            points=tuple(p for p in self._points if p.at >= self._epoch + since),
        )

    def _totals(self, now: float) -> _Totals:
        return _Totals(
            now,
            self._watched.asked,
            Counter(self._watch.answers),
            sum(self._watch.failures.values()),
            sum(self._watched.busy_seconds().values()),
        )

    def _read_gates(self) -> tuple[GateView, ...]:
        """The gates, and the stand-ins that are there without one."""
        is_open = _by_source(self._metrics.gate_open)
        levels = _by_source(self._metrics.gate_agreement)
        coverages = _by_source(self._metrics.gate_coverage)
        compared = _by_source(self._metrics.compared_answers)
        disagreed = _by_source(self._metrics.disagreed_answers)
        totals = {
            source: (int(count), int(count - disagreed.get(source, 0.0)))
            for source, count in compared.items()
        }
        self._compared.append(totals)
        views = []
        for source in sorted({*is_open, *compared, *self._watch.instances.stand_ins()}):
            now, then = totals.get(source, (0, 0)), self._compared[0].get(source, (0, 0))
            views.append(
                GateView(
                    source,
                    levels.get(source, 0.0),
                    coverages.get(source, 1.0),
                    bool(is_open.get(source, 1.0)),
                    now[0],
                    now[1],
                    now[0] - then[0],
                    now[1] - then[1],
                )
            )
        return tuple(views)


def _by_source(metric: Collector) -> dict[str, float]:
    return {
        sample.labels["source"]: sample.value
        for family in metric.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def feed_of(frontend: Frontend, metrics: Metrics, *, model: str, policy: str) -> Feed:
    """The feed of a frontend that is not started yet."""
    epoch = time.time() - time.monotonic()
    watch = frontend.watch(epoch)
    sampler = Sampler(
        watch, frontend, metrics, model=model, policy=policy, clock=time.monotonic, epoch=epoch
    )
    return Feed(sampler)
