"""The metrics of several frontends as those of one server."""

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Together(Collector):
    """Sums over `servers`, each with the metrics that its registry collects.

    That is right for counters, histograms and the gauges that a server has (all of them count);
    for the time when something was created it is the first, and for the version all have one.
    """

    def __init__(self, servers: Sequence[Sequence[Metric]]) -> None:
        self._servers = servers

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for metric in (metric for server in self._servers for metric in server):
            name = metric.name
            families.setdefault(name, Metric(name, metric.documentation, metric.type, metric.unit))
            sums = values.setdefault(name, {})
            for sample in metric.samples:
                key = (sample.name, tuple(sample.labels.items()))
                if key not in sums:
                    sums[key] = sample.value
                elif sample.name.endswith("_created"):
                    sums[key] = min(sums[key], sample.value)
                elif name != "parm_build_info":
                    sums[key] += sample.value
        for name, family in families.items():
            for (sample_name, labels), value in values[name].items():
                family.add_sample(sample_name, dict(labels), value)
            yield family
