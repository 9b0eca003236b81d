"""What a server counts and times, for Prometheus.

What can be read off the scheduler (queues, instances, queries in flight) is read when somebody
asks for /metrics; only events are counted as they happen. Every server has a registry of its
own, so that several live in one process.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from parity_models import __version__
from parity_models.scheduling import BACKUPS, Reason, RecycleReason, Redundancy, Source
from parity_models.serving.refusals import Refused

_STEPS = (1, 1.5, 2, 3, 5, 7.5)
_LATENCIES = (*(scale * step for scale in (1e-3, 1e-2, 1e-1, 1) for step in _STEPS), 10, 30)
_ERRORS = (1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
_TIMINGS = (*(scale * step for scale in (1e-6, 1e-5, 1e-4) for step in (1, 2, 5)), *_LATENCIES)

HTTP, GRPC = PROTOCOLS = ("http", "grpc")

Kind = TypeVar("Kind", Counter, Gauge, Histogram)


class _ByRole(Collector):
    """Makes the `family` of all `values`, with the `labels` that a role has."""

    def __init__(
        self,
        labels: Callable[[str], list[str]],
        family: Callable[[], GaugeMetricFamily | CounterMetricFamily],
        values: Callable[[], Mapping[str, float]],
    ) -> None:
        self._labels = labels
        self._family = family
        self._values = values

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for role, value in self._values().items():
            family.add_metric(self._labels(role), value)
        yield family


class Metrics:
    """The counters and histograms of one server. Times are in seconds.

    `bundle_digest` is that of the served bundle's manifest.
    """

    def __init__(self, bundle_digest: str = "") -> None:
        self.registry = CollectorRegistry()

        counter, gauge = partial(self._make, Counter), partial(self._make, Gauge)
        histogram = partial(self._make, Histogram)

        # Requests and connections
        self.requests = counter(
            "parm_requests",
            "Infer requests, by HTTP status (over gRPC, by the one it stands for).",
            "code",
        )
        self.unauthorized = counter(
            "parm_requests_unauthorized",
            "Requests, for whatever, without a token that the server takes.",
        )
        self.connections = gauge("parm_connections", "HTTP connections that are open.")
        self.connections_ended = counter(
            "parm_connections_ended", "Connections refused, or ended, by limit.", "limit"
        )
        self.refusals = counter(
            "parm_refused", "Requests and connections refused, by why.", "why", known=Refused
        )
        self.bytes_in_flight = gauge(
            "parm_bytes_in_flight",
            "Bytes of requests under way and of answers that their clients have not read.",
        )
        self.received = counter(
            "parm_received_bytes",
            "Bytes that clients sent, by protocol; over gRPC, those of messages.",
            "protocol",
            known=PROTOCOLS,
        )
        self.sent = counter(
            "parm_sent_bytes",
            "Bytes of answers to clients, by protocol; over gRPC, those of messages.",
            "protocol",
            known=PROTOCOLS,
        )

        # Queries
        self.latency_by_source = histogram(
            "parm_query_latency_seconds",
            "From a query's arrival to its answer, by the answer's source.",
            "source",
            known=[source for source in Source if source not in BACKUPS[1:]],
            buckets=_LATENCIES,
        )
        self.failures = counter(
            "parm_query_failures", "Queries that got no answer, by reason.", "reason", known=Reason
        )
        self.reconstructions = counter(
            "parm_reconstructions", "Queries answered by a reconstruction."
        )
        self.unlike = counter(
            "parm_queries_unlike",
            "Queries unlike those that stand-ins learned from, which are answered exactly.",
        )
        self.group_wait = histogram(
            "parm_group_wait_seconds",
            "From a coding group's first query to its closing.",
            buckets=_TIMINGS,
        )
        self.encode = histogram(
            "parm_encode_seconds", "Encoding one coding group.", buckets=_TIMINGS
        )
        self.decode = histogram(
            "parm_decode_seconds", "Decoding one coding group.", buckets=_TIMINGS
        )
        self.lag = gauge(
            "parm_loop_lag_seconds",
            "How long reports of instances and timers wait for the server's own process, lately.",
        )
        self.process_busy = gauge(
            "parm_process_busy", "The share of a core that the server's own process uses."
        )
        self.redundancy = gauge(
            "parm_redundancy",
            "1 for the state of redundant work: on, testing whether it helps, paused as it does "
            "not, bottleneck (the server's own process is), or off.",
            "state",
            known=Redundancy,
        )
        self.capacity = gauge(
            "parm_capacity_queries_per_second",
            "Queries a second that admission takes the instances to answer at most; 0: not known.",
        )
        self.deadline_margin = histogram(
            "parm_deadline_margin_seconds",
            "From a query's answer to the deadline that it had.",
            buckets=_LATENCIES,
        )

        # Redundant work
        self.redundant = counter(
            "parm_redundant_tasks",
            "Redundant tasks, by kind and fate; answered, refused: their queries.",
            "kind",
            "fate",
        )
        self.unit_run = histogram(
            "parm_unit_run_seconds",
            "From when an instance was given a unit to its outputs, by role and class of instance.",
            "role",
            "instances",
            buckets=_LATENCIES,
        )

        # How right stand-ins are
        self.compared = counter(
            "parm_reconstructions_compared",
            "Predictions compared with what would have been reconstructed in their place.",
        )
        self.disagreements = counter(
            "parm_reconstructions_disagreed",
            "Compared reconstructions of another class: whose largest value is in another place.",
        )
        self.reconstruction_error = histogram(
            "parm_reconstruction_error",
            "Distance of a compared reconstruction from the prediction, over the latter's length.",
            buckets=_ERRORS,
        )
        self.impossible = counter(
            "parm_stand_in_outputs_impossible",
            "Outputs of stand-ins that cannot be right, and answered nobody.",
        )
        self.refused_answers = counter(
            "parm_stand_in_answers_refused",
            "Outputs of stand-ins that were too unsure to answer, or whose gate was closed.",
            "source",
            "reason",
        )
        self.compared_answers = counter(
            "parm_stand_in_answers_compared",
            "Outputs of stand-ins that may answer, compared with the model's for the same query.",
            "source",
        )
        self.disagreed_answers = counter(
            "parm_stand_in_answers_disagreed", "Those that did not say the same.", "source"
        )
        self.gate_open = gauge(
            "parm_gate_open",
            "1: the stand-in may answer; 0: it agrees too seldom, and may not.",
            "source",
        )
        self.gate_agreement = gauge(
            "parm_gate_agreement",
            "The share of the stand-in's answers that should say what the model says.",
            "source",
        )
        self.gate_coverage = gauge(
            "parm_gate_coverage",
            "The share of calibration queries that the stand-in may answer.",
            "source",
        )

        # Instances
        self.restarts = counter(
            "parm_instance_restarts",
            "Instances that joined after the start: lost ones that are back.",
        )
        self.recycled = counter(
            "parm_instances_recycled",
            "Instances that were replaced, by what was wrong with them.",
            "reason",
            known=RecycleReason,
        )
        self.quarantined = counter(
            "parm_instance_quarantines",
            "Instances that answered a golden query wrongly, the latest of them by name.",
            "instance",
        )
        self.verifications = counter(
            "parm_verifications",
            "Golden queries run on instances to see whether they answer rightly.",
        )
        self.ejections = counter(
            "parm_upstream_ejections",
            "Upstreams that got no units for a while, by what was wrong with them.",
            "upstream",
            "fault",
        )
        self.upstream_busy = counter(
            "parm_upstream_busy",
            "Units that upstreams turned away as they had enough to do.",
            "upstream",
        )

        # What went wrong inside
        self.engine_errors = counter(
            "parm_engine_errors",
            "Errors within the engine that it got over, by what it was doing.",
            "doing",
        )
        self.messages_refused = counter(
            "parm_messages_refused",
            "Messages of workers that were refused, as malformed.",
            "why",
            known=("malformed",),
        )
        self.undone = counter(
            "parm_actions_failed", "Actions of the scheduler that could not be carried out."
        )
        self.observer_errors = counter(
            "parm_observer_errors", "Errors of what watches the server, which hindered nobody."
        )
        self.repairs = counter(
            "parm_repairs",
            "Differences between what the scheduler believed and what the engine had.",
        )
        self.build_info = gauge(
            "parm_build_info",
            "The software's version, and the digest of the bundle that it serves.",
            "version",
            "bundle_digest",
        )
        self.latency: Callable[[Source], Histogram] = cache(self.latency_by_source.labels)
        self.build_info.labels(__version__, bundle_digest).set(1)

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

    def refused(self, why: str, messages: int = 1) -> None:
        """Count messages that were refused, as `why` says: malformed."""
        if messages > 0:
            self.messages_refused.labels(why).inc(messages)

    def certificate_expires(self, at: Callable[[], float]) -> None:
        """There is a certificate that ends `at` this Unix time."""
        name, text = (
            "parm_certificate_expires_seconds",
            "When the server's certificate ends (Unix).",
        )
        Gauge(name, text, registry=self.registry).set_function(at)

    def read(self, name: str, help_text: str, values: Callable[[], Mapping[str, int]]) -> None:
        """A gauge by role, whose values are asked for when the metrics are."""
        # `work` is the name of the label until version 0.3.
        family = partial(GaugeMetricFamily, name, help_text, labels=["role", "work"])
        self.registry.register(_ByRole(lambda role: [role, role], family, values))

    def read_total(
        self, name: str, help_text: str, values: Callable[[], Mapping[str, float]]
    ) -> None:
        """A counter by role, whose values are asked for when the metrics are."""
        family = partial(CounterMetricFamily, name, help_text, labels=["role"])
        self.registry.register(_ByRole(lambda role: [role], family, values))
