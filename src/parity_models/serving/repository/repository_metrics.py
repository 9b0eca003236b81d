"""The metrics of a repository: those of its models, each with its name and version, and its own."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric

from parity_models.serving.metrics import Metrics
from parity_models.serving.repository.evidence import Seen
from parity_models.serving.repository.sharing import Sharing

OF_SERVER = frozenset(
    {
        "parm_requests_unauthorized",
        "parm_connections",
        "parm_connections_ended",
        "parm_refused",
        "parm_bytes_in_flight",
        "parm_received_bytes",
        "parm_sent_bytes",
        "parm_certificate_expires_seconds",
    }
)
"""What no model has: metrics of the server that serves them."""

_REQUESTS = "parm_requests"
"""Counted with the model that answers, or with the server where no model was found."""

Registries = Mapping[tuple[str, str], CollectorRegistry]
"""The metrics of running versions, by model and version."""


class RepositoryMetrics:
    """A collector of all of them. `running` and `shares` are asked when somebody asks for them."""

    def __init__(
        self,
        running: Callable[[], Registries],
        shares: Callable[[], Mapping[tuple[str, str], float]],
    ) -> None:
        self.server = Metrics()
        self._running = running
        self._shares = shares
        self._own = CollectorRegistry()
        self._rollouts = Counter(
            "parm_rollouts",
            "Canaries that ended, and versions that could not be loaded, by model and outcome.",
            ["model", "outcome"],
            registry=self._own,
        )
        self._moves = Counter(
            "parm_instance_moves",
            "Shared instances that a model got, by it and by the model that gave it, if one did.",
            ["model", "giver"],
            registry=self._own,
        )
        self.sharing: Sharing | None = None
        """Who has how many of the instances that models share, if they do."""
        self._canary_requests = Counter(
            "parm_canary_requests",
            "Requests asked of a canary and of the old version, by model, version and outcome.",
            ["model", "version", "outcome"],
            registry=self._own,
        )
        self._canary_predictions = Counter(
            "parm_canary_predictions",
            "Predictions of a canary that were compared with the old version's.",
            ["model", "version", "outcome"],
            registry=self._own,
        )

    def moved(self, taker: str, giver: str | None) -> None:
        """A shared instance was given to a model, by another one or by none."""
        self._moves.labels(taker, giver or "").inc()

    def saw(self, model: str, version: str, seen: Seen) -> None:
        """A request was asked of a canary."""
        failed = seen.failed and not seen.old_failed
        self._canary_requests.labels(model, version, "failed" if failed else "answered").inc()
        same = self._canary_predictions.labels(model, version, "same")
        same.inc(seen.compared - seen.differed)
        self._canary_predictions.labels(model, version, "different").inc(seen.differed)

    def ended(self, model: str, outcome: str) -> None:
        """A rollout has ended."""
        self._rollouts.labels(model, outcome).inc()

    def collect(self) -> Iterable[Metric]:
        """All families, as a registry gives them."""
        families: dict[str, Metric] = {}
        for metric in self.server.registry.collect():
            if metric.name in OF_SERVER or metric.name == _REQUESTS:
                _add(families, metric, {})
        for (model, version), registry in self._running().items():
            for metric in registry.collect():
                if metric.name not in OF_SERVER:
                    _add(families, metric, {"model": model, "version": version})
        share = GaugeMetricFamily(
            "parm_version_share",
            "The share of a model's requests that a version takes.",
            labels=["model", "version"],
        )
        for about, value in self._shares().items():
            share.add_metric(about, value)
        yield from (*families.values(), share, *self._own.collect())
        if self.sharing is not None:
            yield from _of_sharing(self.sharing)


def _of_sharing(sharing: Sharing) -> Iterable[Metric]:
    has = GaugeMetricFamily(
        "parm_shared_instances", "Shared instances that a model has.", labels=["model"]
    )
    for model, instances in sharing.has.items():
        has.add_metric([model], instances)
    loads = GaugeMetricFamily(
        "parm_shared_instances_load",
        "How many instances a model's queries keep busy, as sharing sees it.",
        labels=["model"],
    )
    for model, load in sharing.loads.items():
        loads.add_metric([model], load)
    return has, loads


def _add(families: dict[str, Metric], metric: Metric, labels: Mapping[str, str]) -> None:
    family = families.get(metric.name)
    if family is None:
        family = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        families[metric.name] = family
    family.samples += [
        sample._replace(labels={**labels, **sample.labels}) for sample in metric.samples
    ]
