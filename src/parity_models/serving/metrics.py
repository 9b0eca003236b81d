"""What a server counts and times, for Prometheus.

What can be read off the scheduler (queues, instances, queries in flight) is read when somebody
asks for /metrics; only events are counted as they happen. Every server has a registry of its
own, so that several live in one process.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, Generic, TypeVar

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


class _Declared(Generic[Kind]):
    """A metric of every Metrics, registered in its registry.

    `known` are values of its only label; they are there from the start, at 0. `options` are those
    of the kind.
    """

    def __init__(
        self,
        kind: type[Kind],
        name: str,
        help_text: str,
        *labels: str,
        known: Iterable[str] = (),
        **options: Any,
    ) -> None:
        self._kind: type[Kind] = kind
        self._arguments = (name, help_text, labels)
        self._known = known
        self._options = options

    def __set_name__(self, owner: type, attribute: str) -> None:
        self._attribute = attribute

    def __get__(self, metrics: object, owner: type) -> Kind:
        made: Kind = vars(metrics)[self._attribute]  # unless it was found there at once
        return made

    def make(self, metrics: "Metrics") -> None:
        """Have the metric as an attribute of `metrics`."""
        made = self._kind(*self._arguments, registry=metrics.registry, **self._options)
        for value in self._known:
            made.labels(value)
        vars(metrics)[self._attribute] = made


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

    # Requests and connections

    requests = _Declared(
        Counter,
        "parm_requests",
        "Infer requests, by HTTP status (over gRPC, by the one it stands for).",
        "code",
    )
    unauthorized = _Declared(
        Counter,
        "parm_requests_unauthorized",
        "Requests, for whatever, without a token that the server takes.",
    )
    connections = _Declared(Gauge, "parm_connections", "HTTP connections that are open.")
    connections_ended = _Declared(
        Counter, "parm_connections_ended", "Connections refused, or ended, by limit.", "limit"
    )
    refusals = _Declared(
        Counter, "parm_refused", "Requests and connections refused, by why.", "why", known=Refused
    )
    bytes_in_flight = _Declared(
        Gauge,
        "parm_bytes_in_flight",
        "Bytes of requests under way and of answers that their clients have not read.",
    )
    received = _Declared(
        Counter,
        "parm_received_bytes",
        "Bytes that clients sent, by protocol; over gRPC, those of messages.",
        "protocol",
        known=PROTOCOLS,
    )
    sent = _Declared(
        Counter,
        "parm_sent_bytes",
        "Bytes of answers to clients, by protocol; over gRPC, those of messages.",
        "protocol",
        known=PROTOCOLS,
    )

    # Queries

    latency_by_source = _Declared(
        Histogram,
        "parm_query_latency_seconds",
        "From a query's arrival to its answer, by the answer's source.",
        "source",
        known=[source for source in Source if source not in BACKUPS[1:]],  # those are of few
        buckets=_LATENCIES,
    )
    failures = _Declared(
        Counter,
        "parm_query_failures",
        "Queries that got no answer, by reason.",
        "reason",
        known=Reason,
    )
    reconstructions = _Declared(
        Counter, "parm_reconstructions", "Queries answered by a reconstruction."
    )
    unlike = _Declared(
        Counter,
        "parm_queries_unlike",
        "Queries unlike those that stand-ins learned from, which are answered exactly.",
    )
    group_wait = _Declared(
        Histogram,
        "parm_group_wait_seconds",
        "From a coding group's first query to its closing.",
        buckets=_TIMINGS,
    )
    encode = _Declared(
        Histogram, "parm_encode_seconds", "Encoding one coding group.", buckets=_TIMINGS
    )
    decode = _Declared(
        Histogram, "parm_decode_seconds", "Decoding one coding group.", buckets=_TIMINGS
    )

    lag = _Declared(
        Gauge,
        "parm_loop_lag_seconds",
        "How long reports of instances and timers wait for the server's own process, lately.",
    )
    process_busy = _Declared(
        Gauge, "parm_process_busy", "The share of a core that the server's own process uses."
    )
    redundancy = _Declared(
        Gauge,
        "parm_redundancy",
        "1 for the state of redundant work: on, testing whether it helps, paused as it does not, "
        "bottleneck (the server's own process is), or off.",
        "state",
        known=Redundancy,
    )
    capacity = _Declared(
        Gauge,
        "parm_capacity_queries_per_second",
        "Queries a second that admission takes the instances to answer at most; 0: not known.",
    )
    deadline_margin = _Declared(
        Histogram,
        "parm_deadline_margin_seconds",
        "From a query's answer to the deadline that it had.",
        buckets=_LATENCIES,
    )

    # Redundant work

    redundant = _Declared(
        Counter,
        "parm_redundant_tasks",
        "Redundant tasks, by kind and by what became of them; answered, refused: their queries.",
        "kind",
        "fate",
    )
    unit_run = _Declared(
        Histogram,
        "parm_unit_run_seconds",
        "From when an instance was given a unit to its outputs, by role and class of instance.",
        "role",
        "instances",
        buckets=_LATENCIES,
    )

    # How right stand-ins are

    compared = _Declared(
        Counter,
        "parm_reconstructions_compared",
        "Predictions compared with what would have been reconstructed in their place.",
    )
    disagreements = _Declared(
        Counter,
        "parm_reconstructions_disagreed",
        "Compared reconstructions of another class: whose largest value is in another place.",
    )
    reconstruction_error = _Declared(
        Histogram,
        "parm_reconstruction_error",
        "Distance of a compared reconstruction from the prediction, over the latter's length.",
        buckets=_ERRORS,
    )
    impossible = _Declared(
        Counter,
        "parm_stand_in_outputs_impossible",
        "Outputs of stand-ins that cannot be right, and answered nobody.",
    )
    refused_answers = _Declared(
        Counter,
        "parm_stand_in_answers_refused",
        "Outputs of stand-ins that were too unsure to answer, or whose gate was closed.",
        "source",
        "reason",
    )
    compared_answers = _Declared(
        Counter,
        "parm_stand_in_answers_compared",
        "Outputs of stand-ins that may answer, compared with the model's for the same query.",
        "source",
    )
    disagreed_answers = _Declared(
        Counter, "parm_stand_in_answers_disagreed", "Those that did not say the same.", "source"
    )
    gate_open = _Declared(
        Gauge,
        "parm_gate_open",
        "1: the stand-in may answer; 0: it agrees too seldom, and may not.",
        "source",
    )
    gate_agreement = _Declared(
        Gauge,
        "parm_gate_agreement",
        "The share of the stand-in's answers that should say what the model says.",
        "source",
    )
    gate_coverage = _Declared(
        Gauge,
        "parm_gate_coverage",
        "The share of calibration queries that the stand-in may answer.",
        "source",
    )

    # Instances

    restarts = _Declared(
        Counter,
        "parm_instance_restarts",
        "Instances that joined after the start: lost ones that are back.",
    )
    recycled = _Declared(
        Counter,
        "parm_instances_recycled",
        "Instances that were replaced, by what was wrong with them.",
        "reason",
        known=RecycleReason,
    )
    quarantined = _Declared(
        Counter,
        "parm_instance_quarantines",
        "Instances that answered a golden query wrongly, the latest of them by name.",
        "instance",
    )
    verifications = _Declared(
        Counter,
        "parm_verifications",
        "Golden queries run on instances to see whether they answer rightly.",
    )
    ejections = _Declared(
        Counter,
        "parm_upstream_ejections",
        "Upstreams that got no units for a while, by what was wrong with them.",
        "upstream",
        "fault",
    )
    upstream_busy = _Declared(
        Counter,
        "parm_upstream_busy",
        "Units that upstreams turned away as they had enough to do.",
        "upstream",
    )

    # What went wrong inside

    engine_errors = _Declared(
        Counter,
        "parm_engine_errors",
        "Errors within the engine that it got over, by what it was doing.",
        "doing",
    )
    messages_refused = _Declared(
        Counter,
        "parm_messages_refused",
        "Messages of workers that were refused, as malformed.",
        "why",
        known=("malformed",),
    )
    undone = _Declared(
        Counter, "parm_actions_failed", "Actions of the scheduler that could not be carried out."
    )
    observer_errors = _Declared(
        Counter, "parm_observer_errors", "Errors of what watches the server, which hindered nobody."
    )
    repairs = _Declared(
        Counter,
        "parm_repairs",
        "Differences between what the scheduler believed and what the engine had.",
    )
    build_info = _Declared(
        Gauge,
        "parm_build_info",
        "The software's version, and the digest of the bundle that it serves.",
        "version",
        "bundle_digest",
    )

    def __init__(self, bundle_digest: str = "") -> None:
        self.registry = CollectorRegistry()
        for declared in vars(Metrics).values():
            if isinstance(declared, _Declared):
                declared.make(self)
        self.latency: Callable[[Source], Histogram] = cache(self.latency_by_source.labels)
        self.build_info.labels(__version__, bundle_digest).set(1)

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
