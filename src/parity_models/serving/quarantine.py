"""The instances that answered a golden query wrongly."""

from collections import deque
from collections.abc import Collection

from parity_models.serving.metrics import Metrics

MAX_REMEMBERED = 100
"""How many of them are remembered by name."""


class Quarantine:
    """Remembers the latest of them, which are the ones that the metrics name."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._names: deque[str] = deque(maxlen=MAX_REMEMBERED)

    @property
    def names(self) -> Collection[str]:
        """The instances that are remembered, the latest last."""
        return self._names

    def add(self, instance: str) -> None:
        """This instance answered wrongly, and is replaced."""
        if len(self._names) == MAX_REMEMBERED:
            self._metrics.quarantined.remove(self._names[0])
        self._names.append(instance)
        self._metrics.quarantined.labels(instance).inc()
