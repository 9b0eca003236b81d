"""Counters, gauges and histograms of a server, for Prometheus.

Events are counted here as they happen; the frontend adds the scheduler's state (queues, instances,
queries in flight), which is read on each request for /metrics. Every server has its own registry,
so that several can run in one process.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from parity_models import __version__
from parity_models.roles import BACKUP, Source
from parity_models.scheduling.actions import Reason, RecycleReason
from parity_models.serving.errors import Refused, RequestError, UnauthorizedError

_STEPS = (1, 1.5, 2, 3, 5, 7.5)
_LATENCIES = (*(scale * step for scale in (1e-3, 1e-2, 1e-1, 1) for step in _STEPS), 10, 30)

COPY, PARITY = "copy", "parity"
"""Kinds of redundant work; a backup's kind is its role."""

SENT, ANSWERED, CANCELLED = "sent", "answered", "cancelled"
"""Fates of redundant work."""

Kind = TypeVar("Kind", Counter, Gauge, Histogram)


class Metrics:
    """The metrics of one server. Times are in seconds.

    `bundle_digest` is the digest of the served bundle's manifest.
    """

    def __init__(self, bundle_digest: str = "") -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(self._make, Counter), partial(self._make, Gauge)
        histogram = partial(self._make, Histogram)

        # Requests and connections
        self.requests = counter(
            "parm_requests", "Infer requests, by HTTP status; gRPC's by its equivalent.", "code"
        )
        self.request: Callable[[int], Counter] = cache(self.requests.labels)
        self.unauthorized = counter(
            "parm_requests_unauthorized", "Requests of any kind without a valid token."
        )
        self.connections = gauge("parm_connections", "Open HTTP connections.")
        self.connections_ended = counter(
            "parm_connections_ended", "Connections refused, or ended, by limit.", "limit"
        )
        self.refusals = counter(
            "parm_refused", "Requests and connections refused, by reason.", "why", known=Refused
        )
        self.bytes_in_flight = gauge(
            "parm_bytes_in_flight", "Bytes of requests under way and of answers not yet read."
        )

        # Queries
        self.latency_by_source = histogram(
            "parm_query_latency_seconds",
            "From a query's arrival to its answer, by the answer's source.",
            "source",
            known=Source,
            buckets=_LATENCIES,
        )
        self.latency: Callable[[Source], Histogram] = cache(self.latency_by_source.labels)
        self.failures = counter(
            "parm_query_failures", "Queries without an answer, by reason.", "reason", known=Reason
        )
        self.unlike = counter(
            "parm_queries_unlike",
            "Queries that no stand-in saw, as they are unlike those that it learned from.",
        )

        # Redundant work
        self.redundant = counter(
            "parm_redundant_tasks",
            "Redundant tasks, by kind and fate; answered: queries that they answered.",
            "kind",
            "fate",
        )
        for kind in (COPY, BACKUP, PARITY):
            for fate in (SENT, ANSWERED, CANCELLED):
                self.redundant.labels(kind, fate)
        self.unit_run = histogram(
            "parm_unit_run_seconds",
            "From the start of a unit on an instance to its outputs, by role.",
            "role",
            buckets=_LATENCIES,
        )

        # Agreement of stand-ins
        self.impossible = counter(
            "parm_stand_in_outputs_impossible", "Outputs of stand-ins that cannot be right."
        )
        self.refused_answers = counter(
            "parm_stand_in_answers_refused",
            "Outputs of stand-ins that were too unsure to answer, or whose gate was closed.",
            "source",
            "reason",
        )
        self.compared_answers = counter(
            "parm_stand_in_answers_compared",
            "Outputs of stand-ins, compared with the model's for the same query, by whether the "
            "query was in time or late.",
            "source",
            "given",
        )
        self.disagreed_answers = counter(
            "parm_stand_in_answers_disagreed", "Compared outputs that disagreed.", "source", "given"
        )
        self.gate_open = gauge(
            "parm_gate_open",
            "1: outputs that are sure enough may answer; 0: none, until it agrees often enough.",
            "source",
        )
        self.gate_agreement = gauge(
            "parm_gate_agreement", "The agreement with the model that the gate promises.", "source"
        )
        self.gate_coverage = gauge(
            "parm_gate_coverage", "The share of queries that the gate lets answer.", "source"
        )
        self.gate_turns = counter(
            "parm_gate_turns", "Times that the gate opened further or stepped back.", "source", "to"
        )

        # Answers that may differ
        self.audited_answers = counter(
            "parm_audited_answers",
            "Answers of stand-ins, drawn at random, that were compared with the model's.",
            "source",
        )
        self.audited_differed = counter(
            "parm_audited_answers_differed", "Audited answers that differed.", "source"
        )
        self.audit_factor = gauge(
            "parm_audit_factor", "The number by which calibrated doubts are multiplied.", "source"
        )

        # Instances
        self.restarts = counter("parm_instance_restarts", "Instances that joined after the start.")
        self.recycled = counter(
            "parm_instances_recycled", "Replaced instances.", "reason", known=RecycleReason
        )
        self.ejections = counter(
            "parm_upstream_ejections", "Upstreams taken out for a while.", "upstream", "fault"
        )

        # Errors inside the server
        self.undone = counter(
            "parm_actions_failed", "Actions of the scheduler that could not be carried out."
        )
        self.repairs = counter(
            "parm_repairs", "Differences between scheduler and engine that were repaired."
        )
        about = gauge("parm_build_info", "Version, and bundle digest.", "version", "bundle_digest")
        about.labels(__version__, bundle_digest).set(1)

    def _make(
        self,
        kind: type[Kind],
        name: str,
        help_text: str,
        *labels: str,
        known: Iterable[str] = (),
        **options: Any,
    ) -> Kind:
        """Make a metric; `known` values of its only label are there from the start, at 0."""
        made = kind(name, help_text, labels, registry=self.registry, **options)
        for value in known:
            made.labels(value)
        return made

    def refuse(self, error: RequestError) -> None:
        """Count a request that ends with this error, if it was refused."""
        if error.why is not None:
            self.refusals.labels(error.why).inc()
        elif isinstance(error, UnauthorizedError):
            self.unauthorized.inc()


def labelled(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    help_text: str,
    values: Mapping[str, float],
    label: str = "role",
) -> Metric:
    """Return a metric of this kind with a value for each value of its label."""
    family = kind(name, help_text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
