"""Events of a Late, and metrics of them in Prometheus and OpenTelemetry.

late = pm.Late("bundle", on_event=prometheus())
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from parity_models.roles import Source

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

EventName = Literal["start", "answer", "failure", "refusal", "comparison"]

NAMES = ("event", "source", "kind", "reason")


@dataclass(frozen=True, slots=True)
class LateEvent:
    """An event of a call.

    Attributes:
        event: A call, a copy or the stand-in was started; the caller was answered; a call or a copy
            failed; the stand-in's output may not answer; or it was compared with the model's.
        source: The model, a copy or the backup: what the event is about.
        kind: The kind of the call.
        seconds: The time since the call was made; 0 for a comparison.
        reason: Why there was a refusal; the error's class for a failure; "agreed" or "disagreed"
            for a comparison, followed by "late" if the call was late.

    """

    event: EventName
    source: Source
    kind: str
    seconds: float
    reason: str = ""

    @property
    def labels(self) -> dict[str, str]:
        """All but the time, by name."""
        return {name: str(getattr(self, name)) for name in NAMES}


OnEvent = Callable[[LateEvent], Any]


@cache
def prometheus(registry: CollectorRegistry = REGISTRY) -> OnEvent:
    """Return an `on_event` that counts events, and the seconds to answers, for Prometheus."""
    events = Counter("parm_late_events", "Events of calls", NAMES, registry=registry)
    seconds = Histogram(
        "parm_late_answer_seconds", "Time to answers", NAMES[1:3], registry=registry
    )

    def record(event: LateEvent) -> None:
        events.labels(**event.labels).inc()
        if event.event == "answer":
            seconds.labels(event.source, event.kind).observe(event.seconds)

    return record


@cache
def opentelemetry(meter: "Meter | None" = None) -> OnEvent:
    """Return an `on_event` that counts events, and the seconds to answers, for OpenTelemetry.

    Raises:
        ModuleNotFoundError: OpenTelemetry is not installed.

    """
    from opentelemetry.metrics import get_meter

    meter = meter or get_meter("parity_models.late")
    events = meter.create_counter("parm.late.events", description="Events of calls")
    seconds = meter.create_histogram("parm.late.answer", "s", "Time to answers")

    def record(event: LateEvent) -> None:
        labels = event.labels
        events.add(1, labels)
        if event.event == "answer":
            seconds.record(event.seconds, {"source": labels["source"], "kind": labels["kind"]})

    return record
