"""A metric whose values, one for each role, are read off when somebody asks for them."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class ByRole(Collector):
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
