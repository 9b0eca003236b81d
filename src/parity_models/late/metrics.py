"""Metrics of a Late in Prometheus and OpenTelemetry.

late = pm.Late("bundle", on_event=prometheus())
"""

from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from parity_models.late.client import LateEvent, OnEvent

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

LABELS = LateEvent._fields[:4]


@cache
def prometheus(registry: CollectorRegistry = REGISTRY) -> OnEvent:
    """Return an `on_event` that counts events, and the seconds to answers, for Prometheus."""
    name, about = "parm_late_answer_seconds", "Time to answers"
    events = Counter("parm_late_events", "Events of calls", LABELS, registry=registry)
    seconds = Histogram(name, about, LABELS[1:3], registry=registry)

    def record(event: LateEvent) -> None:
        events.labels(*event[:4]).inc()
        if event.event == "answer":
            seconds.labels(event.source, event.kind).observe(event.seconds)

    return record


@cache
def opentelemetry(meter: "Meter | None" = None) -> OnEvent:
    """Return an `on_event` that counts events, and the seconds to answers, for OpenTelemetry."""
    from opentelemetry.metrics import get_meter

    meter = meter or get_meter("parity_models.late")
    events = meter.create_counter("parm.late.events", description="Events of calls")
    seconds = meter.create_histogram("parm.late.answer", "s", "Time to answers")

    def record(event: LateEvent) -> None:
        events.add(1, dict(zip(LABELS, map(str, event[:4]), strict=True)))
        if event.event == "answer":
            seconds.record(event.seconds, {"source": str(event.source), "kind": event.kind})

    return record
