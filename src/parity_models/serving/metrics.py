"""What a server counts and times, for Prometheus.

What can be read off the scheduler (queues, instances, queries in flight) is read when somebody
asks for /metrics; only events are counted as they happen. Every server has a registry of its
own, so that several live in one process.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from parity_models import __version__
from parity_models.scheduling import Reason, RecycleReason, Source

_STEPS = (1, 1.5, 2, 3, 5, 7.5)
_LATENCIES = (*(scale * step for scale in (1e-3, 1e-2, 1e-1, 1) for step in _STEPS), 10, 30)
_ERRORS = (1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
_TIMINGS = (*(scale * step for scale in (1e-6, 1e-5, 1e-4) for step in (1, 2, 5)), *_LATENCIES)


class Metrics:
    """The counters and histograms of one server. Times are in seconds.

    `bundle_digest` is that of the served bundle's manifest.
    """

    def __init__(self, bundle_digest: str = "") -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "parm_requests",
            "Infer requests, by HTTP status (over gRPC, by the one it stands for).",
            ["code"],
            registry=self.registry,
        )
        self.failures = Counter(
            "parm_query_failures",
            "Queries that got no answer, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.reconstructions = Counter(
            "parm_reconstructions",
            "Queries answered by a reconstruction.",
            registry=self.registry,
        )
        self.ejections = Counter(
            "parm_upstream_ejections",
            "Upstreams that got no units for a while, by what was wrong with them.",
            ["upstream", "fault"],
            registry=self.registry,
        )
        self.upstream_busy = Counter(
            "parm_upstream_busy",
            "Units that upstreams turned away as they had enough to do.",
            ["upstream"],
            registry=self.registry,
        )
        self.compared = Counter(
            "parm_reconstructions_compared",
            "Predictions compared with what would have been reconstructed in their place.",
            registry=self.registry,
        )
        self.disagreements = Counter(
            "parm_reconstructions_disagreed",
            "Compared reconstructions of another class: whose largest value is in another place.",
            registry=self.registry,
        )
        self.reconstruction_error = Histogram(
            "parm_reconstruction_error",
            "Distance of a compared reconstruction from the prediction, over the latter's length.",
            buckets=_ERRORS,
            registry=self.registry,
        )
        self.restarts = Counter(
            "parm_instance_restarts",
            "Instances that joined after the start: lost ones that are back, or further ones.",
            registry=self.registry,
        )
        latency = Histogram(
            "parm_query_latency_seconds",
            "From a query's arrival to its answer, by the answer's source.",
            ["source"],
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self.latency = {source: latency.labels(source) for source in Source}
        self.group_wait = self._timing(
            "parm_group_wait_seconds", "From a coding group's first query to its closing."
        )
        self.encode = self._timing("parm_encode_seconds", "Encoding one coding group.")
        self.decode = self._timing("parm_decode_seconds", "Decoding one coding group.")
        self.engine_errors = Counter(
            "parm_engine_errors",
            "Errors within the engine that it got over, by what it was doing.",
            ["doing"],
            registry=self.registry,
        )
        self.connections = Gauge(
            "parm_connections", "HTTP connections that are open.", registry=self.registry
        )
        self.connections_ended = Counter(
            "parm_connections_ended",
            "Connections refused, or ended, by the limit that they met.",
            ["limit"],
            registry=self.registry,
        )
        self.bytes_in_flight = Gauge(
            "parm_bytes_in_flight",
            "Bytes of requests under way and of answers that their clients have not read.",
            registry=self.registry,
        )
        self._refused = Counter(
            "parm_messages_refused",
            "Messages between engine and workers that were refused: malformed, or a stranger's.",
            ["why"],
            registry=self.registry,
        )
        for why in ("malformed", "stranger"):
            self._refused.labels(why)
        for reason in Reason:
            self.failures.labels(reason)
        Gauge(
            "parm_build_info",
            "The software's version, and the digest of the bundle that it serves.",
            ["version", "bundle_digest"],
            registry=self.registry,
        ).labels(__version__, bundle_digest).set(1)
        self.recycled = Counter(
            "parm_instances_recycled",
            "Instances that were replaced, by what was wrong with them.",
            ["reason"],
            registry=self.registry,
        )
        for why in RecycleReason:
            self.recycled.labels(why)
        self.quarantined = Counter(
            "parm_instance_quarantines",
            "Instances that answered a golden query wrongly, the latest of them by name.",
            ["instance"],
            registry=self.registry,
        )
        self.verifications = Counter(
            "parm_verifications",
            "Golden queries run on instances to see whether they answer rightly.",
            registry=self.registry,
        )
        self.unlike = Counter(
            "parm_queries_unlike",
            "Queries unlike those that stand-ins learned from, which are answered exactly.",
            registry=self.registry,
        )
        self.impossible = Counter(
            "parm_stand_in_outputs_impossible",
            "Outputs of stand-ins that cannot be right, and answered nobody.",
            registry=self.registry,
        )
        self.undone = Counter(
            "parm_actions_failed",
            "Actions of the scheduler that could not be carried out.",
            registry=self.registry,
        )
        self.repairs = Counter(
            "parm_repairs",
            "Differences between what the scheduler believed and what the engine had.",
            registry=self.registry,
        )

    def refused(self, why: str, messages: int = 1) -> None:
        """So many messages were refused, as `why` says: malformed, or stranger."""
        if messages > 0:
            self._refused.labels(why).inc(messages)

    def read(
        self, name: str, help_text: str, label: str, values: Callable[[], Mapping[str, int]]
    ) -> None:
        """A gauge by `label`, whose values are asked for when the metrics are."""
        self.registry.register(_Gauges(name, help_text, label, values))

    def _timing(self, name: str, help_text: str) -> Histogram:
        return Histogram(name, help_text, buckets=_TIMINGS, registry=self.registry)


class _Gauges(Collector):
    def __init__(
        self, name: str, help_text: str, label: str, values: Callable[[], Mapping[str, int]]
    ) -> None:
        self._name = name
        self._help = help_text
        self._label = label
        self._values = values

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._help, labels=[self._label])
        for value, count in self._values().items():
            family.add_metric([value], count)
        yield family
