"""Counters, gauges and histograms of a server, for Prometheus.

The scheduler's state (queues, instances, queries in flight) is read on each request for /metrics;
only events are counted as they happen. Every server has its own registry, so that several can run
in one process.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from parity_models import __version__
from parity_models.roles import BACKUP, Source
from parity_models.scheduling.actions import Reason, RecycleReason
from parity_models.scheduling.policies import Redundancy
from parity_models.serving.errors import Refused, RequestError, UnauthorizedError

_STEPS = (1, 1.5, 2, 3, 5, 7.5)
_LATENCIES = (*(scale * step for scale in (1e-3, 1e-2, 1e-1, 1) for step in _STEPS), 10, 30)

COPY, PARITY = "copy", "parity"
"""Kinds of redundant work; a backup's kind is its role."""

SENT, ANSWERED, CANCELLED = "sent", "answered", "cancelled"
"""Fates of redundant work."""

_BUDGET = {
    "parm_differ_budget": "The share of all answers that may differ from the model's.",
    "parm_differ_estimate": "The share of all answers that differ from the model's, estimated.",
    "parm_differ_at_most": "The upper bound (95 %) of the share of all answers that differ.",
}

Kind = TypeVar("Kind", Counter, Gauge, Histogram)


class _ByRole(Collector):
    """A metric of this `kind` by role; its `values` are read on each request for metrics."""

    def __init__(
        self,
        kind: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        help_text: str,
        values: Callable[[], Mapping[str, float]],
    ) -> None:
        self._kind, self._name, self._help_text, self._values = kind, name, help_text, values

    def collect(self) -> Iterable[Metric]:
        family = self._kind(self._name, self._help_text, labels=["role"])
        for role, value in self._values().items():
            family.add_metric([role], value)
        yield family


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
        self.degraded = gauge(
            "parm_degraded",
            "1 while no instance of the model is up, or all are stuck: stand-ins answer.",
        )
        self.lag = gauge(
            "parm_loop_lag_seconds", "Recent wait of reports and timers for this process."
        )
        self.process_busy = gauge(
            "parm_process_busy",
            "Share of the time in which the loop computes, without waits for a core.",
        )
        self.redundancy = gauge(
            "parm_redundancy",
            "1 for the state of redundant work: on, testing (whether it helps), paused (it does "
            "not), bottleneck (the server's own process), or off.",
            "state",
            known=Redundancy,
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

    def budget(self, differ: Callable[[], tuple[float, float, float]]) -> None:
        """Show the share of all answers that may differ, the estimate of the share that does, and
        its upper bound (95 %)."""
        for place, (name, help_text) in enumerate(_BUDGET.items()):
            shown = self._make(Gauge, name, help_text)
            shown.set_function(partial(lambda place: differ()[place], place))

    def read(
        self,
        name: str,
        help_text: str,
        values: Callable[[], Mapping[str, float]],
        *,
        total: bool = False,
    ) -> None:
        """Show a gauge, or a counter if `total`, by role; `values` are read on each request."""
        kind = CounterMetricFamily if total else GaugeMetricFamily
        self.registry.register(_ByRole(kind, name, help_text, values))
