"""Spans of requests for OpenTelemetry: where a request's time went.

    infer                  the request, beneath the client's span (W3C traceparent)
      queue                from a query's arrival to its first run
      run                  on an instance, with the model
      stand-in             likewise, with a backup or a parity model
      encode, decode       of the coding group that the query is in

A request to an upstream is beneath the run, or stand-in, of the first query in its unit that has
one. Only requests that are sampled have any. They say which version of which model they are of; a
canary's request has runs of two. This module needs OpenTelemetry: it is imported where somebody
asks for spans.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from parity_models import __version__
from parity_models.scheduling import (
    BACKUPS,
    DEPLOYED,
    Action,
    Answer,
    Decode,
    Encode,
    Fail,
    ForgetGroup,
    Run,
    Source,
    Verify,
)
from parity_models.serving.frontend import Frontend
from parity_models.serving.in_flight import InFlight, Observer
from parity_models.serving.request_log import RequestLog
from parity_models.serving.served_model import ServedModel


def exporting() -> TracerProvider:
    """Sends spans to a collector over OTLP, as the variables OTEL_... say."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "parity-models"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """Makes spans with the tracer of `provider`: of requests, and of what is observed."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("parity_models", __version__)

    def observe(self, frontend: Frontend, model: ServedModel) -> None:
        """Make spans of what a frontend, which is not started yet, does for the queries of `model`,
        until it ends."""
        about = {"parm.model": model.name, "parm.version": model.version}
        frontend.observers.append(QuerySpans(self._tracer, about, frontend.in_flight))

    @contextmanager
    def request(self, log: RequestLog, carrier: Mapping[str, str]) -> Iterator[None]:
        """A request is answered inside; `carrier` has its headers, or metadata."""
        name = f"infer {log.path}"
        context = extract(carrier)
        with self._tracer.start_as_current_span(name, context, SpanKind.SERVER) as span:
            if span.is_recording():
                span.set_attribute("parm.request_id", log.id)
                log.span = span
            log.trace_id = f"{span.get_span_context().trace_id:032x}"
            yield
            if log.sources:
                span.set_attribute("parm.model", log.model)
                span.set_attribute("parm.version", log.version)
                span.set_attribute("parm.sources", ",".join(log.sources))

    def close(self) -> None:
        """Send what waits to be sent."""
        self._provider.shutdown()


class QuerySpans(Observer):
    """Makes spans of what happens to `requests`, by query; each says what is `about` them all."""

    def __init__(
        self, tracer: Tracer, about: Mapping[str, str], requests: Mapping[int, InFlight]
    ) -> None:
        self._tracer = tracer
        self._about = about
        self._requests = requests
        self._epoch = time.time_ns() - time.monotonic_ns()
        self._units: dict[int, Sequence[Span]] = {}
        self._queued: set[int] = set()
        """Queries that are sampled and have run already, so that they are not queued any more."""
        self._members: dict[int, Sequence[int]] = {}

    @property
    def remembered(self) -> int:
        """How much it remembers of what is under way: nothing, when nothing is."""
        return len(self._units) + len(self._queued) + len(self._members)

    # Observer

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Run():
                    self._run(now, action)
                case Encode() if any(map(self._span, action.members)):
                    self._members[action.group] = action.members
                case ForgetGroup():
                    self._members.pop(action.group, None)
                case Answer() | Fail():
                    self._ended(action)

    def encoded(self, began: float, ended: float, action: Encode) -> None:
        self._coded("encode", began, ended, action.members)

    def decoded(self, began: float, ended: float, action: Decode) -> None:
        slots = [action.members[slot] for slot in action.slots]
        self._coded("decode", began, ended, slots)

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        for span in self._units.pop(unit.unit, ()):
            if not finished:
                span.set_status(Status(StatusCode.ERROR, "cancelled, failed or lost"))
            span.end(self._at(now))

    def headers(self, unit: Run) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        for span in self._units.get(unit.unit, ())[:1]:
            inject(headers, set_span_in_context(span))
        return headers

    # Spans

    def _run(self, now: float, run: Run) -> None:
        is_own = run.role == DEPLOYED
        queries = run.subjects if is_own or run.role in BACKUPS else self._of_groups(run)
        spans = []
        for query in queries:
            parent = self._span(query)
            if parent is None:
                continue
            if is_own and query not in self._queued:
                self._queued.add(query)
                self._whole(parent, "queue", self._requests[query].arrived, now)
            of_unit: dict[str, str | int] = {
                "parm.role": run.role,
                "parm.instance": run.instance,
                "parm.batch": len(run.subjects),
            }
            spans.append(
                self._tracer.start_span(
                    "run" if is_own else "stand-in",
                    set_span_in_context(parent),
                    attributes={**self._about, **of_unit},
                    start_time=self._at(now),
                )
            )
        if spans:
            self._units[run.unit] = spans

    def _of_groups(self, run: Run) -> Sequence[int]:
        return [query for group in run.subjects for query in self._members.get(group, ())]

    def _ended(self, action: Answer | Fail) -> None:
        self._queued.discard(action.query)
        span = self._span(action.query)
        if span is None:
            return
        if isinstance(action, Fail):
            span.set_status(Status(StatusCode.ERROR, action.reason))
        elif action.source is not Source.MODEL:
            span.add_event("answered", {"parm.source": action.source})

    def _coded(self, name: str, began: float, ended: float, queries: Sequence[int]) -> None:
        for query in queries:
            parent = self._span(query)
            if parent is not None:
                self._whole(parent, name, began, ended)

    def _whole(self, parent: Span, name: str, began: float, ended: float) -> None:
        context = set_span_in_context(parent)
        span = self._tracer.start_span(
            name, context, attributes=self._about, start_time=self._at(began)
        )
        span.end(self._at(ended))

    def _span(self, query: int) -> Span | None:
        """The span of the query's request, if it is sampled and under way."""
        asked = self._requests.get(query)
        span: Span | None = None
        if asked is not None and asked.request is not None:
            span = asked.request.span
        return span if span is not None and span.is_recording() else None

    def _at(self, monotonic: float) -> int:
        return self._epoch + int(monotonic * 1e9)
