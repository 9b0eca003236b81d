"""Spans of requests for OpenTelemetry: where a request's time went.

    infer MODEL            the request, beneath the client's span (W3C traceparent)
      run                  a query's, on an instance, with the model
      stand-in             likewise, with a backup or a parity model

A request to an upstream is beneath the run, or stand-in, of the first query in its unit that has
one. Only sampled requests have spans. Spans name the version of the model. This module needs
OpenTelemetry, so it is imported only if spans are wanted.
"""

import time
from collections.abc import Mapping, Sequence

from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from parity_models import __version__
from parity_models.roles import BACKUP, DEPLOYED
from parity_models.scheduling.actions import Action, Encode, ForgetGroup, Run, Verify
from parity_models.serving.frontend import Frontend, InFlight, Observer
from parity_models.serving.inference import Answer, Call, Inference
from parity_models.serving.limits import ByteBudget
from parity_models.serving.models import Models, ServedModel


def exporting() -> TracerProvider:
    """Return a provider that exports spans over OTLP, set up by OTEL_... variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "parity-models"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """Makes spans of requests, and of their runs, with the tracer of `provider`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("parity_models", __version__)

    def observe(self, frontend: Frontend, model: ServedModel) -> None:
        """Make spans of a frontend's work on the queries of `model`; it must not have started."""
        about = {"parm.model": model.name, "parm.version": model.version}
        frontend.observers.append(QuerySpans(self._tracer, about, frontend.in_flight))

    def inference(self, models: Models, budget: ByteBudget) -> Inference:
        """Return an Inference that makes a span of each call."""
        return _TracedInference(self._tracer, models, budget)

    def close(self) -> None:
        """Send the spans that wait."""
        self._provider.shutdown()


class _TracedInference(Inference):
    def __init__(self, tracer: Tracer, models: Models, budget: ByteBudget) -> None:
        super().__init__(models, budget)
        self._tracer = tracer

    async def answer(self, call: Call[Answer]) -> Answer:
        log = call.log
        if log is None:
            return await super().answer(call)
        # Not the path: clients spell it in endless ways (%6dodel).
        context = extract(call.headers)
        with self._tracer.start_as_current_span("infer", context, SpanKind.SERVER) as span:
            if span.is_recording():
                span.set_attribute("parm.request_id", log.id)
                log.span = span
            log.trace_id = f"{span.get_span_context().trace_id:032x}"
            answer = await super().answer(call)
            span.update_name(f"infer {log.model}")
            span.set_attribute("parm.model", log.model)
            span.set_attribute("parm.version", log.version)
            span.set_attribute("parm.sources", ",".join(log.sources))
        return answer


class QuerySpans(Observer):
    """Makes spans of the runs of `requests`, by query; each has the attributes `about`."""

    def __init__(
        self, tracer: Tracer, about: Mapping[str, str], requests: Mapping[int, InFlight]
    ) -> None:
        self._tracer = tracer
        self._about = about
        self._requests = requests
        self._epoch = time.time_ns() - time.monotonic_ns()
        self.units: dict[int, Sequence[Span]] = {}
        """The spans of each unit that runs."""
        self.members: dict[int, Sequence[int]] = {}
        """The queries of each group, if one of them is sampled."""

    def acted(self, now: float, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Run():
                    self._run(now, action)
                case Encode() if any(map(self._span_of, action.members)):
                    self.members[action.group] = action.members
                case ForgetGroup():
                    self.members.pop(action.group, None)

    def unit_ended(self, now: float, unit: Run | Verify, *, finished: bool) -> None:
        for span in self.units.pop(unit.unit, ()):
            if not finished:
                span.set_status(Status(StatusCode.ERROR, "cancelled, failed or lost"))
            span.end(self._at(now))

    def headers(self, unit: Run) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        for span in self.units.get(unit.unit, ())[:1]:
            inject(headers, set_span_in_context(span))
        return headers

    def _run(self, now: float, run: Run) -> None:
        is_own = run.role == DEPLOYED
        queries: Sequence[int] = run.subjects
        if not is_own and run.role != BACKUP:
            queries = [query for group in queries for query in self.members.get(group, ())]
        attributes: dict[str, str | int] = {
            **self._about,
            "parm.role": run.role,
            "parm.instance": run.instance,
            "parm.batch": len(run.subjects),
        }
        spans = []
        for query in queries:
            parent = self._span_of(query)
            if parent is None:
                continue
            name, context = "run" if is_own else "stand-in", set_span_in_context(parent)
            start = self._at(now)
            spans.append(
                self._tracer.start_span(name, context, attributes=attributes, start_time=start)
            )
        if spans:
            self.units[run.unit] = spans

    def _span_of(self, query: int) -> Span | None:
        """Return the span of the query's request, if it is sampled and under way."""
        found = self._requests.get(query)
        span: Span | None = found.request.span if found and found.request else None
        return span if span is not None and span.is_recording() else None

    def _at(self, monotonic: float) -> int:
        return self._epoch + int(monotonic * 1e9)
